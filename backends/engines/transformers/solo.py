"""One request at a time through `generate`, on a thread of its own: everything that transformers can do for it.

Tokens are seen by a stopping criterion, which transformers asks after each one, and which also ends rows: by our own
stop strings, by the limit, or because nobody waits any more. A prompt's own pass is not interrupted. Logprobs are of the
model's raw logits, taken by a hook of its forward pass.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from backends.core.events import Candidate, TokenLogprob
from backends.engines.transformers.answers import Ends
from backends.engines.transformers.loading import Loaded
from backends.engines.transformers.work import Tell, Work, failure

#: Makes the model this thread's alone for a while.
Alone = Callable[[], AbstractContextManager[object]]


class Solo:
    """Jobs in order of arrival."""

    def __init__(self, loaded: Loaded, ends: Ends, tell: Tell, alone: Alone) -> None:
        self._loaded = loaded
        self._ends = ends
        self._tell = tell
        self._alone = alone
        self._waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._running: Work | None = None
        self._logits: Any = None
        self._thread = threading.Thread(target=self._main, name="generate", daemon=True)
        self._thread.start()

    def add(self, work: Work) -> None:
        """Take a job."""
        self._waiting.put(work)

    def cancel(self, work: Work) -> None:
        """Forget it: at once while it waits, after the token that is being made when it runs."""
        work.left.set()

    def close(self, wait_s: float) -> None:
        """End after what runs."""
        self._waiting.put(None)
        if (running := self._running) is not None:
            running.left.set()
        self._thread.join(wait_s)

    def _main(self) -> None:
        while (work := self._waiting.get()) is not None:
            if work.left.is_set():
                continue
            self._running = work
            try:
                with self._alone(), self._loaded.using(work.job.model):
                    for index, (prompt, arguments) in enumerate(zip(work.prompts, work.arguments, strict=True)):
                        self._generate(work, index, prompt, arguments)
            except Exception as error:  # this request fails; the model is as it was
                self._tell(work.id, work.answer.fail(failure(error)))
            self._running = None

    def _generate(self, work: Work, index: int, prompt: list[int], arguments: Mapping[str, object]) -> None:
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        model = self._loaded.inner
        beams = int(str(arguments["num_beams"])) > 1
        # greedy search refuses to return several sequences of one row; so each choice is a row of its own
        ids = torch.tensor([prompt] * (1 if beams else work.job.n), device=model.device)
        seed = work.job.sampling.seed
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed % (1 << 63))
        watch = _watch(self, work, index, silent=beams)
        with torch.inference_mode(), self._watching(work, model):
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(**dict(arguments)),
                stopping_criteria=StoppingCriteriaList([watch]),
                logits_processor=_adjusting(work, 0 if self._loaded.encodes else len(prompt)),
            )
        if beams:
            self._whole(work, index, made[:, 0 if self._loaded.encodes else len(prompt) :].tolist())
        elif not work.left.is_set():
            for number in range(work.job.n):
                self._tell(work.id, work.answer.end(index * work.job.n + number))

    def _watching(self, work: Work, model: Any) -> AbstractContextManager[object]:
        """While the model's raw logits are kept, if the job asks for any."""
        from contextlib import contextmanager

        @contextmanager
        def hooked() -> Any:
            def keep(_module: Any, _inputs: Any, output: Any) -> None:
                self._logits = output.logits[:, -1]

            handle = model.register_forward_hook(keep) if work.job.top_logprobs is not None else None
            try:
                yield
            finally:
                if handle is not None:
                    handle.remove()
                self._logits = None

        return hooked()

    def _whole(self, work: Work, index: int, rows: list[list[int]]) -> None:
        """The rows of a beam search, known at its end only. They are filled up with padding after their end."""
        for number, row in enumerate(rows):
            choice = index * work.job.n + number
            for token in row:
                self._tell(work.id, work.answer.token(choice, token))
            self._tell(work.id, work.answer.end(choice))

    def took(self, work: Work, index: int, tokens: list[int]) -> list[bool]:
        """A token of each row; which rows are done."""
        done = []
        events = []
        for number, token in enumerate(tokens):
            choice = index * work.job.n + number
            logprob = None
            if self._logits is not None and not work.answer.finished(choice):
                logprob = self._logprob(number, token, work.job.top_logprobs or 0)
            events += work.answer.token(choice, token, logprob)
            done.append(work.left.is_set() or work.answer.finished(choice))
        self._tell(work.id, events)
        return done

    def _logprob(self, row: int, token: int, count: int) -> TokenLogprob:
        scores = self._logits[row].float().log_softmax(-1)
        best = scores.topk(max(1, count))
        top = tuple(
            self._candidate(id, value)
            for id, value in zip(best.indices.tolist()[:count], best.values.tolist()[:count], strict=True)
        )
        chosen = self._candidate(token, float(scores[token]))
        return TokenLogprob(chosen.token, chosen.bytes, chosen.logprob, top)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        spelled = self._ends.text(token)
        return Candidate(spelled.decode("utf-8", "replace"), spelled, max(logprob, -9999.0))


def _watch(solo: Solo, work: Work, index: int, *, silent: bool) -> Any:
    """The stopping criterion. `silent`: rows are beams, which may still be given up; only leaving ends them."""
    import torch
    from transformers import StoppingCriteria

    class Watch(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **_: object) -> Any:  # noqa: ARG002  (its contract)
            done = [work.left.is_set()] * input_ids.shape[0] if silent else solo.took(work, index, input_ids[:, -1].tolist())
            return torch.tensor(done, device=input_ids.device, dtype=torch.bool)

    return Watch()


def _adjusting(work: Work, skip: int) -> Any:
    """Penalties and biases that transformers has no field for, by what OpenAI's API says of them.

    `skip`: tokens of the prompt, which the penalties do not count.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    sampling = work.job.sampling
    presence, frequency = sampling.presence_penalty or 0.0, sampling.frequency_penalty or 0.0
    if not presence and not frequency and not sampling.logit_bias:
        return LogitsProcessorList()

    class Adjust(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.clone()
            for token, bias in sampling.logit_bias:
                scores[:, token] += bias if bias > -100 else -float("inf")  # -100 means "never" (OpenAI API reference)
            made = input_ids[:, skip:]
            counts = torch.zeros_like(scores).scatter_add_(1, made, torch.ones_like(made, dtype=scores.dtype))
            return scores - frequency * counts - presence * (counts > 0)

    return LogitsProcessorList([Adjust()])
