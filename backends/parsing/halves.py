"""Halves of characters that came apart: servers whose strings are UTF-16 (JavaScript, Java, .NET) stream an emoji as two
lone `\\ud83c` escapes, in two events.

Strict JSON readers refuse such an escape. It is replaced by a private character that stands for the half, so that the
event can be read, and the halves are put together where they meet again in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from backends.core.events import Candidate, Event, Failure, Finish, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta

#: A `\\u` escape with an odd number of backslashes before it, low or high surrogates unpaired.
_ESCAPE = re.compile(
    rb"(?<!\\)((?:\\\\)*)"
    rb"(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u([dD][89a-fA-F][0-9a-fA-F]{2}))"
)
#: Private characters for U+D800 to U+DFFF: the last 2048 of all, U+10F800 to U+10FFFF.
_FIRST = 0x10F800
_HIGH, _LOW = "[\U0010f800-\U0010fbff]", "[\U0010fc00-\U0010ffff]"
_PAIR = re.compile(f"({_HIGH})({_LOW})")
_ANY = re.compile("[\U0010f800-\U0010ffff]")
_ENDS_HIGH = re.compile(f"{_HIGH}\\Z")
_IN_BYTES = re.compile(rb"\xf4\x8f[\xa0-\xbf][\x80-\xbf]")
_LOST = "\ufffd"


def mend_escapes(json: bytes) -> bytes:
    """JSON whose lone `\\uD800`-`\\uDFFF` escapes are replaced by characters that stand for halves."""

    def mended(hit: re.Match[bytes]) -> bytes:
        return hit[0] if hit[2] else hit[1] + chr(_FIRST + int(hit[3], 16) - 0xD800).encode()

    return _ESCAPE.sub(mended, json)


def holds_half(data: bytes) -> bool:
    """Whether there is a half in UTF-8 text."""
    return _IN_BYTES.search(data) is not None


def lost(data: bytes) -> bytes:
    """UTF-8 text with U+FFFD for each half: for texts that are told again when they are whole."""
    return _IN_BYTES.sub(_LOST.encode(), data)


class Halves:
    """Events in, the same out with the halves in their texts put together; a half that stays alone becomes U+FFFD."""

    def __init__(self) -> None:
        #: First halves that wait for their second, by what they are a part of.
        self._held: dict[tuple[type[Event], int, int], str] = {}

    def mend(self, events: Sequence[Event]) -> list[Event]:
        """The next events of an answer, in order."""
        out: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta):
                text = self._joined((TextDelta, event.choice, 0), event.text)
                if text or event.logprobs:
                    out.append(msgspec.structs.replace(event, text=text, logprobs=_scrubbed(event.logprobs)))
            elif isinstance(event, ReasoningDelta):
                text = self._joined((ReasoningDelta, event.choice, 0), event.text)
                if text or event.signature:
                    out.append(msgspec.structs.replace(event, text=text))
            elif isinstance(event, ToolCallDelta):
                arguments = self._joined((ToolCallDelta, event.choice, event.call), event.arguments)
                if arguments or event.name:
                    name = _ANY.sub(_LOST, event.name)
                    out.append(msgspec.structs.replace(event, arguments=arguments, name=name))
            else:
                if isinstance(event, Finish | Failure):
                    out += self._left(event)
                out.append(event)
        return out

    def _joined(self, key: tuple[type[Event], int, int], text: str) -> str:
        text = _PAIR.sub(_character, self._held.pop(key, "") + text)
        if _ENDS_HIGH.search(text):
            self._held[key], text = text[-1], text[:-1]
        return _ANY.sub(_LOST, text)

    def _left(self, event: Finish | Failure) -> list[Event]:
        """What waits in vain, in a choice that is over."""
        over = [key for key in self._held if isinstance(event, Failure) or key[1] == event.choice]
        out: list[Event] = []
        for key in over:
            del self._held[key]
            kind, choice, call = key
            if kind is ToolCallDelta:
                out.append(ToolCallDelta(call, arguments=_LOST, choice=choice))
            else:
                out.append(TextDelta(_LOST, choice) if kind is TextDelta else ReasoningDelta(_LOST, choice))
        return out


def _character(pair: re.Match[str]) -> str:
    high, low = ord(pair[1]) - _FIRST, ord(pair[2]) - _FIRST - 0x400
    return chr(0x10000 + (high << 10) + low)


def _scrubbed(tokens: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            _ANY.sub(_LOST, one.token),
            lost(one.bytes),
            one.logprob,
            tuple(Candidate(_ANY.sub(_LOST, other.token), lost(other.bytes), other.logprob) for other in one.top),
        )
        for one in tokens
    )
