"""Answers in a stated JSON form from backends that cannot be constrained: asked for in words, checked, repaired once.

The whole answer is held until it has been checked, so a stream delivers it at once. An answer that does not fit is shown
to the model with what is wrong, once; what then still does not fit is an error. An answer that ran into its cap, or that
calls tools, is passed on unchecked: its finish reason says what it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import Backend, Batches
from backends.core.errors import UnsupportedParameter, UpstreamProtocol, UpstreamTruncated
from backends.core.events import Event, Failure, Finish, Started, TextDelta, ToolCallDelta
from backends.core.leaving import Leaving
from backends.core.request import GenerationRequest, Job, Message, Output, Text
from backends.core.usage import Usage, UsageSource
from backends.parsing.json_form import Form, Mistake, unwrapped
from backends.remote.fanout import FanOut
from backends.remote.held import HeldAnswer

_OBJECT, _SCHEMA = "response_format.json_object", "response_format.json_schema"
#: What the wrapper gives.
GIVES: Capabilities = frozenset({_OBJECT, _SCHEMA})
_WEAKEST: tuple[UsageSource, ...] = ("estimated", "counted", "reported")


class Repairing:
    """See the module.

    Args:
        inner: the backend; owned.
        can: what it can do itself: a form that it can be constrained to is left to it.
    """

    def __init__(self, inner: Backend, can: Capabilities) -> None:
        self._inner = inner
        self._can = can
        self._several = FanOut(self)

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """See `Backend.open`.

        Raises:
            UnsupportedParameter: a schema that cannot be checked here, or a form asked of a plain prompt.
        """
        if not isinstance(job, GenerationRequest) or job.output.kind not in ("json_object", "json_schema"):
            return self._inner.open(job, leaving)
        if f"response_format.{job.output.kind}" in self._can:
            return self._inner.open(job, leaving)
        if job.prompts:
            raise UnsupportedParameter("This model takes a form of the answer in conversations only.", param=_param(job))
        try:
            form = Form(job.output)
        except ValueError as error:
            raise UnsupportedParameter(f"The schema cannot be used with this model: {error}.", param=_param(job)) from None
        if job.n > 1:
            return self._several.open(job, leaving)
        plain = Output("json_object") if _OBJECT in self._can else Output()
        asked = msgspec.structs.replace(job, output=plain, messages=_asked(job.messages, form))
        return _Checked(self._inner, asked, form, leaving)

    async def aclose(self) -> None:
        """Close the inner backend."""
        await self._inner.aclose()


def _param(job: GenerationRequest) -> str:
    return job.output.asked_as or "response_format"


def _asked(messages: Sequence[Message], form: Form) -> tuple[Message, ...]:
    """The conversation, its system prompt saying what form the answer must have."""
    wish = "Answer with one JSON value and nothing else: no explanation, no Markdown. It must fit this JSON schema:\n"
    wish += bytes(form.schema).decode()
    first = messages[0]
    if first.role in ("system", "developer"):
        return (msgspec.structs.replace(first, parts=(*first.parts, Text("\n\n" + wish))), *messages[1:])
    return (Message("system", (Text(wish),)), *messages)


class _Checked(HeldAnswer):
    """One job, one or two calls."""

    def __init__(self, inner: Backend, job: GenerationRequest, form: Form, leaving: Leaving | None) -> None:
        super().__init__(inner, leaving)
        self._job = job
        self._form = form
        self._usages: list[Usage | None] = []

    async def _answer(self) -> Sequence[Event]:
        events = await self._told(self._job)
        if self.left:
            return events
        mistake = await asyncio.to_thread(self._mistake, events)
        if mistake is not None:
            again = await self._told(self._repairing(events, mistake))
            if self.left:
                return [*events, *again]
            if await asyncio.to_thread(self._mistake, again) is not None:
                raise UpstreamProtocol("The model did not answer in the form that was asked for.", code="form_not_met")
            events = again
        return [*self._fitting(events), *self._usage()]

    async def _told(self, job: GenerationRequest) -> list[Event]:
        """All events of a call but its usage."""
        events = await self._events(job)
        self._usages.append(next((event for event in events if isinstance(event, Usage)), None))
        if not self.left and not any(isinstance(event, Finish | Failure) for event in events):
            raise UpstreamTruncated("The model's answer was empty.")
        return [event for event in events if not isinstance(event, Usage)]

    def _mistake(self, events: Sequence[Event]) -> Mistake | None:
        """What is wrong with an answer that claims to be complete."""
        if any(isinstance(event, ToolCallDelta | Failure) for event in events):
            return None
        if any(isinstance(event, Finish) and event.reason != "stop" for event in events):
            return None
        try:
            self._form.check(unwrapped(_text(events)))
        except Mistake as mistake:
            return mistake
        return None

    def _repairing(self, events: Sequence[Event], mistake: Mistake) -> GenerationRequest:
        """The second call: the answer, and what is wrong with it."""
        wish = f"That answer does not fit the JSON schema. {mistake}\nAnswer again with the JSON value alone."
        turns = (Message("assistant", (Text(_text(events)),)), Message("user", (Text(wish),)))
        return msgspec.structs.replace(self._job, messages=(*self._job.messages, *turns))

    @staticmethod
    def _fitting(events: Sequence[Event]) -> list[Event]:
        """The events, the text without what was around the JSON."""
        text = _text(events)
        if unwrapped(text) == text or any(isinstance(event, Finish) and event.reason != "stop" for event in events):
            return list(events)
        begun = [event for event in events if isinstance(event, Started)]
        rest = [event for event in events if not isinstance(event, Started | TextDelta)]
        last = next((n for n, event in enumerate(rest) if isinstance(event, Finish)), len(rest))
        return [*begun, *rest[:last], TextDelta(unwrapped(text)), *rest[last:]]

    def _usage(self) -> list[Usage]:
        """The usage of both calls as one, each told apart in it; none where one call told none."""
        told = [usage for usage in self._usages if usage is not None]
        if len(told) < len(self._usages):
            return []
        if len(told) == 1:
            return told
        return [
            Usage(
                sum(one.input_tokens for one in told),
                sum(one.output_tokens for one in told),
                sum(one.cached_input_tokens for one in told),
                sum(one.reasoning_tokens for one in told),
                min((one.source for one in told), key=_WEAKEST.index),
                tuple(told),
            )
        ]


def _text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))
