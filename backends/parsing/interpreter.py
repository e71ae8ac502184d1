"""What a text-only backend's text means: thoughts and tool calls as events of their own. Events in, events out; pure.

Logprobs are of the tokens that were generated; those of tokens that became thoughts or calls leave with the next text.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backends.core.events import Event, Finish, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta
from backends.parsing.callpieces import CallIds
from backends.parsing.think import Tags, ThinkSplitter
from backends.parsing.toolcalls.machine import Syntax, ToolCallParser


class Reading(msgspec.Struct, frozen=True):
    """How one answer is read. `syntax` None: no calls; `tags` None: no thoughts.

    `opened`: the prompt ended inside the thoughts. `names`: the functions that may be called. `first_id`: where our ids of
    calls begin, so that those of earlier turns are not used again. `parallel`: more than one call a choice is wanted.
    """

    syntax: Syntax | None = None
    tags: Tags | None = None
    opened: bool = False
    names: frozenset[str] | None = None
    first_id: int = 0
    parallel: bool = True


class Interpreter:
    """One answer, all its choices. Single use."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._ids = CallIds(reading.first_id)
        self._choices: dict[int, _Choice] = {}

    def feed(self, events: Sequence[Event]) -> list[Event]:
        """The next events, read."""
        out: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta):
                out += self._choice(event.choice).text(event)
            elif isinstance(event, Finish):
                out += self._choice(event.choice).finish(event)
            else:
                out.append(event)
        return out

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(index, self._reading, self._ids)
        return choice


class _Choice:
    def __init__(self, index: int, reading: Reading, ids: CallIds) -> None:
        self._index = index
        self._parallel = reading.parallel
        self._logprobs: list[TokenLogprob] = []
        self._thoughts: ThinkSplitter | None = None
        if reading.tags is not None:
            self._thoughts = ThinkSplitter(reading.tags, opened=reading.opened, choice=index)
        self._calls: ToolCallParser | None = None
        if reading.syntax is not None:
            self._calls = ToolCallParser(reading.syntax, ids, names=reading.names, choice=index)

    def text(self, delta: TextDelta) -> list[Event]:
        self._logprobs += delta.logprobs
        split = self._thoughts.feed(delta.text) if self._thoughts else [TextDelta(delta.text, self._index)]
        return self._with_logprobs(self._called(split))

    def finish(self, finish: Finish) -> list[Event]:
        out = self._called(self._thoughts.close() if self._thoughts else [])
        if self._calls is not None:
            out += self._wanted(self._calls.close())
        out = self._with_logprobs(out)
        if self._logprobs:
            out.append(TextDelta("", self._index, tuple(self._logprobs)))
        if finish.reason == "stop" and self._calls is not None and self._calls.count:
            finish = Finish("tool_calls", self._index)
        return [*out, finish]

    def _called(self, split: Sequence[TextDelta | ReasoningDelta]) -> list[Event]:
        """Calls out of what is no thought."""
        out: list[Event] = []
        for event in split:
            if isinstance(event, TextDelta) and self._calls is not None:
                out += self._wanted(self._calls.feed(event.text))
            else:
                out.append(event)
        return out

    def _wanted(self, events: Sequence[TextDelta | ToolCallDelta]) -> list[Event]:
        """All, or what belongs to the first call only."""
        return [event for event in events if self._parallel or not isinstance(event, ToolCallDelta) or event.call == 0]

    def _with_logprobs(self, events: Sequence[Event]) -> list[Event]:
        out: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta):
                if self._logprobs:
                    event = TextDelta(event.text, self._index, tuple(self._logprobs))  # noqa: PLW2901
                    self._logprobs.clear()
                if not event.text and not event.logprobs:
                    continue
            out.append(event)
        return out
