"""vLLM's AsyncLLM as an engine: its own process computes, its asyncio runs on a thread here, events come by a mailbox.

Jobs are tokenised and checked on the engine thread, so that a refusal is an answer to `submit`; then each is a task on
the loop's thread. vLLM batches and plans by itself; this file bounds what it is given, and ends tasks of jobs that left:
a cancelled `generate` aborts the request in vLLM.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from backends.core.capabilities import Capabilities
from backends.core.contracts import Engine
from backends.core.errors import BadRequest, GatewayError, UnsupportedParameter
from backends.core.events import Event, Failure, Started
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Output, RerankRequest
from backends.core.usage import Usage
from backends.engines.guardian import guard
from backends.engines.huggingface.pairs import Pair, Pairs
from backends.engines.huggingface.prompts import Prompts
from backends.engines.huggingface.spelling import Spelling
from backends.engines.huggingface.weights import check_weights
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.loop_thread import LoopThread
from backends.engines.mailed import MailedEngine, Taken
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.versions import check
from backends.engines.vllm import forms, library
from backends.engines.vllm.arguments import SUPPORTED, engine_arguments, problems
from backends.engines.vllm.outputs import JobEvents, Unfinished
from backends.engines.vllm.parsers import Conversation, Parsers
from backends.engines.vllm.sampling import CAPABILITIES, constraint, sampling_arguments
from backends.engines.vllm.settings import VllmOptions
from backends.engines.vllm.sleeping import Sleeping

T = TypeVar("T")
_TEXT = Output()
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
    """One job's task on the loop."""

    def __init__(self) -> None:
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


class VllmEngine(MailedEngine):
    """See the module; the `Engine` contract."""

    def __init__(self, launch: EngineLaunch, options: VllmOptions, version: str) -> None:
        """Raises EngineLoadFailed."""
        super().__init__(launch, Journal(options.step_log, options.log))
        self._options = options
        self._version = version
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        check_weights(launch.model)
        library.check_adapters(options.lora)
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")  # a fork would hold the guardian's pipe open
        self._guardian = guard()
        stated = engine_arguments(
            options.arguments,
            model=launch.model,
            slots=launch.slots,
            context=launch.context,
            pooling="embed" if options.embedding else "classify" if options.rerank else "",
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
            generates=not (options.embedding or options.rerank),
        )
        self._pairs = Pairs(
            tokenizer, self.context_size, template=options.rerank_template, separated=bool(config.use_sep_token)
        )
        self._spelling = Spelling(tokenizer, tokenizer.all_special_ids)
        reasoning = str(options.arguments.get("reasoning_parser") or "")
        self._parsers = Parsers(tokenizer, config, tools=options.tool_call_parser, reasoning=reasoning)
        self._passes_over = _form_library(options.arguments) in ("auto", "xgrammar")
        pools = options.embedding or options.rerank
        self._defaults: Mapping[str, object] = {} if pools else config.get_diff_sampling_param()
        self._sleeping = Sleeping(self._vllm, options.sleep_after_s, options.sleep_level)
        self._loop.post(lambda: self._loop.start(self._watch()))

    # the Engine contract

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`."""
        self._check_kind(job)
        if isinstance(job, GenerationRequest):
            return sum(map(len, self._prompts.of(job)))
        return sum(len(one.tokens) for one in self._inputs(job))

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        return {
            "context": self.context_size,
            **self._load(),
            "version": f"vllm {self._version}",
            "capabilities": sorted(self._capabilities()),
            "adapters": sorted(self._adapters),
            "prompt_tail": "" if self._options.embedding or self._options.rerank else self._prompts.tail,
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
        if self._options.rerank:
            return frozenset({"rerank"})
        chat = {"chat"} if self._prompts.chats else set()
        tools = {"tools", "tool_choice", "parallel_tool_calls"} if self._parsers.reads_tools else set()
        return CAPABILITIES | chat | tools

    # taking a job, on the engine thread

    def _take(self, job: Job, id: str) -> Taken:
        self._check_kind(job)
        # of inputs no more than the slots are in vLLM at once, so that a long list leaves room for others
        choices = job.choices if isinstance(job, GenerationRequest) else 1
        self._check_room(choices)
        if isinstance(job, GenerationRequest):
            work, made = self._generation(job, id)
        else:
            work, made = self._guarded(id, self._pool(job, id, self._inputs(job))), None
        running = _Running()
        begin, cancel = partial(self._loop.post, running.begin, self._loop, work), partial(self._loop.post, running.cancel)
        return Taken(choices, begin, cancel, made)

    def _check_kind(self, job: Job) -> None:
        options = self._options
        kind = EmbeddingRequest if options.embedding else RerankRequest if options.rerank else GenerationRequest
        if not isinstance(job, kind):
            raise BadRequest("This model does not do that kind of work.", param="model")

    def _inputs(self, job: EmbeddingRequest | RerankRequest) -> list[Pair]:
        if isinstance(job, RerankRequest):
            return self._pairs.of(job)
        return [Pair(self._prompts.plain(one, "input")) for one in job.inputs]

    def _generation(self, job: GenerationRequest, id: str) -> tuple[Any, Callable[[], Usage] | None]:
        """The coroutine, and what it has come to so far."""
        if len(job.sampling.stop) > MAX_STOPS:
            raise BadRequest(f"At most {MAX_STOPS} stop strings are taken.", param="stop")
        if job.suffix:
            raise UnsupportedParameter("This model's engine does not fill in the middle.", param="suffix")
        if self._passes_over:
            forms.check(job.output)
        conversation = self._parsers.of(job)
        prompts = self._prompts.of(job)
        params = [
            library.sampling(
                sampling_arguments(job, room=self.context_size - len(prompt), defaults=self._defaults),
                constraint(job.output),
                conversation,
                job.output,
            )
            for prompt in prompts
        ]
        told = JobEvents(job, self._spelling.of, conversation.reader if conversation is not None else None)
        work = self._generate(job, id, list(zip(prompts, params, strict=True)), told, conversation)
        return self._guarded(id, work, job.output), told.usage

    # running a job, on the loop

    async def _guarded(self, id: str, work: Any, output: Output = _TEXT) -> None:
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
                told = library.refused(error, output)
                self._mailbox.put(id, [Failure("rejected", told.message, param=told.param)])
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

        await _together([one(index, prompt, params) for index, (prompt, params) in enumerate(prompts)])

    async def _pool(self, job: EmbeddingRequest | RerankRequest, id: str, inputs: list[Pair]) -> None:
        adapter = self._adapters.get(job.model)
        room = asyncio.Semaphore(self._slots)

        async def one(index: int) -> Event:
            async with room:
                found = await library.pooled(self._vllm, job, f"{id}-{index}", index, inputs[index], adapter)
            self._mailbox.alive()  # a long list is told whole, and is no silence
            return found

        items = await _together([one(index) for index in range(len(inputs))])
        tokens = sum(len(pair.tokens) for pair in inputs)
        self._mailbox.put(id, [Started(job.model), *items, Usage(tokens, 0, source="counted")])

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


async def _together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in their order; the first error ends the others, and is raised."""
    if len(works) == 1:
        return [await works[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _form_library(arguments: Mapping[str, object]) -> str:
    """vLLM's argument that says who holds answers to forms."""
    config = arguments.get("structured_outputs_config")
    return str(config.get("backend", "auto")) if isinstance(config, Mapping) else "auto"


def _unavailable(error: Exception) -> Failure:
    detail = f"{type(error).__name__}: {error}"
    return Failure("unavailable", "The model's engine failed on this request.", detail=detail)
