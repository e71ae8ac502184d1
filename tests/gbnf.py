"""A reader of GBNF for tests: makes random texts that a grammar admits, and tells whether it admits one."""

from __future__ import annotations

import random
import re
from typing import Any

_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
#: Of a large set of characters, those that are drawn.
_DRAWN = 'aZ09_-. "\\/{}[],:é敏😀\n\t'
Node = tuple[Any, ...]


class Grammar:
    """`root` of a grammar."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self.rules: dict[str, Node] = {}
        self._space(newlines=True)
        while self._at < len(text):
            name = self._match(r"[A-Za-z0-9-]+")
            self._space()
            self._expect("::=")
            self._space(newlines=True)
            self.rules[name] = self._either(nested=False)
            self._space(newlines=True)

    def text(self, rng: random.Random, most: int = 4000) -> str:
        """A text that it admits."""
        out: list[str] = []
        self._write(self.rules["root"], rng, out, 0)
        assert len(out) < most * 50
        return "".join(out)

    def pattern(self) -> re.Pattern[str]:
        """As a regular expression, for grammars without recursion."""
        return re.compile(self._regex(self.rules["root"]), re.DOTALL)

    def _write(self, node: Node, rng: random.Random, out: list[str], depth: int) -> None:
        match node:
            case ("text", text):
                out.append(text)
            case ("set", negated, ranges):
                out.append(_draw(negated, ranges, rng))
            case ("rule", name):
                self._write(self.rules[name], rng, out, depth + 1)
            case ("run", parts):
                for part in parts:
                    self._write(part, rng, out, depth)
            case ("either", parts):
                few = parts if depth < 40 else sorted(parts, key=self._weight)[:1]
                self._write(rng.choice(few), rng, out, depth + (len(parts) > 1))
            case ("times", part, least, most):
                high = least + (0 if depth >= 40 else rng.choice((0, 1, 3)))
                for _ in range(rng.randint(least, high if most is None else min(most, high))):
                    self._write(part, rng, out, depth + 1)

    def _weight(self, node: Node, depth: int = 0) -> int:
        if depth > 12:
            return 1000
        match node:
            case ("rule", name):
                return 1 + self._weight(self.rules[name], depth + 1)
            case ("run", parts):
                return sum(self._weight(part, depth + 1) for part in parts)
            case ("either", parts):
                return min(self._weight(part, depth + 1) for part in parts)
            case ("times", part, least, _):
                return int(least) * self._weight(part, depth + 1)
        return 0

    def _regex(self, node: Node) -> str:
        match node:
            case ("text", text):
                return re.escape(text)
            case ("set", negated, ranges):
                inner = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
                return f"[{'^' if negated else ''}{inner}]"
            case ("rule", name):
                return f"(?:{self._regex(self.rules[name])})"
            case ("run", parts):
                return "".join(map(self._regex, parts))
            case ("either", parts):
                return f"(?:{'|'.join(map(self._regex, parts))})"
            case ("times", part, least, most):
                return f"(?:{self._regex(part)}){{{least},{'' if most is None else most}}}"
        raise AssertionError(node)

    # reading

    def _space(self, newlines: bool = False) -> None:
        self._match(r"(?:[ \t]|#[^\r\n]*)*" if not newlines else r"(?:[ \t\r\n]|#[^\r\n]*)*")

    def _match(self, pattern: str) -> str:
        found = re.compile(pattern).match(self._text, self._at)
        assert found is not None, self._text[self._at : self._at + 60]
        self._at = found.end()
        return found[0]

    def _expect(self, text: str) -> None:
        assert self._text.startswith(text, self._at), self._text[self._at : self._at + 60]
        self._at += len(text)

    def _either(self, nested: bool) -> Node:
        parts = [self._run(nested)]
        while self._text.startswith("|", self._at):
            self._at += 1
            self._space(newlines=True)
            parts.append(self._run(nested))
        return ("either", parts)

    def _run(self, nested: bool) -> Node:
        parts: list[Node] = []
        while (sign := self._text[self._at : self._at + 1]) and sign not in "|)\r\n":
            parts.append(self._repeated(self._one(sign), nested))
        assert parts, "GBNF has no empty alternative here"
        return ("run", parts)

    def _one(self, sign: str) -> Node:
        if sign == '"':
            return (
                "text",
                "".join(map(_character, re.findall(r"\\x..|\\u.{4}|\\U.{8}|\\.|[^\\]", self._quoted('"'), re.DOTALL))),
            )
        if sign == "[":
            inner = self._quoted("[")
            negated = inner.startswith("^")
            members = re.findall(r"\\x..|\\u.{4}|\\U.{8}|\\.|[^\\]", inner[negated:], re.DOTALL)
            return ("set", negated, _ranges(members))
        if sign == "(":
            self._at += 1
            self._space(newlines=True)
            node = self._either(nested=True)
            self._expect(")")
            return node
        return ("rule", self._match(r"[A-Za-z0-9-]+"))

    def _quoted(self, sign: str) -> str:
        whole = self._match(r'"(?:\\.|[^"\\])*"' if sign == '"' else r"\[(?:\\.|[^\]\\])*\]")
        return whole[1:-1]

    def _repeated(self, node: Node, nested: bool) -> Node:
        self._space(nested)
        while (sign := self._text[self._at : self._at + 1]) and sign in "*+?{":
            found = self._match(r"[*+?]|\{\d+(?:,\d*)?\}")
            if sign == "{":
                low, comma, high = found[1:-1].partition(",")
                bounds = int(low), (int(high) if high else None) if comma else int(low)
            else:
                bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
            node = ("times", node, *bounds)
            self._space(nested)
        return node


def _character(member: str) -> str:
    found = _ESCAPE.fullmatch(member)
    if found is None:
        return member
    code = found[1] or found[2] or found[3]
    return chr(int(code, 16)) if code else _LETTERS.get(found[4], found[4])


def _ranges(members: list[str]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(members):
        low = ord(_character(members[at]))
        if at + 2 < len(members) and members[at + 1] == "-":
            found.append((low, ord(_character(members[at + 2]))))
            at += 3
        else:
            found.append((low, low))
            at += 1
    return found


def _draw(negated: bool, ranges: list[tuple[int, int]], rng: random.Random) -> str:
    def within(code: int) -> bool:
        return any(low <= code <= high for low, high in ranges) is not negated

    liked = [letter for letter in _DRAWN if within(ord(letter))]
    if not negated and (not liked or rng.random() < 0.3):
        low, high = rng.choice(ranges)
        return chr(rng.randint(low, high))
    return rng.choice(liked)
