"""A JSON schema as a GBNF grammar of llama.cpp's: what it admits fits the schema. Pure.

It may admit less than the schema: objects have their properties in the stated order, an object with `properties` has no
others unless `additionalProperties` says so, arrays have every stated place, numbers with bounds have no exponents, and
of `oneOf` one fits but others may too. What cannot be kept to is refused by name, or, when the schema is a wish only
(`strict: false`), left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import partial
from typing import Any

from backends.engines.llamacpp.forms.numbers import PLACES, Bounds, NoNumber, NumberError, decimals, integers
from backends.engines.llamacpp.forms.objects import Objects, Path
from backends.engines.llamacpp.forms.patterns import MAX_TIMES, PatternError, read
from backends.engines.llamacpp.forms.primitives import ALL, FORMATS, HINTS, NEEDS, PRIMITIVES, RELEVANT, json_literal
from backends.engines.llamacpp.forms.schema import (
    COMBINED,
    TYPES,
    UNSAID,
    Document,
    Flat,
    NothingFits,
    SchemaError,
    asserted,
    exact,
    fitting,
    listed,
    placed,
    spelled,
)
from backends.engines.llamacpp.forms.spelling import gbnf, times, within

MAX_RULES = 4000
MAX_TEXT = 1 << 20
MAX_DEPTH = 64
#: A rule that no text fits.
_NEVER = r"[^\x01-\U0010FFFF]"


def grammar(schema: Any, *, lenient: bool = False) -> str:
    """The grammar of a schema, its first rule `root`. `lenient`: leave out what cannot be said.

    Raises:
        SchemaError: it is no schema, or not to be said; the message is for the client.
    """
    if schema is True or (isinstance(schema, dict) and not asserted(schema)):
        schema = {"type": "object"}
    writer = _Writer(Document(schema), lenient)
    root = writer.visit(schema, ())
    lines = [f"root ::= {root}", *(f"{name} ::= {rule}" for name, rule in writer.rules.items())]
    text = "\n".join(lines) + "\n"
    if len(text) > MAX_TEXT:
        raise SchemaError("it comes to a grammar that is too large")
    return text


def regular(pattern: str) -> str:
    """The grammar of whole answers that match a regular expression from end to end.

    Raises:
        SchemaError: it cannot be said.
    """
    try:
        return f"root ::= {gbnf(read(pattern, whole=True), in_json=False)}\n"
    except PatternError as error:
        raise SchemaError(f"the regular expression has {error}") from None


class _Writer:
    """The rules of one schema. A schema that comes up again is a rule that is there already: so recursion ends."""

    def __init__(self, document: Document, lenient: bool) -> None:
        self.rules: dict[str, str] = {}
        self.document = document
        self.lenient = lenient
        self._known: dict[str, str] = {}
        self._impossible: set[str] = set()
        self._depth = 0

    # names

    def rule(self, text: str | None = None) -> str:
        """A new rule's name; None: of nothing."""
        name = f"r{len(self.rules)}"
        if len(self.rules) > MAX_RULES:
            raise SchemaError(f"it comes to more than {MAX_RULES} rules")
        self.rules[name] = text or '""'
        return name

    def primitive(self, name: str) -> str:
        """The rule of any value of a type, or of a character."""
        if name not in self.rules:
            self.rules[name] = PRIMITIVES[name]
            for need in NEEDS.get(name, ()):
                self.primitive(need)
        return name

    @property
    def ws(self) -> str:
        """The rule of a blank that may stand between."""
        return self.primitive("ws")

    def cannot(self, what: str, path: Path) -> None:
        """Refuse, or leave out."""
        if not self.lenient:
            raise SchemaError(f"{what} (at {placed(path)}) cannot be said by a grammar")

    @contextmanager
    def _placed(self, path: Path) -> Iterator[None]:
        """Errors name the place."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise SchemaError(f"it is nested deeper than {MAX_DEPTH}")
        try:
            yield
        except NumberError as error:
            raise SchemaError(f"{error} (at {placed(path)})") from None
        finally:
            self._depth -= 1

    # schemas

    def visit(self, schema: Any, path: Path) -> str:
        """The name of a rule, or an expression that needs no parentheses."""
        schema = asserted(schema)
        if schema is True or schema == {}:
            return self.primitive("value")
        if schema is False:
            raise NothingFits(path)
        key = spelled(schema)
        if key in self._impossible:
            raise NothingFits(path)
        if key not in self._known:
            name = self._known[key] = self.rule(_NEVER)
            with self._placed(path):
                try:
                    self.rules[name] = self._whole(schema, path)
                except NothingFits:
                    self._impossible.add(key)
                    raise
        return self._known[key]

    def _whole(self, schema: Flat, path: Path) -> str:
        if schema.keys() == {"$ref"}:
            return self.visit(self._reached(schema["$ref"]), path)
        if len(schema) == 1 and (union := schema.get("anyOf") or schema.get("oneOf")):
            possible = [one for one in union if asserted(one) is not False]
            if possible:
                return " | ".join(dict.fromkeys(self.visit(one, (*path, str(n))) for n, one in enumerate(possible)))
        ways = self.document.ways(schema) if any(key in schema for key in COMBINED) else [schema]
        return _possible([partial(self.flat, way, path) for way in ways], path)

    def _reached(self, reference: str) -> Any:
        """Where a reference ends that leads to others."""
        seen = set()
        while True:
            if reference in seen:
                raise SchemaError(f"'$ref' {reference!r} leads back to itself")
            seen.add(reference)
            found = asserted(self.document.at(reference))
            if not isinstance(found, dict) or found.keys() != {"$ref"}:
                return found
            reference = found["$ref"]

    def flat(self, flat: Flat, path: Path) -> str:
        """What fits a schema without combinations."""
        for key, closed in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "additionalItems")):
            if isinstance(flat.get(key), bool):  # all is merged: what is left is what nothing names
                flat = {**({} if flat[key] else {closed: False}), **{name: one for name, one in flat.items() if name != key}}
        for key in UNSAID:
            if key in flat and flat[key] is not False and not (key == "uniqueItems" and flat.get("maxItems", 2) <= 1):
                self.cannot(f"{key!r}", path)
        if "enum" in flat or "const" in flat:
            if "pattern" in flat:
                self.cannot("'pattern' beside 'enum'", path)
            values = fitting(flat["enum"] if "enum" in flat else [flat["const"]], flat)
            if not values:
                raise NothingFits(path)
            return " | ".join(dict.fromkeys(map(json_literal, values)))
        if "type" in flat:
            types = [name for name in TYPES if name in listed(flat["type"])]
            types = [name for name in types if name != "integer" or "number" not in types]
        else:
            types = [kind for kind, keys in HINTS.items() if any(key in flat for key in keys)] or list(ALL)
        return _possible([partial(self._typed, name, flat, path) for name in types], path)

    def _typed(self, name: str, flat: Flat, path: Path) -> str:
        of: dict[str, Callable[[Flat, Path], str]] = {
            "object": Objects(self).text,
            "array": self._array,
            "string": self.string,
            "integer": self._integer,
            "number": self._number,
        }
        return of[name](flat, path) if name in of and any(key in flat for key in RELEVANT[name]) else self.primitive(name)

    # numbers

    def _bounds(self, flat: Flat) -> Bounds | None:
        low, high = _edge(flat, "minimum", "exclusiveMinimum", max), _edge(flat, "maximum", "exclusiveMaximum", min)
        if low[0] is None and high[0] is None:
            return None
        return Bounds(low[0], high[0], low[1], high[1])

    def _integer(self, flat: Flat, path: Path) -> str:
        bounds = self._bounds(flat)
        step = exact(flat.get("multipleOf", 1))
        if step > 0 and (1 / step) == int(1 / step):
            return integers(bounds) if bounds is not None else self.primitive("integer")
        if bounds is not None and step > 0 and step == int(step) and (few := _multiples(bounds, int(step))) is not None:
            if not few:
                raise NoNumber("bounds between which there is no multiple")
            return "(" + " | ".join(f'"{one}"' for one in few) + ")"
        zeros = len(str(int(step))) - 1
        if bounds is None and step == 10**zeros:
            return f'("0" | "-"? [1-9] [0-9]{{0,{max(1, 15 - zeros)}}} "{"0" * zeros}")'
        self.cannot("'multipleOf'", path)
        return integers(bounds) if bounds is not None else self.primitive("integer")

    def _number(self, flat: Flat, path: Path) -> str:
        bounds, places = self._bounds(flat), PLACES
        if "multipleOf" in flat:
            step = exact(flat["multipleOf"])
            if step > 0 and step == int(step):
                return self._integer(flat, path)
            digits = step.normalize().as_tuple()
            if (
                digits.digits == (1,)
                and digits.sign == 0
                and isinstance(digits.exponent, int)
                and -PLACES <= digits.exponent < 0
            ):
                places, bounds = -digits.exponent, bounds or Bounds()
            else:
                self.cannot("'multipleOf'", path)
        return decimals(bounds, places) if bounds is not None else self.primitive("number")

    # texts

    def string(self, flat: Flat, path: Path) -> str:
        """Texts that fit, with their quotes."""
        return rf'"\"" {self._inside(flat, path)} "\""'

    def _inside(self, flat: Flat, path: Path) -> str:
        """What stands between the quotes."""
        least, most = int(flat.get("minLength", 0)), flat.get("maxLength")
        most = None if most is None else int(most)
        if most is not None and most < least:
            raise NothingFits(path)
        pattern = flat.get("pattern")
        whole = False
        if pattern is None and flat.get("format") in FORMATS:
            pattern, whole = FORMATS[flat["format"]], True
        if pattern is not None:
            try:
                node = within(read(pattern, whole=whole), least, most)
                if node is not None:
                    return gbnf(node, in_json=True)
                self.cannot("'pattern' or 'format' beside 'minLength' or 'maxLength'", path)
            except PatternError as error:
                self.cannot(f"'pattern' with {error}", path)
        self.primitive("string")
        return self.repeated("character", least, most)

    def repeated(self, item: str, least: int, most: int | None) -> str:
        """So many of a rule, also more than llama.cpp repeats: a thousand, and then the others."""
        if max(least, most or 0) <= MAX_TIMES:
            return '""' if most == 0 else f"{item}{times(least, most)}"
        if max(least, most or 0) > 1000 * MAX_TIMES:
            raise SchemaError(f"a length of more than {1000 * MAX_TIMES} cannot be kept to")
        thousand, fewer = self.rule(f"{item}{{1000,1000}}"), self.rule(f"{item}{{0,999}}")
        sure, left = divmod(least, 1000)
        first = [thousand] * sure
        if most is None:
            return " ".join([*first, f"{item}{times(left, None)}"])
        rest = most - 1000 * sure
        if rest <= MAX_TIMES:
            return " ".join([*first, f"{item}{times(left, rest)}"])
        # either it ends within the next thousand, or the thousand is full and what follows is one of the same, shorter
        tail = self.rule(f"{item}{times(0, rest % 1000)}" if rest % 1000 else '""')
        for _ in range(rest // 1000 - 1):
            tail = self.rule(f"{fewer} | {thousand} {tail}")
        return " ".join([*first, f"({item}{{{left},999}} | {thousand} {tail})"])

    # lists

    def _array(self, flat: Flat, path: Path) -> str:
        items: Any = flat.get("items")
        prefix: list[Any] = list(flat.get("prefixItems", ()))
        if isinstance(items, list):  # before 2020-12
            items, prefix = flat.get("additionalItems"), items
        elif items is None and "additionalItems" in flat:
            items = flat["additionalItems"]
        least, most = int(flat.get("minItems", 0)), flat.get("maxItems")
        most = None if most is None else int(most)
        if most is not None:
            prefix = prefix[:most]
        ws = self.ws
        firsts = [f"{self.visit(one, (*path, str(n)))} {ws}" for n, one in enumerate(prefix)]
        closed = items is False or (items is None and prefix and least <= len(prefix))
        low = max(0, least - len(prefix))
        high = 0 if closed else None if most is None else most - len(prefix)
        if high is not None and high < low:
            raise NothingFits(path)
        item = ""
        if high != 0:
            try:
                item = f"{self.visit(True if items is None else items, (*path, 'items'))} {ws}"
            except NothingFits:
                if low:
                    raise
        if not item:
            return f'"[" {ws} {f""" "," {ws} """.join(firsts) or chr(34) * 2} "]"'
        more = self.rule(f'"," {ws} {item}')
        if firsts:
            return f'"[" {ws} {f""" "," {ws} """.join(firsts)} {self.repeated(more, low, high)} "]"'
        rest = self.repeated(more, max(0, low - 1), None if high is None else high - 1)
        return f'"[" {ws} {item} {rest} "]"' if low else f'"[" {ws} ({item} {rest})? "]"'


def _possible(ways: Sequence[Callable[[], str]], path: Path) -> str:
    """Those of several ways that something fits."""
    found = {}
    for way in ways:
        with suppress(NothingFits, NoNumber):
            found[way()] = True
    if not found:
        raise NothingFits(path)
    return " | ".join(found)


def _edge(flat: Flat, key: str, beyond: str, choose: Callable[..., Decimal]) -> tuple[Decimal | None, bool]:
    """A bound and whether it is excluded itself; before draft 6 `exclusive…` was a boolean beside it."""
    bound = exact(flat[key]) if key in flat else None
    other = flat.get(beyond)
    if isinstance(other, bool):
        return bound, other and bound is not None
    if other is None:
        return bound, False
    excluded = exact(other)
    if bound is None or choose(bound, excluded) == excluded:
        return excluded, True
    return bound, False


def _multiples(bounds: Bounds, step: int) -> list[int] | None:
    """The multiples between two bounds; None for one bound only or too many."""
    if bounds.low is None or bounds.high is None or (bounds.high - bounds.low) / step > 512:
        return None
    first = int((bounds.low / step).to_integral_value("ROUND_CEILING")) * step
    found = range(first, int(bounds.high.to_integral_value("ROUND_FLOOR")) + 1, step)
    return [one for one in found if not (bounds.above and one == bounds.low) and not (bounds.below and one == bounds.high)]
