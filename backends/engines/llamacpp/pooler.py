"""The llama.cpp engine for embedding models and rerankers: several inputs, of several jobs, in each batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

import llama_cpp as llama

from backends.core.errors import Overloaded
from backends.core.events import Event, Started
from backends.core.request import Job
from backends.core.usage import Usage
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.llamacpp.context import OK, Context
from backends.engines.llamacpp.model import Model
from backends.engines.llamacpp.pooling import Kind, Ranks, Vectors
from backends.engines.llamacpp.settings import LlamaOptions
from backends.engines.options import EngineLoadFailed
from backends.engines.stepping import SteppingEngine


class _Work:
    """One job: inputs not yet computed, and how many are missing."""

    def __init__(self, id: str, model: str, inputs: list[list[int]]) -> None:
        self.id = id
        self.model = model
        self.todo = deque(enumerate(inputs))
        self.missing = len(inputs)
        self.tokens = sum(map(len, inputs))
        self.started = False


class LlamaPooler(SteppingEngine):
    """The `Engine` contract for embeddings and scores. Inputs over the context are refused, not cut.

    `slots` is how many inputs a batch may hold, `queue` how many jobs may be open beside the one in work.
    """

    def __init__(self, launch: EngineLaunch, options: LlamaOptions) -> None:
        """Raises EngineLoadFailed."""
        self._model = Model(launch.model, gpu_layers=options.gpu_layers, use_mmap=options.mmap)
        self.context_size = launch.context or self._model.trained_context
        if self.context_size > self._model.trained_context:
            raise EngineLoadFailed(
                f"a context of {self.context_size} is more than the {self._model.trained_context} the model was trained with"
            )
        kind: type[Ranks] | type[Vectors] = Ranks if options.rerank else Vectors
        self._kind: Kind = kind(self._model, self.context_size, options)
        rows = max(options.batch, self.context_size)  # an input is one piece: its tokens see each other
        self._context = Context(
            self._model,
            positions=rows,
            sequences=launch.slots,
            rows=rows,
            threads=options.thread_count(),
            pooling=self._kind.pooling,
        )
        self._kind.check(self._context)
        self._slots = launch.slots
        self._queue = launch.queue
        super().__init__(Journal(options.step_log, options.log))
        self._jobs: dict[str, _Work] = {}  # in order of service
        self._steps = 0

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`: the vocabulary is read only."""
        return sum(map(len, self._kind.inputs(job)))

    def _take(self, job: Job, id: str) -> None:
        if len(self._jobs) > self._queue:
            raise Overloaded("The model's queue is full.", retry_after_ms=1000)
        self._jobs[id] = _Work(id, job.model, self._kind.inputs(job))

    def cancel(self, id: str) -> None:
        """Forget a job; as `Engine`."""
        job = self._jobs.pop(id, None)
        if job is not None:
            self._journal.job("cancel", id, was="decode" if job.started else "queued")

    def hurry(self) -> None:
        """A cancel is on its way; from another thread. A step is cut short, never two in a row."""
        self._context.hurry()

    def busy(self) -> bool:
        """Whether there is work."""
        return bool(self._jobs)

    def step(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """Compute one batch of inputs; as `Engine`."""
        began = time.monotonic()
        picked = self._pick()
        if not picked:
            return ()
        if self._context.memory:
            llama.llama_memory_clear(self._context.memory, False)
        self._context.clear()
        for slot, (_, _, tokens) in enumerate(picked):
            self._context.add(slot, tokens, 0, every=True)
        called = time.monotonic()
        code = self._context.decode(cuttable=True)
        model_s = time.monotonic() - called
        if code != OK:  # cut short, or no room: the inputs go back in their places
            for work, index, tokens in reversed(picked):
                work.todo.appendleft((index, tokens))
            return ()
        out = self._collect(picked)
        self._steps += 1
        rows: dict[str, int] = {}
        for work, _, tokens in picked:
            rows[work.id] = rows.get(work.id, 0) + len(tokens)
        self._journal.step(rows, self._context.filled, 0, time.monotonic() - began, model_s)
        return out

    def _pick(self) -> list[tuple[_Work, int, list[int]]]:
        """Inputs for a batch: one of each job in turn, so that a long list does not hold up a short one."""
        picked: list[tuple[_Work, int, list[int]]] = []
        room = self._context.rows
        turn = deque(self._jobs.values())
        while turn and len(picked) < self._slots:
            work = turn.popleft()
            if not work.todo or len(work.todo[0][1]) > room:
                continue
            index, tokens = work.todo.popleft()
            room -= len(tokens)
            picked.append((work, index, tokens))
            turn.append(work)
        return picked

    def _collect(self, picked: Sequence[tuple[_Work, int, list[int]]]) -> list[tuple[str, list[Event]]]:
        out: dict[str, list[Event]] = {}
        for slot, (work, index, _) in enumerate(picked):
            events = out.setdefault(work.id, [])
            if not work.started:
                work.started = True
                events.append(Started(work.model))
            found = llama.llama_get_embeddings_seq(self._context.handle, slot)
            events.append(self._kind.item(index, found))
            work.missing -= 1
            if not work.missing:
                events.append(Usage(work.tokens, 0, source="counted"))
                del self._jobs[work.id]
                self._journal.job("finish", work.id)
        for work, _, _ in picked:  # who was served goes to the end of the line
            if work.id in self._jobs:
                self._jobs[work.id] = self._jobs.pop(work.id)
        return list(out.items())

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        return {
            "context": self.context_size,
            "slots": self._slots,
            "capabilities": list(self._kind.capabilities),
            "embedding_width": self._kind.width,
            "running": 0,
            "queued": len(self._jobs),
            "steps": self._steps,
        }

    def close(self) -> None:
        """Free the model."""
        self._context.close()
        self._model.close()
        self._journal.close()
