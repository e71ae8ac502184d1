"""Objects of a JSON schema as GBNF: named properties in the stated order, then others where they are allowed. Pure."""

from __future__ import annotations

from typing import Any, Protocol

from backends.engines.llamacpp.forms.patterns import Chars, united, without
from backends.engines.llamacpp.forms.primitives import json_literal, literal
from backends.engines.llamacpp.forms.schema import Document, Flat, NothingFits, asserted
from backends.engines.llamacpp.forms.spelling import gbnf

#: Where in a schema something stands.
Path = tuple[str, ...]


class Writer(Protocol):
    """What writes the rules of the rest of the schema."""

    document: Document
    lenient: bool

    @property
    def ws(self) -> str:
        """The rule of a blank that may stand between."""

    def rule(self, text: str | None = None) -> str:
        """A new rule's name; None: of nothing."""

    def primitive(self, name: str) -> str:
        """The rule of any value of a type, or of a character."""

    def visit(self, schema: Any, path: Path) -> str:
        """The rule of a schema."""

    def flat(self, flat: Flat, path: Path) -> str:
        """What fits a schema without combinations."""

    def string(self, flat: Flat, path: Path) -> str:
        """Texts that fit, with their quotes."""

    def repeated(self, item: str, least: int, most: int | None) -> str:
        """So many of a rule."""

    def cannot(self, what: str, path: Path) -> None:
        """Refuse, or leave out."""


class Objects:
    """The part of a writer that writes objects."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def text(self, flat: Flat, path: Path) -> str:
        """Objects that fit a schema without combinations.

        Raises:
            SchemaError, PatternError: it cannot be said.
        """
        properties = dict(flat.get("properties", {}))
        required = set(flat.get("required", ()))
        others = self._others(flat, properties, path)
        for name in flat.get("required", ()):
            if name not in properties:
                if flat.get("additionalProperties") is False:
                    raise NothingFits(path, f"{name!r} is required and not allowed")
                properties[name] = flat.get("additionalProperties", True)
        values = self._values(properties, required, path)
        low, high = self._more(flat, values, required, others is not None, path)
        ws = self._writer.ws
        extra = None if others is None or high == 0 else (others, low, high)
        end = f'"," {ws} {extra[0]}' if extra else ""
        some = self._writer.rule(self._writer.repeated(self._writer.rule(end), low, high) if extra else None)
        if extra:
            rest = self._writer.repeated(self._writer.rule(end), max(0, low - 1), None if high is None else high - 1)
            none = self._writer.rule(f"{extra[0]} {rest}" if low else f"({extra[0]} {rest})?")
        else:
            none = self._writer.rule()
        for name in reversed(values):  # `some`: what follows where there was one before, `none`: where there was not
            pair = self._writer.rule(f'{json_literal(name)} ":" {ws} {values[name]} {ws}')
            sure = name in required
            none = self._writer.rule(f"{pair} {some}" if sure else f"{pair} {some} | {none}")
            some = self._writer.rule(f'"," {ws} {pair} {some}' if sure else f'("," {ws} {pair})? {some}')
        return f'"{{" {ws} {none} "}}"'

    def _values(self, properties: Flat, required: set[str], path: Path) -> dict[str, str]:
        """The rule of each property's value; without those that must be left out because nothing fits them."""
        found = {}
        for name, schema in properties.items():
            try:
                found[name] = self._writer.visit(schema, (*path, name))
            except NothingFits:
                if name in required:
                    raise
        return found

    def _others(self, flat: Flat, properties: Flat, path: Path) -> str | None:
        """A rule for a property that is not named; None where there are none."""
        value, key = flat.get("additionalProperties", not properties), None
        if found := flat.get("patternProperties"):
            if len(found) > 1 or properties or ("additionalProperties" in flat and value is not False):
                self._writer.cannot("'patternProperties' beside other properties", path)
            elif "propertyNames" in flat:
                self._writer.cannot("'patternProperties' beside 'propertyNames'", path)
            else:
                [(pattern, value)] = found.items()
                key = self._writer.string({"pattern": pattern}, path)
        elif "propertyNames" in flat and value is not False:
            ways = self._writer.document.ways({"allOf": [flat["propertyNames"], {"type": "string"}]})
            if not ways:
                return None
            key = self._writer.rule(" | ".join(self._writer.flat(way, path) for way in ways))
        if asserted(value) is False:
            return None
        name = key or (self._other_name(tuple(properties)) if properties else self._writer.primitive("string"))
        try:
            inner = self._writer.visit(value, (*path, "additionalProperties"))
        except NothingFits:
            return None
        return self._writer.rule(f'({name}) ":" {self._writer.ws} {inner} {self._writer.ws}')

    def _other_name(self, names: tuple[str, ...]) -> str:
        """A string that is none of these, spelled without escapes: it may leave each of them at any character."""
        self._writer.primitive("string")
        tree: dict[str, Any] = {}
        for name in names:
            at = tree
            for letter in name:
                at = at.setdefault(letter, {})
            at[""] = {}
        return rf'"\"" {self._leaving(tree, 0)} "\""'

    def _leaving(self, tree: dict[str, Any], depth: int) -> str:
        letters = [letter for letter in tree if letter]
        ways = [] if "" in tree else ['""']
        codes = united([(ord(letter), ord(letter)) for letter in letters])
        other = gbnf(Chars(without(codes)), in_json=True)
        ways.append(f"{other} character*")
        for letter in letters:
            if letter >= " " and letter not in '"\\' and not "\ud800" <= letter <= "\udfff":
                ways.append(f"{literal(letter)} {self._writer.rule(self._leaving(tree[letter], depth + 1))}")
        return "(" + " | ".join(ways) + ")"

    def _more(self, flat: Flat, properties: Flat, required: set[str], open_: bool, path: Path) -> tuple[int, int | None]:
        """How many properties beside the named ones there may be."""
        least, most = int(flat.get("minProperties", 0)), flat.get("maxProperties")
        sure, named = len(required), len(properties)
        if (not open_ and least > named) or (most is not None and most < sure):
            raise NothingFits(path)
        low = max(0, least - sure)
        if named > sure:
            if not open_ and low and not self._writer.lenient:
                self._writer.cannot("'minProperties' beside properties that may be left out", path)
            if most is not None and (most < named or open_):
                self._writer.cannot("'maxProperties' beside properties that may be left out", path)
                most = None
        if not open_:
            return 0, 0
        return low, None if most is None else int(most) - sure
