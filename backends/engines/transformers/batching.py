"""Many requests at once by transformers' own continuous batching: its manager runs the model on a thread of its own.

Source: transformers 5.19 to 5.23 `generation/continuous_batching/continuous_api.py`. Temperature, top_k and top_p are each
request's own; all else is the whole batch's, so that what needs more goes through `solo.py`, while the batch pauses. A
streamed output holds all tokens so far. The prompt's tokens that pages shared with others spared are not told.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backends.core.events import Failure
from backends.engines.transformers.loading import Loaded
from backends.engines.transformers.sampling import batched_arguments
from backends.engines.transformers.work import Tell, Work, failure

#: Seconds between two looks at whether the manager still runs.
LOOK_S = 0.5


class Unsuitable(Exception):
    """The model cannot be batched so; the text says why."""


class Batch:
    """See the module."""

    def __init__(self, loaded: Loaded, tell: Tell, failed: Any, *, slots: int, pages: int, page_tokens: int) -> None:
        """`failed` is told what ended the manager.

        Raises:
            Unsuitable: this model or device cannot.
        """
        from transformers import ContinuousBatchingConfig, GenerationConfig

        if loaded.encodes:
            raise Unsuitable("the model has an encoder")
        self._loaded = loaded
        self._tell = tell
        self._failed = failed
        self._works: dict[str, tuple[Work, int]] = {}
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closing = False
        # Values other than the neutral ones: without them the batch would have no place for each request's own.
        every = GenerationConfig(
            do_sample=True, temperature=0.7, top_k=10, top_p=0.9, eos_token_id=loaded.ends() or [-1], pad_token_id=loaded.pad()
        )
        shape = ContinuousBatchingConfig(
            page_size=page_tokens,
            num_blocks=pages,
            max_batch_tokens=max(256, slots),
            max_requests_per_batch=slots,
            per_request_processors=True,
            drop_unsupported_processors=False,
            **({"use_cuda_graph": False, "use_async_batching": False} if loaded.device == "cpu" else {}),
        )
        try:
            self._manager = loaded.inner.init_continuous_batching(generation_config=every, continuous_batching_config=shape)
            self._manager.start()
        except Exception as error:
            raise Unsuitable(f"{type(error).__name__}: {error}") from None
        self._thread = threading.Thread(target=self._read, name="batch", daemon=True)
        self._thread.start()

    def probe(self, prompt: list[int]) -> None:
        """Make one token, as a model that is no good for this fails in its first step only.

        Raises:
            Unsuitable: it failed.
        """
        done = threading.Event()
        found: list[str] = []
        with self._lock:
            self._probing = (done, found)
        self._manager.add_request(
            prompt, request_id="probe", max_new_tokens=1, eos_token_id=[-1], temperature=1.0, top_k=1, top_p=1.0
        )
        if not done.wait(120) or found:
            self.close(5)
            raise Unsuitable(found[0] if found else "it made no token within 120 s")

    def add(self, work: Work) -> None:
        """Take a job: each choice is a request of the batch."""
        for index, (prompt, given) in enumerate(zip(work.prompts, work.arguments, strict=True)):
            own = batched_arguments(given, self._loaded.vocabulary)
            for number in range(work.job.n):
                choice = index * work.job.n + number
                name = f"{work.id}/{choice}"
                with self._lock:
                    self._works[name] = (work, choice)
                self._manager.add_request(
                    prompt,
                    request_id=name,
                    max_new_tokens=given["max_new_tokens"],
                    streaming=True,
                    eos_token_id=given["eos_token_id"],
                    **own,
                )

    def cancel(self, work: Work) -> None:
        """Forget a job."""
        work.left.set()
        with self._lock:
            names = [name for name, (other, _) in self._works.items() if other is work]
        for name in names:
            self._drop(name)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the model is the calling thread's alone."""
        with self._manager.pause():
            yield

    def close(self, wait_s: float) -> None:
        """End the manager."""
        self._closing = True
        self._manager.stop(block=True, timeout=wait_s)
        self._thread.join(wait_s)

    _probing: tuple[threading.Event, list[str]] | None = None

    def _drop(self, name: str) -> None:
        with self._lock:
            self._works.pop(name, None)
            self._seen.pop(name, None)
        self._manager.cancel_request(name)

    def _read(self) -> None:
        while not self._closing:
            output = self._manager.get_result(timeout=LOOK_S)
            if output is not None:
                self._took(output)
            elif not self._manager.is_running() and not self._closing:
                self._broke()
                return

    def _broke(self) -> None:
        error = self._manager.background_thread_status.fatal_error
        reason = f"continuous batching ended: {type(error).__name__}: {error}"
        if self._probing is not None:
            self._probing[1].append(reason)
            self._probing[0].set()
        else:
            self._failed(RuntimeError(reason))

    def _took(self, output: Any) -> None:
        name = str(output.request_id)
        if name == "probe" and self._probing is not None:
            if output.is_finished():
                if output.error:
                    self._probing[1].append(str(output.error))
                done, self._probing = self._probing[0], None
                done.set()
            return
        with self._lock:
            found = self._works.get(name)
            seen = self._seen.get(name, 0)
            if found is not None:
                self._seen[name] = len(output.generated_tokens)
        if found is None:
            return
        work, choice = found
        if output.error:
            self.cancel(work)
            self._tell(work.id, [_refused(output.error)])
            return
        events = []
        for token in output.generated_tokens[seen:]:
            events += work.answer.token(choice, int(token))
        if output.is_finished():
            events += work.answer.end(choice)
        if work.answer.finished(choice):
            self._drop(name)
        self._tell(work.id, events)


def _refused(error: object) -> Failure:
    return failure(RuntimeError(str(error)))


def pages(options_tokens: int | None, *, slots: int, context: int, page_tokens: int) -> int:
    """Pages of the cache: the stated tokens, or every slot's whole context, and one more for each slot."""
    tokens = options_tokens if options_tokens is not None else slots * context
    return -(-tokens // page_tokens) + slots
