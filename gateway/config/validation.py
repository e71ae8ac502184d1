"""Turns pydantic's errors into problems that say key, place and mend; no value of the file is ever repeated."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gateway.config.document import Document
from gateway.config.problems import KeyPath, Problem, dotted

#: Pydantic's words that a user of a configuration file would not understand, by its error type.
_WORDS = {
    "missing": "the key is missing",
    "extra_forbidden": "no such key",
    "model_type": "a mapping of keys is needed here",
    "model_attributes_type": "a mapping of keys is needed here",
    "dict_type": "a mapping of names is needed here",
    "tuple_type": "a list is needed here",
    "string_type": "a text is needed here",
    "bool_parsing": "true or false is needed here",
    "bool_type": "true or false is needed here",
}


def problems_of(error: ValidationError, model: type[BaseModel], document: Document) -> list[Problem]:
    """One problem for each of pydantic's errors, in the file's order."""
    found = [_problem(one, model, document) for one in error.errors(include_url=False, include_input=False)]
    return sorted(found, key=lambda one: one.line)


def words_of(error: ErrorDetails) -> str:
    """What is wrong, in words of a configuration file's user."""
    return _WORDS.get(error["type"]) or _sentence(error["msg"])


def suggestion(word: str, known: Sequence[str]) -> str:
    """` (did you mean 'workers'?)`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def fields_of(annotation: Any) -> Mapping[str, FieldInfo] | None:
    """The fields of the model that an annotation stands for, looking through `X | None`, tuples and dicts of names."""
    model = _model_in(annotation)
    return model.model_fields if model else None


def _problem(error: ErrorDetails, model: type[BaseModel], document: Document) -> Problem:
    path: KeyPath = tuple(part for part in error["loc"] if part != "[key]")
    words = words_of(error)
    parent, field = _locate(model, path)
    if error["type"] == "extra_forbidden":
        mend = suggestion(str(path[-1]), list(parent)) or _known(parent)
    elif field is not None and field.description:
        mend = f"{path[-1] if isinstance(path[-1], str) else path[-2]}: {field.description}"
    else:
        mend = "see docs/configuration.md"
    return Problem(document.file, dotted(path), words, mend, document.line(path))


def _sentence(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input ")
    return f"the value {text}" if message.startswith("Input ") else text


def _known(fields: Mapping[str, FieldInfo]) -> str:
    return f"the keys here are {', '.join(fields)}" if fields else "remove it"


def _locate(model: type[BaseModel], path: KeyPath) -> tuple[Mapping[str, FieldInfo], FieldInfo | None]:
    """The fields beside the last part of a path, and the last field met on the way to it."""
    fields: Mapping[str, FieldInfo] = model.model_fields
    here: FieldInfo | None = None
    parent = fields
    for part in path:
        parent = fields
        if isinstance(part, str) and part in fields:
            here = fields[part]
            inner = fields_of(here.annotation)
            fields = inner if inner is not None else {}
    return parent, here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in _inner(annotation):
        if found := _model_in(inner):
            return found
    return None


def _inner(annotation: Any) -> Iterator[Any]:
    yield from (one for one in get_args(annotation) if one is not type(None))
