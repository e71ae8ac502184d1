"""Regular expressions (ECMA-262, as JSON Schema has them) read into a small tree, whose leaves are sets of code points. Pure.

What has no equivalent in a context-free grammar (looking around, references back, word boundaries, anchors inside) is
refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

#: Inclusive ranges of code points, ascending, apart from each other.
Ranges = tuple[tuple[int, int], ...]
LAST = 0x10FFFF
#: Repetitions that llama.cpp takes of one element (MAX_REPETITION_THRESHOLD of src/llama-grammar.cpp, 0.3.36).
MAX_TIMES = 2000
MAX_DEPTH = 32
_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}


class PatternError(ValueError):
    """The pattern is none, or uses what cannot be said; the message is for the client."""


class Chars(msgspec.Struct, frozen=True):
    """One character of these."""

    ranges: Ranges


class Run(msgspec.Struct, frozen=True):
    """One after another."""

    parts: tuple[Node, ...]


class Either(msgspec.Struct, frozen=True):
    """One of them."""

    parts: tuple[Node, ...]


class Times(msgspec.Struct, frozen=True):
    """`most` None: any number of times."""

    part: Node
    least: int
    most: int | None


class Anchor(msgspec.Struct, frozen=True):
    """`^` or `$`."""

    end: bool


Node = Chars | Run | Either | Times | Anchor
#: Any character of a text.
ANY = Chars(((0, LAST),))
_DOT = Chars(((0, 9), (0x0B, 0x0C), (0x0E, 0x2027), (0x202A, LAST)))


def united(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Sorted, without overlap."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def without(ranges: Ranges) -> Ranges:
    """All other code points."""
    found, begin = [], 0
    for low, high in ranges:
        if low > begin:
            found.append((begin, low - 1))
        begin = high + 1
    return tuple(found if begin > LAST else [*found, (begin, LAST)])


class _Reader:
    """A pattern to its tree."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> Node:
        node = self._either(0)
        if self._at < len(self._text):
            raise PatternError("a ')' that closes nothing")
        return node

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        found = self._peek()
        if not found:
            raise PatternError("it ends too early")
        self._at += 1
        return found

    def _either(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise PatternError(f"groups nested deeper than {MAX_DEPTH}")
        parts = [self._run(depth)]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._run(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _run(self, depth: int) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._times(self._one(depth)))
        return parts[0] if len(parts) == 1 else Run(tuple(parts))

    def _one(self, depth: int) -> Node:
        match self._take():
            case "(":
                return self._group(depth)
            case "[":
                return self._class()
            case ".":
                return _DOT
            case "^":
                return Anchor(False)
            case "$":
                return Anchor(True)
            case "\\":
                return self._escape()
            case ("*" | "+" | "?") as sign:
                raise PatternError(f"a '{sign}' that repeats nothing")
            case other:
                return Chars(((ord(other), ord(other)),))

    def _group(self, depth: int) -> Node:
        rest = self._text[self._at :]
        if rest.startswith("?:"):
            self._at += 2
        elif rest.startswith(("?=", "?!", "?<=", "?<!")):
            raise PatternError("looking ahead or behind")
        elif rest.startswith(("?<", "?P<")):
            end = self._text.find(">", self._at)
            if end < 0:
                raise PatternError("a group's name without its end")
            self._at = end + 1
        elif rest.startswith("?"):
            raise PatternError(f"a group that begins with '({rest[:2]}'")
        node = self._either(depth + 1)
        if self._peek() != ")":
            raise PatternError("a '(' that is never closed")
        self._at += 1
        return node

    def _times(self, part: Node) -> Node:
        sign = self._peek()
        if sign in ("*", "+", "?") and sign:
            self._at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        elif sign == "{" and (found := self._counts()) is not None:
            least, most = found
        else:
            return part
        if self._peek() == "?":  # which of several ways it matches is nothing to us
            self._at += 1
        if isinstance(part, Anchor):
            raise PatternError("an anchor that is repeated")
        if max(least, most or 0) > MAX_TIMES:
            raise PatternError(f"more than {MAX_TIMES} repetitions")
        return Times(part, least, most)

    def _counts(self) -> tuple[int, int | None] | None:
        """`{2}`, `{2,}`, `{2,5}`; None where the brace is a character."""
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : max(end, self._at + 1)].partition(",")
        if end < 0 or not low.isascii() or not low.isdigit() or (high and not (high.isascii() and high.isdigit())):
            return None
        if len(low) > 6 or len(high) > 6:
            raise PatternError(f"more than {MAX_TIMES} repetitions")
        self._at = end + 1
        least, most = int(low), (int(high) if high else None) if comma else int(low)
        if most is not None and most < least:
            raise PatternError("a repetition whose bounds are the wrong way round")
        return least, most

    def _escape(self, in_class: bool = False) -> Chars:
        sign = self._take()
        sets = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
        if sign.lower() in sets:
            found = sets[sign.lower()]
            return Chars(without(found) if sign.isupper() else found)
        if in_class and sign == "b":
            return Chars(((8, 8),))
        if sign in ("b", "B"):
            raise PatternError("a word boundary")
        if sign in ("k", "p", "P") or ("1" <= sign <= "9"):
            raise PatternError(f"'\\{sign}'")
        if sign in _CONTROLS:
            code = _CONTROLS[sign]
        elif sign == "x":
            code = self._hex(2)
        elif sign == "u":
            code = self._unicode()
        elif sign == "c":
            code = ord(self._take()) % 32
        else:
            code = ord(sign)
        return Chars(((code, code),))

    def _unicode(self) -> int:
        if self._peek() == "{":
            end = self._text.find("}", self._at)
            digits, self._at = self._text[self._at + 1 : end], end + 1
            if end < 0 or not 1 <= len(digits) <= 6 or any(one not in "0123456789abcdefABCDEF" for one in digits):
                raise PatternError("'\\u{' without a code point")
            return min(int(digits, 16), LAST)
        high = self._hex(4)
        if 0xD800 <= high < 0xDC00 and self._text[self._at : self._at + 2] == "\\u":
            self._at += 2
            return 0x10000 + ((high - 0xD800) << 10) + (self._hex(4) - 0xDC00) % 0x400
        return high

    def _hex(self, count: int) -> int:
        digits = self._text[self._at : self._at + count]
        if len(digits) != count or any(one not in "0123456789abcdefABCDEF" for one in digits):
            raise PatternError("an escape without its hexadecimal digits")
        self._at += count
        return int(digits, 16)

    def _class(self) -> Chars:
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            low = self._member()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    ranges += [*low, (0x2D, 0x2D), *high]
                elif high[0][0] < low[0][0]:
                    raise PatternError("a range of characters that is the wrong way round")
                else:
                    ranges.append((low[0][0], high[0][0]))
            else:
                ranges += low
        self._at += 1
        found = united(ranges)
        return Chars(without(found) if negated else found)

    def _member(self) -> Ranges:
        sign = self._take()
        return self._escape(in_class=True).ranges if sign == "\\" else ((ord(sign), ord(sign)),)


