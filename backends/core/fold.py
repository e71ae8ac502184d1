"""Unary is the fold of the stream: events in, one `Answer` out. There is no second path for `stream: false`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from backends.core.errors import BackendError
from backends.core.events import (
    Embedding,
    Event,
    Failure,
    Finish,
    FinishReason,
    Item,
    ReasoningDelta,
    RefusalDelta,
    Score,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from backends.core.request import ToolCall
from backends.core.usage import Usage


class Choice(msgspec.Struct):
    """One finished choice."""

    index: int
    text: list[str] = msgspec.field(default_factory=list)
    reasoning: list[str] = msgspec.field(default_factory=list)
    refusal: list[str] = msgspec.field(default_factory=list)
    calls: dict[int, ToolCallDelta] = msgspec.field(default_factory=dict)
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    finish: FinishReason | None = None

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Its tool calls in order, arguments joined."""
        return tuple(ToolCall(call.id, call.name, call.arguments) for _, call in sorted(self.calls.items()))


class Answer(msgspec.Struct):
    """A whole answer: choices by index, items in order, usage when it was told."""

    model: str = ""
    choices: dict[int, Choice] = msgspec.field(default_factory=dict)
    items: list[Embedding | Score] = msgspec.field(default_factory=list)
    usage: Usage | None = None


class Fold:
    """Accumulates events. Feed all of them, then read `answer`."""

    def __init__(self) -> None:
        self.answer = Answer()

    def feed(self, events: Iterable[Event]) -> None:
        """Take the next events.

        Raises:
            BackendError: the stream failed.
        """
        answer = self.answer
        choices = answer.choices
        for event in events:
            kind = type(event)
            if kind is TextDelta:  # most of all events
                choice = choices.get(event.choice) or self._choice(event.choice)  # type: ignore[union-attr]
                choice.text.append(event.text)  # type: ignore[union-attr]
                if event.logprobs:  # type: ignore[union-attr]
                    choice.logprobs += event.logprobs  # type: ignore[union-attr]
            elif kind is Finish:
                choice = choices.get(event.choice) or self._choice(event.choice)  # type: ignore[union-attr]
                choice.finish = event.reason  # type: ignore[union-attr]
            elif kind is Usage:
                answer.usage = event  # type: ignore[assignment]
            elif kind is Started:
                answer.model = event.model  # type: ignore[union-attr]
            else:
                self._other(event)

    def _other(self, event: Event) -> None:
        kind = type(event)
        if kind is ReasoningDelta:
            self._choice(event.choice).reasoning.append(event.text)  # type: ignore[union-attr]
        elif kind is RefusalDelta:
            self._choice(event.choice).refusal.append(event.text)  # type: ignore[union-attr]
        elif kind is ToolCallDelta:
            self._call(event)  # type: ignore[arg-type]
        elif kind is Item:
            self.answer.items.append(event.value)  # type: ignore[union-attr]
        elif kind is Failure:
            raise BackendError.of(event)  # type: ignore[arg-type]

    def _call(self, event: ToolCallDelta) -> None:
        calls = self._choice(event.choice).calls
        before = calls.get(event.call)
        calls[event.call] = (
            event
            if before is None
            else ToolCallDelta(
                event.call,
                before.id or event.id,
                before.name or event.name,
                before.arguments + event.arguments,
                event.choice,
            )
        )

    def _choice(self, index: int) -> Choice:
        choice = self.answer.choices.get(index)
        if choice is None:
            choice = self.answer.choices[index] = Choice(index)
        return choice


def fold(events: Iterable[Event]) -> Answer:
    """The answer that a complete stream of events stands for.

    Raises:
        BackendError: the stream failed.
    """
    folding = Fold()
    folding.feed(events)
    return folding.answer
