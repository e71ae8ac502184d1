"""In how many ways a client's grammar can begin: llama.cpp walks them all, one by one, before it looks at a token. Pure.

A chain of rules that may each be empty doubles them with every rule: `r0 ::= r1 r1`, `r1 ::= r2 r2`, … `r18 ::= "a"?` keeps
llama.cpp (of llama-cpp-python 0.3.36) busy for longer than its host's watchdog bears, and with it everybody's answers.
What is no grammar is left to llama.cpp, which refuses it. Source of the notation: llama.cpp's grammars/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

#: Ways, and as many repetitions: a fifth of a second of walking.
MOST_WAYS = 10_000
_TOKEN = re.compile(
    r"""\#[^\n]*|(?P<rule>[\w-]+)\s*::=|(?P<name>[\w-]+)|(?P<text>"(?:[^"\\]|\\.)*+"?|\[(?:[^\]\\]|\\.)*+\]?|<[^>]*+>?|\.)"""
    r"""|\{\s*(?P<least>\d+)\s*(?P<comma>,)?\s*(?P<most>\d*)\s*\}|(?P<sign>[|()*+?])""",
    re.VERBOSE | re.DOTALL,
)


class _Ways(msgspec.Struct, frozen=True):
    """Of something: in how many ways it reaches a first character, and in how many it may be empty."""

    begins: int
    empty: int


_CHARACTERS = _Ways(1, 0)
_EMPTY_TEXT = _Ways(0, 1)
_UNKNOWN = _Ways(0, 0)


def ways(grammar: str) -> int:
    """The largest number of ways in which a part of the grammar can begin, or more than `MOST_WAYS` when it is more than that,
    or when rules lead to rules beyond reason.
    """
    try:
        return _Grammar(grammar).most()
    except RecursionError:
        return MOST_WAYS + 1


class _Grammar:
    def __init__(self, text: str) -> None:
        self._rules: dict[str, list[re.Match[str]]] = {}
        self._known: dict[str, _Ways] = {}
        self._most = 0
        tokens: list[re.Match[str]] = []
        for token in _TOKEN.finditer(text):
            if name := token["rule"]:
                tokens = self._rules[name] = []
            elif not token[0].startswith("#"):
                tokens.append(token)

    def most(self) -> int:
        """See `ways`."""
        for name in self._rules:
            self._of(name)
        return self._most

    def _of(self, name: str) -> _Ways:
        """Of a rule. One that is being counted adds nothing: whoever meets it again without a character between is refused."""
        found = self._known.get(name)
        if found is None:
            self._known[name] = _UNKNOWN
            found = self._known[name] = self._choice(iter(self._rules.get(name, ())))
        return found

    def _choice(self, tokens: Iterator[re.Match[str]]) -> _Ways:
        """Alternatives, to the closing parenthesis or the end."""
        begins = empty = 0
        parts: list[_Ways] = []
        for token in tokens:
            sign = token["sign"]
            if token["name"]:
                parts.append(self._of(token["name"]))
            elif token["text"]:
                parts.append(_EMPTY_TEXT if token["text"] == '""' else _CHARACTERS)
            elif sign == "(":
                parts.append(self._choice(tokens))
            elif sign == ")":
                break
            elif sign == "|":
                one = self._sequence(parts)
                begins, empty, parts = begins + one.begins, empty + one.empty, []
            elif parts:
                parts[-1] = self._repeated(parts[-1], *_counts(token))
        one = self._sequence(parts)
        return self._noted(begins + one.begins, empty + one.empty)

    def _sequence(self, parts: list[_Ways]) -> _Ways:
        """One after the other."""
        rest = _EMPTY_TEXT
        for part in reversed(parts):
            rest = self._noted(part.begins + part.empty * rest.begins, part.empty * rest.empty)
        return rest

    def _repeated(self, part: _Ways, least: int, most: int | None) -> _Ways:
        """`least` times one after the other, then as often as one likes, or each of the further ones or not."""
        begins, empty = part.begins, part.empty
        if most is None:
            rest = _Ways(begins * (1 + empty), 1 + empty)
        elif (further := max(0, most - least)) and empty > 1:
            rest = _Ways(MOST_WAYS + 1 if further > 1 else begins, MOST_WAYS + 1 if further > 1 else 1 + empty)
        else:
            rest = _Ways(begins * (further if empty else min(1, further)), 1 + empty * further)
        if not empty and least:
            rest = _Ways(begins, 0)
        elif empty == 1:
            rest = _Ways(least * begins + rest.begins, rest.empty)
        else:
            for _ in range(min(least, MOST_WAYS.bit_length())):  # each at least doubles it
                rest = self._noted(begins + empty * rest.begins, empty * rest.empty)
        return self._noted(rest.begins, rest.empty)

    def _noted(self, begins: int, empty: int) -> _Ways:
        self._most = max(self._most, begins, empty)
        return _Ways(min(begins, MOST_WAYS + 1), min(empty, MOST_WAYS + 1))


def _counts(token: re.Match[str]) -> tuple[int, int | None]:
    """Of `*`, `+`, `?` and `{m}`, `{m,}`, `{m,n}`; None = without end."""
    if (sign := token["sign"]) is not None:
        return {"*": (0, None), "+": (1, None)}.get(sign, (0, 1))
    least = int(token["least"][:9])
    if not token["comma"]:
        return least, least
    return least, int(token["most"][:9]) if token["most"] else None
