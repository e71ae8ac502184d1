"""Whether a text is the JSON that was asked for: found in what a model wrote around it, and held against its schema.

The schema is the client's and the text is the model's, so the check is bounded: the schema's size is, what is looked at is
counted, references are never fetched, and keywords with regular expressions, whose time nothing bounds, are refused
beforehand. Source: JSON Schema 2020-12 (and what `$schema` says), by the package jsonschema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from backends.core.request import Output

#: Keywords whose check takes a time that nothing bounds.
UNCHECKED = ("pattern", "patternProperties", "$dynamicRef", "$recursiveRef")
#: Keywords that are looked at for one answer: about a second.
_MAX_CHECKS = 50_000
#: Most keywords of a schema: checking that it is one takes half a millisecond each.
_MAX_KEYWORDS = 1000
#: What following a reference costs, in keywords.
_REFERENCE = 20
_MAX_MISTAKE = 400
_FENCED = re.compile(r"\A```[A-Za-z0-9_-]{0,16}[ \t]*\r?\n(.*?)\r?\n?```\Z", re.DOTALL)
_NOWHERE: Registry[Any] = Registry()


class Mistake(ValueError):
    """The text is not what was asked for; the message may be shown to the model."""


def unwrapped(text: str) -> str:
    """The text without white space around it and without a Markdown fence."""
    text = text.strip()
    fenced = _FENCED.match(text)
    return fenced[1].strip() if fenced else text


class Form:
    """One asked form of an answer."""

    def __init__(self, output: Output) -> None:
        """Prepare to check answers of a form.

        Raises:
            ValueError: the schema is none, or has a keyword that is not checked here.
        """
        self.schema = output.schema if output.kind == "json_schema" else msgspec.Raw(b'{"type":"object"}')
        value = json.loads(bytes(self.schema) or b"{}")
        words = list(_keywords(value))
        if len(words) > _MAX_KEYWORDS:
            raise ValueError(f"it has more than {_MAX_KEYWORDS} keywords")
        if unknown := next((word for word in words if word in UNCHECKED), ""):
            raise ValueError(f"{unknown!r} cannot be checked")
        kind = validator_for(value, default=Draft202012Validator)
        try:
            kind.check_schema(value)
        except (SchemaError, RecursionError):
            raise ValueError("it is no JSON schema") from None
        self._kind = kind
        self._value = value

    def check(self, text: str) -> None:
        """Hold a text against the form.

        Raises:
            Mistake: it does not fit; says where.
        """
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Mistake(f"It is no JSON: {str(error)[:_MAX_MISTAKE]}") from None
        left = _MAX_CHECKS

        def counted(word: str, run: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
            cost = _REFERENCE if word == "$ref" else 1

            def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
                nonlocal left
                left -= cost
                if left < 0:
                    raise Mistake("It is too intricate to be checked.")
                yield from run(validator, value, instance, schema) or ()

            return check

        words = {word: counted(word, run) for word, run in self._kind.VALIDATORS.items()}
        validator = extend(self._kind, words)(self._value, registry=_NOWHERE)
        try:
            found = next(validator.iter_errors(value), None)
        except (Unresolvable, RecursionError):
            raise Mistake("Its schema has a reference that leads nowhere.") from None
        if found is not None:
            raise Mistake(f"At {found.json_path}: {found.message}"[:_MAX_MISTAKE])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _keywords(value: Any) -> Iterator[str]:
    """Every key, names of properties too: better to refuse one that is no keyword than to check one that is."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key != "properties" or not isinstance(one, dict):
                yield key
                yield from _keywords(one)
            else:
                for inner in one.values():
                    yield from _keywords(inner)
    elif isinstance(value, list):
        for one in value:
            yield from _keywords(one)
