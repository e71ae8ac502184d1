"""DeepSeek's calls, between special tokens written with full-width bars and lower blocks.

Source: the chat templates of deepseek-ai/DeepSeek-V3 and R1 (`function<sep>name`, then a fenced JSON block) and of
DeepSeek-V3.1 (`name<sep>{...}`).
"""

from __future__ import annotations

from backends.parsing.toolcalls.reading import Calls, Reader, Steps, arguments_of, expect, one_of, peek, space, word

_ALL = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
_ALL_END = "<\uff5ctool\u2581calls\u2581end\uff5c>"
_ONE = "<\uff5ctool\u2581call\u2581begin\uff5c>"
_ONE_END = "<\uff5ctool\u2581call\u2581end\uff5c>"
_SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
_FENCES = ("```json", "```")


class DeepSeek:
    """See the module. Missing end markers are forgiven."""

    markers = (_ALL, _ONE)
    tokens = (_ALL, _ALL_END, _ONE, _ONE_END, _SEPARATOR)
    bare = ""

    def read(self, reader: Reader, calls: Calls, marker: str) -> Steps[None]:
        """As `Syntax`."""
        if marker == _ALL:
            yield from space(reader)
            yield from expect(reader, _ONE)
        while True:
            yield from _call(reader, calls)
            yield from space(reader)
            if (yield from one_of(reader, _FENCES[1], cut=True)):
                reader.mark = reader.position
                yield from space(reader)
            if (yield from one_of(reader, _ONE_END, cut=True)):
                reader.mark = reader.position
                yield from space(reader)
            found = yield from one_of(reader, _ONE, _ALL_END, cut=True)
            if found != _ONE:
                if not found:
                    reader.rewind()
                return


def _call(reader: Reader, calls: Calls) -> Steps[None]:
    yield from space(reader)
    name = yield from word(reader)
    yield from space(reader)
    yield from expect(reader, _SEPARATOR)
    yield from space(reader)
    if (yield from peek(reader)) != "{":
        name = yield from word(reader)
        yield from space(reader)
        yield from one_of(reader, *_FENCES)
    yield from arguments_of(reader, calls, name)
