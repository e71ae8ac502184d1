"""A deterministic engine for tests: its options say what it emits and how many steps things take.

It queues, prefills and decodes as a real engine does, over slots, and writes the same journal; a token is a word.
No clock is used unless `step_s` asks for one.
"""

from __future__ import annotations

import hashlib
import random
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from backends.core.errors import BadRequest, ContextTooLong, Overloaded, UnsupportedParameter
from backends.core.events import Candidate, Embedding, Event, Failure, Item, Score, Started, TokenLogprob
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Prompt, RerankRequest
from backends.core.usage import Usage
from backends.engines.choice import ChoiceText
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.stepping import SteppingEngine

CAPABILITIES = (
    "chat", "completions", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n", "logprobs", "ignore_eos",
    "min_tokens",
)  # fmt: skip


class ScriptedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`script`: the tokens of every answer; `repeat`: begin it again instead of stopping at its end; `echo`: answer
    with the last message's own words instead. `prefill`: prompt tokens per step and slot. `delay_steps`: steps of
    nothing before the prefill. `step_s`: seconds to sleep per step. `fail_at`: fail a job at this output token.
    `die_at_step`: raise out of that step, as a broken engine does; `hang_at_step`: never return from it.
    `embedding`: width of vectors, 0 = generate; `rerank`: the share of the query's words that a document has, instead.
    `load_error`: refuse to load with this reason. `log`, `step_log`: the journal's files. `figures`: what it tells besides,
    as vLLM tells its own, each the number of its steps so far.
    """

    script: tuple[str, ...] = ("Hello", ",", " world", "!")
    repeat: bool = False
    echo: bool = False
    prefill: int = 64
    delay_steps: int = 0
    step_s: float = 0.0
    fail_at: int = 0
    die_at_step: int = 0
    hang_at_step: int = 0
    embedding: int = 0
    rerank: bool = False
    load_error: str = ""
    load_s: float = 0.0
    figures: tuple[str, ...] = ()
    log: str | None = None
    step_log: str | None = None


class _Seq:
    """One choice in work."""

    def __init__(self, job: _Running, index: int, prompt: Sequence[str], sampling_seed: int | None) -> None:
        self.job = job
        self.index = index
        self.left = len(prompt)
        self.delay = job.delay
        self.rng = random.Random(sampling_seed)  # noqa: S311  (a test's dice)
        self.text = ChoiceText(index, job.request.sampling, job.room[index // job.request.n])


class _Running:
    """One generation."""

    def __init__(self, id: str, request: GenerationRequest, prompts: list[list[str]], engine: ScriptedEngine) -> None:
        self.id = id
        self.request = request
        self.prompts = prompts
        self.delay = engine.options.delay_steps
        self.room = [engine.context - len(prompt) for prompt in prompts]
        self.script = tuple(prompts[0]) if engine.options.echo else engine.options.script
        self.started = False
        self.open = [
            _Seq(self, i, prompts[i // request.n], None if request.sampling.seed is None else request.sampling.seed + i)
            for i in range(request.choices)
        ]
        self.output = 0
        self.work = "queued"


class ScriptedEngine(SteppingEngine):
    """See the module. `context` 0 means 4096."""

    def __init__(self, launch: EngineLaunch) -> None:
        self.options = read_options(launch.options, ScriptedOptions)
        if self.options.load_s:
            time.sleep(self.options.load_s)
        if self.options.load_error:
            raise EngineLoadFailed(self.options.load_error)
        self.context = launch.context or 4096
        self._slots = launch.slots
        self._queue = launch.queue
        super().__init__(Journal(self.options.step_log, self.options.log))
        self._waiting: deque[_Seq] = deque()
        self._running: list[_Seq] = []
        self._jobs: dict[str, _Running] = {}
        self._pooling: deque[tuple[str, EmbeddingRequest | RerankRequest]] = deque()
        self._steps = 0

    def _take(self, job: Job, id: str) -> None:
        kind = EmbeddingRequest if self.options.embedding else RerankRequest if self.options.rerank else GenerationRequest
        if not isinstance(job, kind):
            raise BadRequest("This model does not do that kind of work.", param="model")
        if not isinstance(job, GenerationRequest):
            if isinstance(job, EmbeddingRequest) and job.dimensions not in (None, self.options.embedding):
                raise UnsupportedParameter("The model's vectors have one width only.", param="dimensions")
            self._pooling.append((id, job))
            return
        if len(self._waiting) + job.choices > self._queue + self._slots - len(self._running):
            raise Overloaded("The model's queue is full.", retry_after_ms=1000)
        prompts = _prompts(job)
        for prompt in prompts:
            if len(prompt) >= self.context:
                raise ContextTooLong(
                    f"The prompt has {len(prompt)} tokens; the model's context is {self.context}.",
                    param="prompt" if job.prompts else "messages",
                )
        running = _Running(id, job, prompts, self)
        self._jobs[id] = running
        self._waiting.extend(running.open)

    def cancel(self, id: str) -> Usage | None:
        """Forget a job; as `Engine`."""
        before = len(self._pooling)
        self._pooling = deque(one for one in self._pooling if one[0] != id)
        running = self._jobs.pop(id, None)
        if running is None:
            if len(self._pooling) != before:
                self._journal.job("cancel", id, was="queued")
            return None
        self._waiting = deque(seq for seq in self._waiting if seq.job is not running)
        self._running = [seq for seq in self._running if seq.job is not running]
        self._journal.job("cancel", id, was=running.work)
        made = running.output + sum(seq.text.tokens for seq in running.open)
        return Usage(sum(map(len, running.prompts)), made, source="counted") if made else None

    def busy(self) -> bool:
        """Whether there is work."""
        return bool(self._jobs or self._pooling)

    def step(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """One step; as `Engine`."""
        self._steps += 1
        if self._steps == self.options.die_at_step:
            raise RuntimeError("the script says: die")
        if self._steps == self.options.hang_at_step:
            threading.Event().wait()
        began = time.monotonic()
        if self.options.step_s:
            time.sleep(self.options.step_s)
        while self._waiting and len(self._running) < self._slots:
            self._running.append(self._waiting.popleft())
        out: dict[str, list[Event]] = {}
        rows: dict[str, int] = {}
        prefill = decode = 0
        for seq in list(self._running):
            if seq.job.id not in self._jobs:
                continue  # an earlier choice of it failed in this step
            made, was_prefill = self._advance(seq, out)
            rows[seq.job.id] = rows.get(seq.job.id, 0) + made
            prefill += made if was_prefill else 0
            decode += 0 if was_prefill else made
        if self._pooling:
            id, job = self._pooling.popleft()
            out[id] = self._embed(job) if isinstance(job, EmbeddingRequest) else _ranked(job)
            self._journal.job("finish", id)
        step_s = time.monotonic() - began
        self._journal.step(rows, prefill, decode, step_s, step_s)
        return list(out.items())

    def _advance(self, seq: _Seq, out: dict[str, list[Event]]) -> tuple[int, bool]:
        """One sequence's share of a step: the rows it took, and whether they were prefill."""
        job = seq.job
        if seq.delay:
            seq.delay -= 1
            job.work = "prefill" if job.work == "queued" else job.work
            return 0, True
        if seq.left:
            took = min(seq.left, self.options.prefill)
            seq.left -= took
            job.work = "prefill" if job.work == "queued" else job.work
            if seq.left:
                return took, True
            prefilled = took
        else:
            prefilled = 0
        job.work = "decode"
        events = out.setdefault(job.id, [])
        if not job.started:
            job.started = True
            events.append(Started(job.request.model))
        if self.options.fail_at and seq.text.tokens + 1 >= self.options.fail_at:
            events.append(Failure("crashed", "The script says: fail."))
            self._forget(job, "fail")
            return prefilled or 1, bool(prefilled)
        events += self._token(seq)
        if seq.text.finished:
            job.output += seq.text.tokens
            self._running.remove(seq)
            job.open.remove(seq)
            if not job.open:
                events.append(Usage(sum(map(len, job.prompts)), job.output, source="counted"))
                self._forget(job, "finish")
        if not events:
            del out[job.id]
        return prefilled or 1, bool(prefilled)

    def _token(self, seq: _Seq) -> list[Event]:
        request, script, at = seq.job.request, seq.job.script, seq.text.tokens
        endless = self.options.repeat or bool(request.sampling.ignore_eos) or at < (request.sampling.min_tokens or 0)
        if not script or (at >= len(script) and not endless):
            return seq.text.end()
        word = script[at % len(script)]
        if request.sampling.temperature:
            word = seq.rng.choice(script)
        logprob = None
        if request.top_logprobs is not None:
            others = sorted(set(script) - {word})[: max(0, request.top_logprobs - 1)]
            top = [Candidate(one, one.encode(), -0.25 * (n + 1)) for n, one in enumerate([word, *others])]
            logprob = TokenLogprob(word, word.encode(), -0.25, tuple(top[: request.top_logprobs]))
        return seq.text.token(word.encode(), logprob)

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`."""
        if isinstance(job, RerankRequest):
            return _pair_tokens(job)
        prompts = [_words(prompt) for prompt in job.inputs] if isinstance(job, EmbeddingRequest) else _prompts(job)
        return sum(map(len, prompts))

    def _forget(self, job: _Running, how: str) -> None:
        del self._jobs[job.id]
        self._running = [seq for seq in self._running if seq.job is not job]
        self._waiting = deque(seq for seq in self._waiting if seq.job is not job)
        self._journal.job(how, job.id)

    def _embed(self, job: EmbeddingRequest) -> list[Event]:
        events: list[Event] = [Started(job.model)]
        total = 0
        for index, prompt in enumerate(job.inputs):
            words = _words(prompt)
            total += len(words)
            numbers = [b - 128.0 for b in hashlib.sha256(" ".join(words).encode()).digest()] * (
                self.options.embedding // 32 + 1
            )
            numbers = numbers[: self.options.embedding]
            norm = sum(n * n for n in numbers) ** 0.5 or 1.0
            events.append(Item(Embedding(index, struct.pack(f"<{len(numbers)}f", *(n / norm for n in numbers)))))
        return [*events, Usage(total, 0, source="counted")]

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        pooled = ["embeddings", "token_input"] if self.options.embedding else ["rerank"] if self.options.rerank else []
        return {
            "context": self.context,
            "slots": self._slots,
            "capabilities": pooled or list(CAPABILITIES),
            "embedding_width": self.options.embedding,
            "running": len(self._running),
            "queued": len(self._waiting) + len(self._pooling),
            "steps": self._steps,
            "vllm": dict.fromkeys(self.options.figures, self._steps),
        }

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


def _ranked(job: RerankRequest) -> list[Event]:
    words = set(job.query.split())
    events: list[Event] = [Started(job.model)]
    for index, document in enumerate(job.documents):
        events.append(Item(Score(index, len(words & set(document.split())) / max(1, len(words)))))
    return [*events, Usage(_pair_tokens(job), 0, source="counted")]


def _pair_tokens(job: RerankRequest) -> int:
    return len(job.query.split()) * len(job.documents) + sum(len(one.split()) for one in job.documents)


def _prompts(job: GenerationRequest) -> list[list[str]]:
    return [_words(prompt) for prompt in job.prompts] or [[word for message in job.messages for word in message.text.split()]]


def _words(prompt: Prompt) -> list[str]:
    return [str(t) for t in prompt.tokens] if prompt.tokens is not None else prompt.text.split()