def read(pattern: str, *, whole: bool) -> Node:
    """A pattern as a tree without anchors: of texts in which it is found, or, with `whole`, which it is from end to end.

    Raises:
        PatternError: says what cannot be said.
    """
    node = _Reader(pattern).read()
    found = [_anchored(part, whole) for part in (node.parts if isinstance(node, Either) else (node,))]
    return found[0] if len(found) == 1 else Either(tuple(found))


def _anchored(node: Node, whole: bool) -> Node:
    parts = list(node.parts) if isinstance(node, Run) else [node]
    begins, ends = whole, whole
    while parts and isinstance(parts[0], Anchor) and not parts[0].end:
        begins = True
        del parts[0]
    while parts and isinstance(parts[-1], Anchor) and parts[-1].end:
        ends = True
        del parts[-1]
    for part in parts:
        _refuse_anchors(part)
    anything = Times(ANY, 0, None)
    return Run((*([] if begins else [anything]), *parts, *([] if ends else [anything])))


def _refuse_anchors(node: Node) -> None:
    """Raises PatternError where an anchor is left inside."""
    match node:
        case Anchor():
            raise PatternError("'^' or '$' inside of it")
        case Times(part=part):
            _refuse_anchors(part)
        case Run(parts=parts) | Either(parts=parts):
            for part in parts:
                _refuse_anchors(part)
