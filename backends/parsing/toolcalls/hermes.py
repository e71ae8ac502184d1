"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes 2 and later, Qwen 2.5 and 3.

Source: the chat templates of NousResearch/Hermes-3-Llama-3.1-8B and Qwen/Qwen3-8B (tokenizer_config.json).
"""

from __future__ import annotations

from backends.parsing.toolcalls.objects import call_object
from backends.parsing.toolcalls.reading import Calls, Reader, Steps, one_of, peek, space


class Hermes:
    """See the module. A missing end marker is forgiven, and so are several objects between two markers."""

    markers = ("<tool_call>",)
    tokens = ("<tool_call>", "</tool_call>")
    bare = ""

    def read(self, reader: Reader, calls: Calls, _: str) -> Steps[None]:
        """As `Syntax`."""
        while True:
            yield from space(reader)
            yield from call_object(reader, calls)
            yield from space(reader)
            if (yield from one_of(reader, "</tool_call>", cut=True)):
                return
            if (yield from peek(reader)) != "{":
                reader.rewind()
                return
