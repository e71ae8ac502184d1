"""`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`, and newer `[TOOL_CALLS]name[ARGS]{...}`: Mistral's models.

Source: mistral-common's tokenizers v3 (a list, with nine-character ids), v11 (`name{...}`, `[CALL_ID]`) and v13 (`[ARGS]`).
"""

from __future__ import annotations

from backends.parsing.toolcalls.objects import array
from backends.parsing.toolcalls.reading import Calls, Reader, Steps, arguments_of, one_of, peek, space, word


class Mistral:
    """See the module. A list that begins the answer needs no marker: some servers hide special tokens."""

    markers = ("[TOOL_CALLS]",)
    tokens = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    bare = "["

    def read(self, reader: Reader, calls: Calls, marker: str) -> Steps[None]:
        """As `Syntax`."""
        yield from space(reader)
        if (yield from peek(reader)) == "[":
            yield from array(reader, calls, sure=bool(marker))
            return
        name = yield from word(reader)
        id = ""
        if (yield from one_of(reader, "[ARGS]", "[CALL_ID]")) == "[CALL_ID]":
            id = yield from word(reader)
            yield from one_of(reader, "[ARGS]")
        yield from arguments_of(reader, calls, name, id)
