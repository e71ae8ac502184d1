"""The small vocabulary that every backend is reduced to, and its grammar.

Grammar: `Started? delta* Finish(one per choice) Usage?`, or anything then `Failure`; nothing after. For jobs that
are not generations: `Started? Item* Usage?`. `EventGrammar` checks it in tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from backends.core.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
FailureKind = Literal["rejected", "refused", "overloaded", "unavailable", "protocol", "truncated", "timeout", "crashed"]


#: `bytes` under a name that a field called `bytes` does not hide when the annotations are evaluated.
Octets = bytes


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One alternative token: its text, its bytes (UTF-8, may be a part of a character) and natural-log probability."""

    token: str
    bytes: Octets
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """A generated token with the most likely alternatives, best first."""

    token: str
    bytes: Octets
    logprob: float
    top: tuple[Candidate, ...] = ()


class Started(msgspec.Struct, frozen=True, gc=False, tag="started"):
    """The backend accepted the job; `model` is the upstream's own name for what serves it."""

    model: str = ""


class TextDelta(msgspec.Struct, frozen=True, gc=False, tag="text_delta"):
    """More answer text. Never cut inside a UTF-8 character; may be empty when it carries only logprobs."""

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False, tag="reasoning_delta"):
    """More reasoning text, kept apart from the answer. `signature` is opaque and passed through."""

    text: str
    choice: int = 0
    signature: str = ""


class RefusalDelta(msgspec.Struct, frozen=True, gc=False, tag="refusal_delta"):
    """More text of a refusal (OpenAI `refusal`)."""

    text: str
    choice: int = 0


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False, tag="tool_call_delta"):
    """A piece of tool call number `call` of a choice. `id` and `name` are set on its first piece only.

    `arguments` are fragments of one JSON text, to be concatenated.
    """

    call: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    choice: int = 0


class Embedding(msgspec.Struct, frozen=True, gc=False, tag="embedding"):
    """One embedding: `vector` is float32 little-endian, packed."""

    index: int
    vector: bytes


class Score(msgspec.Struct, frozen=True, gc=False, tag="score"):
    """How well document number `index` answers the query: more is better. Finite; the range is the model's own."""

    index: int
    relevance: float


class Item(msgspec.Struct, frozen=True, gc=False, tag="item"):
    """One result of a job that is not a generation."""

    value: Embedding | Score


class Finish(msgspec.Struct, frozen=True, gc=False, tag="finish"):
    """A choice is complete. Exactly one per choice."""

    reason: FinishReason
    choice: int = 0


class Failure(msgspec.Struct, frozen=True, gc=False, tag="failure"):
    """The stream failed; nothing follows. `message` is fit for a client, `detail` for the log only."""

    kind: FailureKind
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_ms: int | None = None
    detail: str = ""


Event = Started | TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta | Item | Finish | Usage | Failure

#: What carries content of a choice: it may appear between `Started` and that choice's `Finish`.
DELTAS = (TextDelta, ReasoningDelta, RefusalDelta, ToolCallDelta)


class GrammarError(AssertionError):
    """A stream of events that breaks the grammar: a bug of its producer."""


class EventGrammar:
    """Checks a stream of events against the grammar. Single use; for tests and the recording of fixtures."""

    def __init__(self) -> None:
        self._begun = self._usage = self._failed = False
        self._finished: set[int] = set()
        self._seen: set[int] = set()

    def feed(self, events: Sequence[Event]) -> Sequence[Event]:
        """Return the events unchanged.

        Raises:
            GrammarError: the first event that is out of place, named.
        """
        for event in events:
            self._one(event)
        return events

    def close(self) -> None:
        """The stream has ended.

        Raises:
            GrammarError: a choice that spoke was never finished.
        """
        if not self._failed and (open_choices := self._seen - self._finished):
            raise GrammarError(f"choices without Finish: {sorted(open_choices)}")

    def _one(self, event: Event) -> None:
        if self._failed or self._usage:
            raise GrammarError(f"{event!r} after the end")
        match event:
            case Started():
                if self._begun:
                    raise GrammarError("Started is not first")
            case Failure():
                self._failed = True
            case Usage():
                self._usage = True
            case Item():
                pass
            case Finish(choice=choice):
                if choice in self._finished:
                    raise GrammarError(f"choice {choice} finished twice")
                self._finished.add(choice)
                self._seen.add(choice)
            case _:
                if event.choice in self._finished:
                    raise GrammarError(f"{event!r} after its choice finished")
                self._seen.add(event.choice)
        self._begun = True
