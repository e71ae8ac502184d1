"""`{"name": ..., "parameters": {...}}`, bare or behind `<|python_tag|>`, and `<function=name>{...}</function>`: Llama 3.

Source: Meta's llama-models prompt formats for Llama 3.1 and 3.2; several calls are separated by `;`.
"""

from __future__ import annotations

from backends.parsing.toolcalls.objects import call_object
from backends.parsing.toolcalls.reading import Calls, Reader, Steps, arguments_of, expect, one_of, peek, space, word


class Llama3:
    """See the module. A bare object is a call only as the answer's beginning, and when it has nothing else in it."""

    markers = ("<|python_tag|>", "<function=")
    tokens = ("<|python_tag|>",)
    bare = "{"

    def read(self, reader: Reader, calls: Calls, marker: str) -> Steps[None]:
        """As `Syntax`."""
        if marker == "<function=":
            yield from _function(reader, calls)
            return
        while True:
            yield from space(reader)
            yield from call_object(reader, calls, sure=bool(marker))
            yield from space(reader)
            separated = yield from one_of(reader, ";", ",", "<|python_tag|>")
            yield from space(reader)
            if not separated or (yield from peek(reader)) != "{":
                reader.rewind()
                return


def _function(reader: Reader, calls: Calls) -> Steps[None]:
    name = yield from word(reader)
    yield from expect(reader, ">")
    yield from arguments_of(reader, calls, name)
    yield from space(reader)
    if not (yield from one_of(reader, "</function>", cut=True)):
        reader.rewind()


class BareObject:
    """A call as a bare JSON object or list, as a grammar forces it; nothing else is a call."""

    markers = ()
    tokens = ()
    bare = "{"

    def read(self, reader: Reader, calls: Calls, _: str) -> Steps[None]:
        """As `Syntax`."""
        yield from space(reader)
        yield from call_object(reader, calls, sure=False)
