"""Reading an engine's options: every unknown name and every wrong type is refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class EngineLoadFailed(Exception):
    """The engine cannot start; the message is one line for the operator."""


def read_options(options: Mapping[str, object], kind: type[T]) -> T:
    """The options as a struct of this type.

    Raises:
        EngineLoadFailed: an unknown name (the known ones are listed), or a value of a wrong type or range.
    """
    known = sorted(kind.__struct_fields__)
    for name in options:
        if name not in known:
            raise EngineLoadFailed(f"unknown engine option {name!r}; known are: {', '.join(known)}")
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise EngineLoadFailed(f"engine options: {error}") from None
