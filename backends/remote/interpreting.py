"""Tools and thoughts for backends that only speak text: a `Backend` around one whose text is read as it comes.

The inner backend renders the tools into the prompt by the model's chat template. A call that is forced (`tool_choice`
required, or one function) is asked of it as an answer by JSON schema, where it can do that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import Backend, Batches
from backends.core.errors import UnsupportedParameter
from backends.core.events import Event
from backends.core.leaving import Leaving
from backends.core.request import GenerationRequest, Job
from backends.parsing.interpreter import Interpreter, Reading
from backends.parsing.think import Tags
from backends.parsing.toolcalls.llama3 import BareObject
from backends.parsing.toolcalls.machine import Syntax
from backends.remote.forcing import forced

_SCHEMA = "response_format.json_schema"


def gives(inner: Capabilities, syntax: Syntax | None) -> Capabilities:
    """What the wrapper adds to a backend that can do `inner`."""
    if syntax is None:
        return frozenset()
    return frozenset({"tools", "parallel_tool_calls"} | ({"tool_choice"} if _SCHEMA in inner else set()))


class Interpreting:
    """See the module.

    Args:
        inner: the backend of text; owned.
        syntax: how its model writes calls; None = tools are not read.
        tags: what is around its thoughts; None = they are not read.
        opened: whether the prompt ends inside the thoughts, asked once per job.
    """

    def __init__(self, inner: Backend, *, syntax: Syntax | None, tags: Tags | None, opened: Callable[[], bool]) -> None:
        self._inner = inner
        self._syntax = syntax
        self._tags = tags
        self._opened = opened

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """See `Backend.open`.

        Raises:
            UnsupportedParameter: tools together with an answer in a stated form.
        """
        if not isinstance(job, GenerationRequest) or job.prompts:
            return self._inner.open(job, leaving)
        inner, reading = self._read(job)
        return _Opened(self._inner.open(inner, leaving), Interpreter(reading))

    async def aclose(self) -> None:
        """Close the inner backend."""
        await self._inner.aclose()

    def _read(self, job: GenerationRequest) -> tuple[GenerationRequest, Reading]:
        """The job for the inner backend, and how its answer is read."""
        thoughts = Reading(tags=self._tags, opened=self._tags is not None and self._opened())
        mode = job.tool_choice.mode if job.tool_choice is not None else "auto"
        if self._syntax is None or not job.tools:
            return job, thoughts
        inner = msgspec.structs.replace(job, tool_choice=None, parallel_tool_calls=None)
        if mode == "none":
            return msgspec.structs.replace(inner, tools=()), thoughts
        if job.output.kind != "text":
            param = job.output.asked_as or "response_format"
            raise UnsupportedParameter("This model cannot combine tools with a form of the answer.", param=param)
        wanted = [tool for tool in job.tools if mode != "function" or (job.tool_choice and tool.name == job.tool_choice.name)]
        reading = msgspec.structs.replace(
            thoughts,
            syntax=self._syntax,
            names=frozenset(tool.name for tool in wanted),
            first_id=sum(len(message.tool_calls) for message in job.messages),
            parallel=job.parallel_tool_calls is not False,
        )
        if mode == "auto":
            return inner, reading
        inner = msgspec.structs.replace(inner, output=forced(wanted))
        return inner, msgspec.structs.replace(reading, syntax=BareObject(), tags=None)


class _Opened(AbstractAsyncContextManager[Batches]):
    """One job. Leaving has only the effects of leaving the inner one."""

    def __init__(self, opened: AbstractAsyncContextManager[Batches], interpreter: Interpreter) -> None:
        self._opened = opened
        self._interpreter = interpreter
        self._batches: Batches | None = None

    async def __aenter__(self) -> Batches:
        self._batches = await self._opened.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    def __aiter__(self) -> _Opened:
        return self

    async def __anext__(self) -> Sequence[Event]:
        assert self._batches is not None, "entered"
        while True:
            if events := self._interpreter.feed(await self._batches.__anext__()):
                return events
