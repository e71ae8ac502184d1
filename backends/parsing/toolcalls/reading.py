"""Reading tool-call syntaxes from text that is still arriving: generators that yield when they need more of it.

A syntax is a generator function over a `Reader`. It moves the position forward, raises `Malformed` where the text is no
call, and hands each call to `Calls`. So it reads like a parser of finished text and still takes any split.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

import msgspec

from backends.core.events import ToolCallDelta
from backends.parsing.callpieces import CallIds

T = TypeVar("T")
#: A parser that waits for text by yielding.
Steps = Generator[None, None, T]

#: Characters of an unfinished call that are kept at most; a longer one that cannot be streamed is text.
MAX_HELD = 64 * 1024
#: Deepest nesting of arguments.
MAX_DEPTH = 64
_SPACE = " \t\r\n"
_STRUCTURE = re.compile(r'["{}\[\]]')
_QUOTE = re.compile(r'["\\]')
_WORD = re.compile(r"[A-Za-z0-9_.-]*")
_MAX_WORD = 128


class Malformed(Exception):
    """What began like a call is none."""


class Reader:
    """The text that is not yet decided.

    `position` is where the syntax reads, `mark` where the part begins that is given back as text when it turns out to be
    malformed. Both count within `text`; `base` is how much was let go before it.
    """

    __slots__ = ("base", "ended", "mark", "position", "text")

    def __init__(self) -> None:
        self.text = ""
        self.base = self.position = self.mark = 0
        self.ended = False

    @property
    def at(self) -> int:
        """The position since the very beginning."""
        return self.base + self.position

    def since(self, at: int) -> str:
        """The text from an earlier `at` to here; what was let go of it is missing."""
        return self.text[max(0, at - self.base) : self.position]

    def rewind(self) -> None:
        """What was read since the last call is no part of the syntax."""
        self.position = self.mark

    def let_go(self) -> None:
        """Forget what lies before the position."""
        self.text = self.text[self.position :]
        self.base += self.position
        self.position = self.mark = 0


class Calls:
    """The calls of one choice: numbered, with ids that are unique within the answer. `count`: how many there were.

    A call whose arguments have more than `hold` characters is passed on before it is complete. That depends on its length
    alone, not on how the text arrived. `names`: the functions that may be called, None = any.
    """

    def __init__(self, reader: Reader, ids: CallIds, names: frozenset[str] | None, choice: int, hold: int) -> None:
        self._reader = reader
        self._ids = ids
        self._names = names
        self._choice = choice
        self._hold = hold
        self._pending: tuple[str, str, int] | None = None
        self._sent = -1
        self.count = 0
        self.out: list[ToolCallDelta] = []

    @property
    def streaming(self) -> bool:
        """Whether a call was begun that cannot be taken back."""
        return self._sent >= 0

    def begin(self, name: str, id: str = "") -> None:
        """An object of arguments follows here: it may be streamed from now on.

        Raises:
            Malformed: there is no such function.
        """
        self._check(name)
        self._pending = (name, id, self._reader.at)

    def progress(self, *, over: bool = False) -> None:
        """Pass on what was read of arguments that are too long to be held. `over`: the arguments end here."""
        reader = self._reader
        if self._pending is None:
            return
        name, id, begin = self._pending
        if self.streaming:
            if fragment := reader.since(self._sent):
                self.out.append(ToolCallDelta(self.count, arguments=fragment, choice=self._choice))
        elif reader.at - begin >= self._hold + over:
            self.out.append(ToolCallDelta(self.count, self._ids.claim(id), name, reader.since(begin), self._choice))
        else:
            return
        self._sent = reader.at
        if not over:
            reader.let_go()

    def arguments_end(self) -> None:
        """The object of arguments that `begin` announced ends here."""
        self.progress(over=True)
        self._pending = None

    def call(self, name: str, arguments: str, id: str = "") -> None:
        """A call is complete. `arguments` is the text of a JSON object.

        Raises:
            Malformed: there is no such function, the arguments are no object, or the call is too long to be held.
        """
        if not self.streaming:
            self._check(name)
            too_long = self._reader.position - self._reader.mark > MAX_HELD  # also when it arrived at once
            if too_long or not isinstance(decoded(arguments), dict):
                raise Malformed
            self.out.append(ToolCallDelta(self.count, self._ids.claim(id), name, arguments.strip(), self._choice))
        self._done()
        self._reader.mark = self._reader.position

    def broken(self) -> bool:
        """What is being read turned out malformed. True: it was passed on already, so it ends as a call, cut off."""
        self.progress()
        self._pending = None
        if self.streaming:
            self._done()
            return True
        return False

    def _done(self) -> None:
        self._pending, self._sent = None, -1
        self.count += 1

    def _check(self, name: str) -> None:
        if not name or (self._names is not None and name not in self._names):
            raise Malformed


def decoded(text: str) -> object:
    """A JSON text's value.

    Raises:
        Malformed: it is none.
    """
    try:
        value: object = msgspec.json.decode(text.encode())
    except (ValueError, RecursionError):  # a lone surrogate is a ValueError, too
        raise Malformed from None
    return value


def peek(reader: Reader) -> Steps[str]:
    """The next character, "" at the end."""
    while reader.position >= len(reader.text) and not reader.ended:
        yield
    return reader.text[reader.position : reader.position + 1]


def space(reader: Reader) -> Steps[None]:
    """Pass over white space."""
    while True:
        text, position = reader.text, reader.position
        while position < len(text) and text[position] in _SPACE:
            position += 1
        reader.position = position
        if position < len(text) or reader.ended:
            return
        yield


def one_of(reader: Reader, *options: str, cut: bool = False) -> Steps[str]:
    """The option that comes next, passed over; "" for none. Of two, the longer. `cut`: the end may cut it short."""
    longest = max(map(len, options))
    while True:
        rest = reader.text[reader.position : reader.position + longest]
        unfinished = [option for option in options if len(rest) < len(option) and option.startswith(rest)]
        if not unfinished or reader.ended:
            break
        yield
    for option in sorted(options, key=len, reverse=True):
        if rest.startswith(option):
            reader.position += len(option)
            return option
    if cut and rest and unfinished:
        reader.position += len(rest)
        return unfinished[0]
    return ""


def expect(reader: Reader, *options: str) -> Steps[str]:
    """One of these, passed over.

    Raises:
        Malformed: something else comes.
    """
    found = yield from one_of(reader, *options)
    if not found:
        raise Malformed
    return found


def word(reader: Reader) -> Steps[str]:
    """A function's name or an id, passed over.

    Raises:
        Malformed: there is none, or it is too long.
    """
    while True:
        match = _WORD.match(reader.text, reader.position)
        assert match is not None
        if match.end() < len(reader.text) or reader.ended or len(match[0]) > _MAX_WORD:
            break
        yield
    if not 0 < len(match[0]) <= _MAX_WORD:
        raise Malformed
    reader.position = match.end()
    return match[0]


def _quoted(reader: Reader) -> Steps[None]:
    """Pass over the rest of a string, its first quote was passed."""
    while True:
        match = _QUOTE.search(reader.text, reader.position)
        if match is None:
            reader.position = len(reader.text)
            if reader.ended:
                raise Malformed
            yield
        elif match[0] == '"':
            reader.position = match.end()
            return
        elif match.end() < len(reader.text):
            reader.position = match.end() + 1
        elif reader.ended:
            raise Malformed
        else:
            reader.position = match.start()
            yield


def value(reader: Reader) -> Steps[str]:
    """A JSON value, passed over; its text. Only its brackets and quotes are looked at.

    Raises:
        Malformed: it does not end, or nests too deeply.
    """
    begin = reader.at
    first = yield from peek(reader)
    if first == '"':
        reader.position += 1
        yield from _quoted(reader)
        return reader.since(begin)
    if first not in ("{", "["):
        yield from word(reader)
        return reader.since(begin)
    depth = 0
    while True:
        match = _STRUCTURE.search(reader.text, reader.position)
        if match is None:
            reader.position = len(reader.text)
            if reader.ended:
                raise Malformed
            yield
            continue
        if match[0] == '"':
            reader.position = match.end()
            yield from _quoted(reader)
            continue
        depth += 1 if match[0] in "{[" else -1
        if depth > MAX_DEPTH:
            raise Malformed
        reader.position = match.end()
        if depth == 0:
            return reader.since(begin)


def arguments_of(reader: Reader, calls: Calls, name: str, id: str = "") -> Steps[None]:
    """The rest of a call whose name is known: an object of arguments.

    Raises:
        Malformed: something else comes.
    """
    yield from space(reader)
    if (yield from peek(reader)) != "{":
        raise Malformed
    calls.begin(name, id)
    arguments = yield from value(reader)
    calls.arguments_end()
    calls.call(name, arguments, id)
