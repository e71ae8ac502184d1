"""vLLM's AsyncLLM as an engine: its own process computes, its asyncio runs on a thread here, events come by a mailbox.

Jobs are tokenised and checked on the engine thread, so that a refusal is an answer to `submit`; then each is a task on
the loop's thread. vLLM batches and plans by itself; this file bounds what it is given, and ends tasks of jobs that left:
a cancelled `generate` aborts the request in vLLM.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from backends.core.capabilities import Capabilities
from backends.core.contracts import Engine
from backends.core.errors import BadRequest, GatewayError, Overloaded, UnsupportedParameter
from backends.core.events import Event, Failure
from backends.core.request import EmbeddingRequest, GenerationRequest, Job
from backends.core.usage import Usage
from backends.engines.guardian import guard
from backends.engines.huggingface.prompts import Prompts
from backends.engines.huggingface.spelling import Spelling
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.loop_thread import LoopThread
from backends.engines.mailbox import Mailbox
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.versions import check
from backends.engines.vllm import library
from backends.engines.vllm.arguments import SUPPORTED, engine_arguments, problems
from backends.engines.vllm.outputs import JobEvents, Unfinished
from backends.engines.vllm.parsers import Conversation, Parsers
from backends.engines.vllm.sampling import CAPABILITIES, constraint, sampling_arguments
from backends.engines.vllm.settings import VllmOptions
from backends.engines.vllm.sleeping import Sleeping
from backends.parsing.sanitise import public

#: Stop strings of a request.
MAX_STOPS = 64
#: Seconds that vLLM is given to end its processes.
SHUTDOWN_S = 5.0
HEALTH_S = 1.0


def load(launch: EngineLaunch) -> Engine:
    """The engine for a launch.

    Raises:
        EngineLoadFailed: in one line why not.
    """
    version = check(SUPPORTED)
    options = read_options(launch.options, VllmOptions)
    for name, problem, mend in problems(options.arguments):
        raise EngineLoadFailed(f"engines.{launch.name}.options.arguments.{name}: {problem}; {mend}")
    return VllmEngine(launch, options, version)


class _Running:
    """One job: its task on the loop, and how far it has come."""

    def __init__(self, choices: int, began: float) -> None:
        self.choices = choices
        self.began = began
        self.spoke = False
        self.task: asyncio.Task[None] | None = None
        self.left = False

    def begin(self, loop: LoopThread, work: Any) -> None:
        """On the loop."""
        if self.left:
            work.close()
        else:
            self.task = loop.start(work)

    def cancel(self) -> None:
        """On the loop."""
        self.left = True
        if self.task is not None:
            self.task.cancel()


class VllmEngine:
    """See the module; the `Engine` contract."""

    def __init__(self, launch: EngineLaunch, options: VllmOptions, version: str) -> None:
        """Raises EngineLoadFailed."""
        self._options = options
        self._version = version
        self._slots = launch.slots
        self._queue = launch.queue
        self._mailbox = Mailbox()
        self._jobs: dict[str, _Running] = {}
        self._job_s = 1.0
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        library.check_adapters(options.lora)
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")  # a fork would hold the guardian's pipe open
        self._guardian = guard()
        stated = engine_arguments(
            options.arguments,
            model=launch.model,
            slots=launch.slots,
            context=launch.context,
            embedding=options.embedding,
            adapters=len(options.lora),
        )
        self._loop = LoopThread("vllm", self._broke)
        self._vllm = self._loop.call(lambda: library.start(stated))
        config = self._vllm.model_config
        self.context_size = int(config.max_model_len)
        self._adapters = self._loop.call(lambda: library.adapters(self._vllm, options.lora))
        tokenizer = library.tokenizer(self._vllm)
        self._prompts = Prompts(
            tokenizer,
            self.context_size,
            vocabulary=int(config.get_vocab_size()),
            template=options.template,
            variables=options.template_variables,
            generates=not options.embedding,
        )
        self._spelling = Spelling(tokenizer, tokenizer.all_special_ids)
        reasoning = str(options.arguments.get("reasoning_parser") or "")
        self._parsers = Parsers(tokenizer, config, tools=options.tool_call_parser, reasoning=reasoning)
        self._defaults: Mapping[str, object] = {} if options.embedding else config.get_diff_sampling_param()
        self._sleeping = Sleeping(self._vllm, options.sleep_after_s, options.sleep_level)
        self._journal = Journal(options.step_log, options.log)
        self._loop.post(lambda: self._loop.start(self._watch()))

    # the Engine contract

    def submit(self, job: Job, id: str) -> None:
        """Take a job; as `Engine`."""
        try:
            work, choices = self._work(job, id)
        except Exception as error:
            self._journal.job("refuse", id, error=type(error).__name__)
            raise
        running = self._jobs[id] = _Running(choices, time.monotonic())
        self._mailbox.expect(True)
        self._journal.job("submit", id)
        self._loop.post(running.begin, self._loop, work)

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`."""
        if isinstance(job, EmbeddingRequest) is not self._options.embedding:
            raise BadRequest("This model does not do that kind of work.", param="model")
        if isinstance(job, EmbeddingRequest):
            return sum(len(self._prompts.plain(one, "input")) for one in job.inputs)
        return sum(map(len, self._prompts.of(job)))

    def cancel(self, id: str) -> None:
        """Forget a job; as `Engine`."""
        was = self._phase(id)
        running = self._jobs.pop(id, None)
        self._mailbox.expect(bool(self._jobs))
        if running is not None:
            self._loop.post(running.cancel)
            self._journal.job("cancel", id, was=was)

    def hurry(self) -> None:
        """A step never lasts: `nudge` comes too."""

    def nudge(self) -> None:
        """Have `step` return."""
        self._mailbox.nudge()

    def waiting_s(self) -> float:
        """Seconds without an event while jobs are open."""
        return self._mailbox.silent_s()

    def busy(self) -> bool:
        """Always: `step` waits for events, for commands, and for vLLM's end."""
        return True

    def step(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """What came meanwhile; waits for something."""
        taken = self._mailbox.take()
        for id, events in taken:
            running = self._jobs.get(id)
            if running is None:
                continue
            running.spoke = True
            if isinstance(events[-1], Usage | Failure):
                del self._jobs[id]
                self._job_s += 0.2 * (time.monotonic() - running.began - self._job_s)
                self._journal.job("finish" if isinstance(events[-1], Usage) else "fail", id)
        self._mailbox.expect(bool(self._jobs))
        return taken

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        open_choices = sum(running.choices for running in self._jobs.values())
        return {
            "context": self.context_size,
            "slots": self._slots,
            "version": f"vllm {self._version}",
            "capabilities": sorted(self._capabilities()),
            "adapters": sorted(self._adapters),
            "prompt_tail": "" if self._options.embedding else self._prompts.tail,
            "running": min(open_choices, self._slots),
            "queued": max(0, open_choices - self._slots),
            "asleep": self._sleeping.asleep,
            **library.figures(self._vllm),
        }

    def close(self) -> None:
        """End vLLM and its processes."""
        self._vllm.shutdown(timeout=SHUTDOWN_S)
        self._loop.stop(SHUTDOWN_S)
        self._journal.close()

    def _capabilities(self) -> Capabilities:
        if self._options.embedding:
            return frozenset({"embeddings", "token_input", "dimensions"})
        chat = {"chat"} if self._prompts.chats else set()
        tools = {"tools", "tool_choice", "parallel_tool_calls"} if self._parsers.reads_tools else set()
        return CAPABILITIES | chat | tools

    # taking a job, on the engine thread

    def _work(self, job: Job, id: str) -> tuple[Any, int]:
        """The coroutine that runs a job, and its number of choices."""
        if isinstance(job, EmbeddingRequest) is not self._options.embedding:
            raise BadRequest("This model does not do that kind of work.", param="model")
        choices = len(job.inputs) if isinstance(job, EmbeddingRequest) else job.choices
        if choices > self._queue + self._slots:
            raise BadRequest(f"At most {self._queue + self._slots} choices or inputs fit this model's queue.", param="n")
        if sum(running.choices for running in self._jobs.values()) + choices > self._queue + self._slots:
            raise Overloaded("The model's queue is full.", retry_after_ms=max(1000, min(30_000, int(1000 * self._job_s))))
        if isinstance(job, EmbeddingRequest):
            prompts = [self._prompts.plain(one, "input") for one in job.inputs]
            return self._guarded(id, self._embed(job, id, prompts)), choices
        return self._generation(job, id), choices

    def _generation(self, job: GenerationRequest, id: str) -> Any:
        if len(job.sampling.stop) > MAX_STOPS:
            raise BadRequest(f"At most {MAX_STOPS} stop strings are taken.", param="stop")
        if job.suffix:
            raise UnsupportedParameter("This model's engine does not fill in the middle.", param="suffix")
        conversation = self._parsers.of(job)
        prompts = self._prompts.of(job)
        params = [
            library.sampling(
                sampling_arguments(job, room=self.context_size - len(prompt), defaults=self._defaults),
                constraint(job.output),
                conversation,
            )
            for prompt in prompts
        ]
        told = JobEvents(job, self._spelling.of, conversation.reader if conversation is not None else None)
        return self._guarded(id, self._generate(job, id, list(zip(prompts, params, strict=True)), told, conversation))

    # running a job, on the loop

    async def _guarded(self, id: str, work: Any) -> None:
        """Run a job so that what goes wrong with it is its own."""
        try:
            async with self._sleeping.awake():
                await work
        except GatewayError as error:
            self._mailbox.put(id, [Failure("rejected", error.message, code=error.code, param=error.param)])
        except Unfinished as error:
            self._mailbox.put(id, [_unavailable(error)])
        except Exception as error:
            if library.is_dead(error):
                self._mailbox.fail(error)
            elif library.is_refusal(error):
                self._mailbox.put(id, [Failure("rejected", public(str(error)) or "vLLM refuses this request.")])
            else:
                self._mailbox.put(id, [_unavailable(error)])
        finally:
            work.close()

    async def _generate(
        self, job: GenerationRequest, id: str, prompts: list[tuple[list[int], Any]], told: JobEvents, read: Conversation | None
    ) -> None:
        async def one(index: int, prompt: list[int], params: Any) -> None:
            more = read.reasoning(prompt) if read is not None else {}
            adapter = self._adapters.get(job.model)
            name = f"{id}-{index}"
            async for output in self._vllm.generate(
                library.prompt(prompt), params, request_id=name, lora_request=adapter, **more
            ):
                self._mailbox.put(id, told.feed(output, index))

        if len(prompts) == 1:
            await one(0, *prompts[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                for index, (prompt, params) in enumerate(prompts):
                    group.create_task(one(index, prompt, params))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _embed(self, job: EmbeddingRequest, id: str, prompts: list[list[int]]) -> None:
        self._mailbox.put(id, await library.embedded(self._vllm, job, id, prompts, self._adapters.get(job.model)))

    async def _watch(self) -> None:
        """vLLM's processes may end while nothing is asked of it; and it may be sent to sleep."""
        while True:
            await asyncio.sleep(HEALTH_S)
            if self._vllm.errored:
                self._mailbox.fail(self._vllm.dead_error)
                return
            await self._sleeping.perhaps()

    def _broke(self, error: BaseException) -> None:
        if not LoopThread.ended(error):
            self._mailbox.fail(error)

    def _phase(self, id: str) -> str:
        """`queued`, `prefill` or `decode`, as far as it can be told from here: vLLM keeps its plan to itself."""
        before = 0
        for other, running in self._jobs.items():
            if other == id:
                return "decode" if running.spoke else "prefill" if before < self._slots else "queued"
            before += running.choices
        return ""


def _unavailable(error: Exception) -> Failure:
    detail = f"{type(error).__name__}: {error}"
    return Failure("unavailable", "The model's engine failed on this request.", detail=detail)
