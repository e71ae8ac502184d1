"""Tool calls out of a model's text: plain text passes, calls come out as pieces, what only looked like one stays text.

Text that may be the beginning of a marker is held back until that is decided. A call is passed on when it is complete and
sound; one with long arguments earlier, piece by piece: then it cannot be taken back, and if the model breaks it off, its
arguments are as incomplete as the model left them. White space alone before, between and after calls is no content.
"""

from __future__ import annotations

from typing import Protocol

from backends.core.events import TextDelta, ToolCallDelta
from backends.parsing.callpieces import CallIds
from backends.parsing.toolcalls.reading import MAX_HELD, Calls, Malformed, Reader, Steps

#: Characters of arguments that are kept until the call is complete; longer ones are streamed.
HOLD = 512
#: White space that is kept until it is known whether a call follows.
_MAX_BLANK = 4096


class Syntax(Protocol):
    """How one family of models writes calls. `markers` begin calls anywhere, a character of `bare` only an answer."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that begin a call."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """What may be single tokens of a vocabulary, which an engine would otherwise hide as control tokens."""

    @property
    def bare(self) -> str:
        """Characters that may begin a call as an answer's first."""

    def read(self, reader: Reader, calls: Calls, marker: str) -> Steps[None]:
        """Read from behind the marker ("" = bare, nothing is passed yet) to behind the last call.

        Raises:
            Malformed: no call from `reader.mark` on.
        """


class ToolCallParser:
    """One choice's text. Single use: `feed`, then `close`; any split gives the same calls and the same text."""

    def __init__(
        self, syntax: Syntax, ids: CallIds, *, names: frozenset[str] | None = None, choice: int = 0, hold: int = HOLD
    ) -> None:
        """Args: names: functions that may be called, None = any; hold: characters of arguments before they are streamed."""
        self._syntax = syntax
        self._markers = Markers(syntax.markers)
        self._choice = choice
        self._reader = Reader()
        self._calls = Calls(self._reader, ids, names, choice, hold)
        self._region: Steps[None] | None = None
        self._opener = 0
        self._fresh = self._blank = True
        self._out: list[TextDelta | ToolCallDelta] = []

    @property
    def count(self) -> int:
        """Calls that were found."""
        return self._calls.count

    def feed(self, text: str) -> list[TextDelta | ToolCallDelta]:
        """The next text; what is decided by it."""
        self._reader.text += text
        return self._run()

    def close(self) -> list[TextDelta | ToolCallDelta]:
        """The end of the text; the rest."""
        self._reader.ended = True
        return self._run()

    def _run(self) -> list[TextDelta | ToolCallDelta]:
        while self._step():
            pass
        out, self._out = self._out, []
        return out

    def _step(self) -> bool:
        """Go on as far as there is text. False: more is needed."""
        if self._region is None:
            return self._scan()
        try:
            next(self._region)
        except StopIteration:
            self._take_calls()
            if self._reader.position <= self._opener:  # it found nothing and went back
                self._give_back()
                return True
            self._leave()
            self._fresh, self._blank = False, True
            return True
        except Malformed:
            self._take_calls()
            self._give_back()
            return True
        self._calls.progress()
        self._take_calls()
        if self._calls.streaming:
            self._opener = 0
        if len(self._reader.text) > MAX_HELD:
            self._give_back()
            return True
        return False

    def _scan(self) -> bool:
        """Pass text on up to the next marker. True: a call may begin there."""
        reader = self._reader
        text = reader.text
        first = 0
        if self._blank:
            first = len(text) - len(text.lstrip())
            if first == len(text):
                return self._hold_blank()
        at, marker, held = self._markers.find(text, first)
        held = 0 if reader.ended else held
        undecided = self._blank and first == len(text) - held
        if self._fresh and text[first] in self._syntax.bare and at != first and not undecided:
            self._enter(first, "")
            return True
        if marker:
            if not self._blank or at > first:
                self._say(at)
                at = 0
            self._enter(at, marker)
            return True
        if undecided:
            return False
        self._say(len(text) - held)
        return False

    def _hold_blank(self) -> bool:
        size = len(self._reader.text)
        if self._reader.ended or size > _MAX_BLANK:
            if self._calls.count and self._reader.ended:
                self._reader.position = size
                self._reader.let_go()
            else:
                self._say(size)
        return False

    def _enter(self, at: int, marker: str) -> None:
        reader = self._reader
        reader.mark, reader.position = 0, at + len(marker)
        self._opener = at
        self._region = self._syntax.read(reader, self._calls, marker)

    def _leave(self) -> None:
        self._region = None
        self._opener = 0
        self._reader.let_go()

    def _give_back(self) -> None:
        """The text since the last call is no call: its first character is text, the rest is looked at again."""
        reader, opener = self._reader, self._opener
        if self._calls.broken():
            self._take_calls()
            self._leave()
            self._fresh, self._blank = False, True
            return
        if reader.mark > opener:
            opener = 0
            self._fresh, self._blank = False, True
        reader.position = reader.mark
        self._leave()
        if reader.text:
            self._say(min(opener + 1, len(reader.text)))

    def _take_calls(self) -> None:
        if self._calls.out:
            self._out += self._calls.out
            self._calls.out.clear()

    def _say(self, size: int) -> None:
        """Pass the first characters on as text."""
        reader = self._reader
        if not size:
            return
        reader.position = size
        text = reader.text[:size]
        reader.let_go()
        self._blank = self._fresh = False
        last = self._out[-1] if self._out else None
        if isinstance(last, TextDelta):
            self._out[-1] = TextDelta(last.text + text, self._choice)
        else:
            self._out.append(TextDelta(text, self._choice))


class Markers:
    """Finds the first of some texts, and how much of a text's end may be the beginning of one."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        self._markers = markers
        self._prefixes = {marker[:size] for marker in markers for size in range(1, len(marker))}
        self._longest = max(map(len, markers), default=1) - 1

    def find(self, text: str, start: int = 0) -> tuple[int, str, int]:
        """Where the first marker begins, which it is ("" = none), and the length of the undecided end."""
        found = [(at, -len(marker), marker) for marker in self._markers if (at := text.find(marker, start)) >= 0]
        if found:
            at, _, marker = min(found)
            return at, marker, 0
        for size in range(min(self._longest, len(text) - start), 0, -1):
            if text[-size:] in self._prefixes:
                return -1, "", size
        return -1, "", 0
