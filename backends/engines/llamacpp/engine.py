"""The llama.cpp engine: continuous batching over the sequences of one context.

The scheduler plans, this file executes: rows into the batch, one llama_decode, a token per row that asked for logits,
events out. New jobs join the running batch at the next step. Jobs wait for a slot in order of arrival.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence

from backends.core.capabilities import LOCAL_SAMPLING, OPENAI_SAMPLING
from backends.core.contracts import Engine
from backends.core.errors import BadRequest, Overloaded, UnsupportedParameter
from backends.core.events import Event, Failure, TokenLogprob
from backends.core.request import GenerationRequest, Job
from backends.core.usage import Usage
from backends.engines.choice import ChoiceText
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.llamacpp import work
from backends.engines.llamacpp.adapters import NONE, Adapters
from backends.engines.llamacpp.context import ABORTED, NO_ROOM, Context
from backends.engines.llamacpp.forms.asked import grammar_of
from backends.engines.llamacpp.logprobs import token_logprob
from backends.engines.llamacpp.memory import Memory
from backends.engines.llamacpp.model import Model
from backends.engines.llamacpp.pooler import LlamaPooler
from backends.engines.llamacpp.prompts import Prompts
from backends.engines.llamacpp.sampling import NoTokenFits, Sampler
from backends.engines.llamacpp.scheduler import Pace, Step, plan
from backends.engines.llamacpp.settings import LlamaOptions
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.stepping import SteppingEngine

CAPABILITIES = (
    OPENAI_SAMPLING
    | LOCAL_SAMPLING
    | {"completions", "n", "logprobs", "token_input", "grammar", "regex"}
    | {"response_format.json_object", "response_format.json_schema"}
)
#: Stop strings of a request.
MAX_STOPS = 64
#: Milliseconds told to a client whom a full queue refuses: between these, and what the last jobs took.
RETRY_MS = (1_000, 30_000)


def load(launch: EngineLaunch) -> Engine:
    """The engine for a launch: one for embeddings or scores when its options say so.

    Raises:
        EngineLoadFailed: in one line why not.
    """
    options = read_options(launch.options, LlamaOptions)
    pools = options.embedding or options.rerank
    return LlamaPooler(launch, options) if pools else LlamaCppEngine(launch, options)


class LlamaCppEngine(SteppingEngine):
    """See the module; the `Engine` contract."""

    def __init__(self, launch: EngineLaunch, options: LlamaOptions) -> None:
        """Raises EngineLoadFailed."""
        self._slot_count = launch.slots
        self._most_waiting = launch.queue
        if options.batch < launch.slots:
            raise EngineLoadFailed(f"batch ({options.batch}) must be at least the number of slots ({launch.slots})")
        self._model = Model(launch.model, gpu_layers=options.gpu_layers, use_mmap=options.mmap)
        self._model.show(options.shown)
        self.context_size = launch.context or self._model.trained_context
        if self.context_size > self._model.trained_context:
            raise EngineLoadFailed(
                f"a context of {self.context_size} is more than the {self._model.trained_context} the model was trained with"
            )
        self._prompts = Prompts(self._model, self.context_size, options.template)
        self._cache_size = options.cache_tokens or self.context_size * launch.slots
        if self._cache_size < self.context_size:
            raise EngineLoadFailed(f"cache_tokens ({self._cache_size}) must hold one context ({self.context_size})")
        self._context = Context(
            self._model,
            positions=self._cache_size,
            sequences=launch.slots,
            rows=options.batch,
            threads=options.thread_count(),
        )
        self._adapters = Adapters(self._model, options.lora)
        self._adapter = NONE
        self._memory = Memory(
            self._context,
            launch.slots,
            parts=self._model.partial_memory(),
            keep=options.prefix_cache,
            room=self._cache_size // 4 if options.kept_tokens is None else options.kept_tokens,
        )
        self._pace = Pace(options.batch, min(options.beside, options.batch), stretch=options.stretch)
        super().__init__(Journal(options.step_log, options.log))
        self._jobs: dict[str, work.Running] = {}
        self._waiting: deque[work.Sequence] = deque()
        self._running: list[work.Sequence] = []  # in order of admission
        self._steps = 0
        self._job_s = 1.0

    # the Engine contract

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`: the vocabulary is read only."""
        if not isinstance(job, GenerationRequest):
            raise BadRequest("This model makes text, nothing else.", param="model")
        return sum(map(len, self._prompts.of(job)))

    def cancel(self, id: str) -> Usage | None:
        """Forget a job; as `Engine`."""
        job = self._jobs.get(id)
        if job is None:
            return None
        was = job.phase()
        job.output_tokens += sum(sequence.text.tokens for sequence in job.open)
        self._drop(job)
        self._journal.job("cancel", id, was=was)
        return job.usage() if job.output_tokens else None

    def hurry(self) -> None:
        """A cancel is on its way; from another thread. A step that reads prompts is cut short, never two in a row."""
        self._context.hurry()

    def busy(self) -> bool:
        """Whether there is work."""
        return bool(self._jobs)

    def step(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """One llama_decode and what it brings; as `Engine`."""
        began = time.monotonic()
        self._admit()
        self._adapter = work.whose_turn(self._running, self._adapter)
        planned, by_slot = self._plan([sequence for sequence in self._running if sequence.job.adapter == self._adapter])
        if not planned.rows:
            return ()
        self._adapters.apply(self._context.handle, self._adapter)
        self._fill(planned, by_slot)
        called = time.monotonic()
        code = self._context.decode(cuttable=bool(planned.prefill))
        model_s = time.monotonic() - called
        if code == ABORTED:
            return self._undo(by_slot)
        if code == NO_ROOM:
            return self._make_room()
        self._pace.observe(len(planned.decode), planned.rows - len(planned.decode), model_s)
        out = self._advance(planned, by_slot)
        self._steps += 1
        self._write(planned, by_slot, time.monotonic() - began, model_s)
        return [(id, events) for id, events in out.items() if events]

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        return {
            "context": self.context_size,
            "slots": self._slot_count,
            "capabilities": sorted(CAPABILITIES | ({"chat"} if self._prompts.chats else set())),
            "prompt_tail": self._prompts.tail,
            "lora": self._adapters.names,
            "running": len(self._running),
            "queued": len(self._waiting),
            "steps": self._steps,
            "kv_tokens": sum(sequence.position for sequence in self._running),
            "kv_size": self._cache_size,
            "kept_tokens": self._memory.kept_tokens,
        }

    def close(self) -> None:
        """Free the model."""
        for sequence in (*self._running, *self._waiting):
            sequence.sampler.free()
        self._context.close()
        self._model.close()
        self._journal.close()

    # taking a job

    def _take(self, job: Job, id: str) -> None:
        if not isinstance(job, GenerationRequest):
            raise BadRequest("This model makes text, nothing else.", param="model")
        if len(job.sampling.stop) > MAX_STOPS:
            raise BadRequest(f"At most {MAX_STOPS} stop strings are taken.", param="stop")
        if job.suffix:
            raise UnsupportedParameter("This model's engine does not fill in the middle.", param="suffix")
        if job.choices > self._most_waiting + self._slot_count:
            most = self._most_waiting + self._slot_count
            raise BadRequest(f"At most {most} choices fit this model's queue.", param="n")
        if len(self._waiting) + job.choices > self._most_waiting + self._memory.free:
            raise Overloaded("The model's queue is full.", retry_after_ms=self._retry_ms())
        prompts = self._prompts.of(job)
        grammar = grammar_of(job.output)
        running = work.Running(id, job, sum(map(len, prompts)), self._adapters.named(job.model))
        seed = int.from_bytes(os.urandom(4)) if job.sampling.seed is None else job.sampling.seed
        try:
            for index in range(job.choices):
                prompt = prompts[index // job.n]
                sampler = Sampler(self._model, job.sampling, seed=(seed + index) & 0xFFFFFFFF, prompt=prompt, grammar=grammar)
                text = ChoiceText(index, job.sampling, self.context_size - len(prompt))
                running.open.append(work.Sequence(running, index, prompt, text, sampler))
        except Exception:
            for sequence in running.open:
                sequence.sampler.free()
            raise
        running.began = time.monotonic()
        self._jobs[id] = running
        self._waiting.extend(running.open)

    def _retry_ms(self) -> int:
        least, most = RETRY_MS
        return max(least, min(most, int(1000 * self._job_s * (1 + len(self._waiting) / self._slot_count))))

    def _admit(self) -> None:
        """Give free slots to who waits."""
        while self._waiting and self._memory.free:
            sequence = self._waiting.popleft()
            self._memory.seat(sequence, self._running)
            self._running.append(sequence)
        if self._running:
            self._memory.clear()

    # one step

    def _plan(self, running: Sequence[work.Sequence]) -> tuple[Step, dict[int, work.Sequence]]:
        """The next step of sequences of one adapter."""
        by_slot = {sequence.slot: sequence for sequence in running}
        decoding = [sequence.slot for sequence in running if not sequence.prefilling]
        short = sum(sequence.prefilling and sequence.left <= self._context.rows for sequence in running)
        budget = self._pace.budget(len(decoding), short)
        prefilling: list[tuple[int, int]] = []
        for sequence in running:
            if sequence.follows:
                self._memory.take_over(sequence)
            if sequence.prefilling and not sequence.follows:
                prefilling.append((sequence.slot, sequence.left))
        return plan(decoding, prefilling, self._context.rows, budget, self._steps, self._slot_count), by_slot

    def _fill(self, planned: Step, by_slot: Mapping[int, work.Sequence]) -> None:
        self._context.clear()
        for slot in planned.decode:
            sequence = by_slot[slot]
            sequence.row = self._context.add(slot, sequence.tokens[-1:], sequence.position, last=True)
        for slot, count in planned.prefill:
            sequence = by_slot[slot]
            end = sequence.position + count
            whole = end == sequence.prompt_size
            row = self._context.add(slot, sequence.tokens[sequence.position : end], sequence.position, last=whole)
            sequence.row = row if whole else -1

    def _advance(self, planned: Step, by_slot: Mapping[int, work.Sequence]) -> dict[str, list[Event]]:
        """What the decoded rows mean: positions move, rows with logits give a token each."""
        out: dict[str, list[Event]] = {}
        for slot, count in (*((slot, 1) for slot in planned.decode), *planned.prefill):
            by_slot[slot].position += count
        for slot in (*planned.decode, *(slot for slot, _ in planned.prefill)):
            sequence = by_slot[slot]
            if sequence.row >= 0 and sequence.job.id in self._jobs:
                events = out.setdefault(sequence.job.id, [])
                try:
                    self._next(sequence, events)
                except Exception as error:  # a bug in one request's handling fails that request
                    self._fail(sequence.job, events, f"{type(error).__name__}: {error}")
        return out

    def _next(self, sequence: work.Sequence, events: list[Event]) -> None:
        """Choose a sequence's next token; its events."""
        job = sequence.job
        events += job.started()
        try:
            token = sequence.sampler.sample(self._context.handle, sequence.row, sequence.text.tokens)
        except NoTokenFits:
            token = -1
        if token < 0 or self._model.ends_generation(token):
            events += sequence.text.end()
        else:
            events += sequence.text.token(self._model.piece(token), self._logprob(sequence, token))
            sequence.tokens.append(token)
        if sequence.text.finished:
            job.output_tokens += sequence.text.tokens
            self._release(sequence)
            if not job.open:
                events.append(job.usage())
                del self._jobs[job.id]
                self._job_s += 0.2 * (time.monotonic() - job.began - self._job_s)
                self._journal.job("finish", job.id)

    def _logprob(self, sequence: work.Sequence, token: int) -> TokenLogprob | None:
        count = sequence.job.request.top_logprobs
        if count is None:
            return None
        return token_logprob(self._context.logits(sequence.row, self._model.size), token, count, self._model.piece)

    # what goes otherwise

    def _undo(self, by_slot: Mapping[int, work.Sequence]) -> Sequence[tuple[str, Sequence[Event]]]:
        """A step was cut short: what it put into the memory is taken out again; it will be planned anew."""
        for sequence in by_slot.values():
            self._memory.undo(sequence)
        return ()

    def _make_room(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """The memory has no room: first what finished requests left goes, then the youngest request."""
        if self._memory.make_room():
            return ()
        youngest = self._running[-1].job
        failure = Failure("overloaded", "The model's memory is full; try again shortly.", retry_after_ms=self._retry_ms())
        if all(sequence.job is youngest for sequence in self._running):
            failure = Failure("rejected", "The model's memory does not hold all choices of this request.", param="n")
        events: list[Event] = []
        self._end(youngest, events, failure)
        return [(youngest.id, events)]

    def _fail(self, job: work.Running, events: list[Event], detail: str) -> None:
        self._end(job, events, Failure("unavailable", "The model's engine failed on this request.", detail=detail))

    def _end(self, job: work.Running, events: list[Event], failure: Failure) -> None:
        self._drop(job)
        events.append(failure)
        self._journal.job("fail", job.id, detail=failure.detail or failure.message)

    def _drop(self, job: work.Running) -> None:
        self._jobs.pop(job.id, None)
        self._waiting = deque(sequence for sequence in self._waiting if sequence.job is not job)
        for sequence in list(job.open):
            self._release(sequence)

    def _release(self, sequence: work.Sequence) -> None:
        sequence.job.open.remove(sequence)
        sequence.sampler.free()
        if sequence.slot >= 0:
            self._running.remove(sequence)
            self._memory.give(sequence)

    def _write(self, planned: Step, by_slot: Mapping[int, work.Sequence], step_s: float, model_s: float) -> None:
        if self._journal.on:
            rows: dict[str, int] = {}
            for slot, count in (*((slot, 1) for slot in planned.decode), *planned.prefill):
                id = by_slot[slot].job.id
                rows[id] = rows.get(id, 0) + count
            decode = len(planned.decode)
            self._journal.step(rows, planned.rows - decode, decode, step_s, model_s)
