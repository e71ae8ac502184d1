"""Any split of a model's text gives the same calls and the same text, and nothing that models may write raises."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.core.events import EventGrammar, Finish, TextDelta
from backends.core.fold import fold
from backends.parsing.callpieces import CallIds
from backends.parsing.toolcalls.families import TOOL_SYNTAXES
from backends.parsing.toolcalls.machine import HOLD, ToolCallParser
from backends.parsing.utf8 import Utf8Decoder

BAR, BLOCK = "\uff5c", "\u2581"
DEEPSEEK = """\
Hm <|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>f
```json
{"a": "é"}
```<|tool_call_end|>
<|tool_call_begin|>g<|tool_sep|>{}<|tool_call_end|><|tool_calls_end|> after"""
TEXTS = {
    "hermes": 'Well,\n<tool_call>\n{"name": "f", "arguments": {"a": "é😀 </tool_call>"}}\n</tool_call>\n'
    '<tool_call>{"name":"g"}</tool_call>.',
    "mistral": '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "]"]}}, {"name": "g", "arguments": {}}] or '
    '[TOOL_CALLS]f[ARGS]{"é": 1}',
    "llama3": '{"name": "f", "parameters": {"a": "é"}}; {"name": "g", "parameters": {}} and <|python_tag|>{"name": "f"}',
    "pythonic": "[f(a='é', b=[1, {'x': None}]), g()] after",
    "deepseek": DEEPSEEK.replace("|", BAR).replace("_", BLOCK),
}
PIECES = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "<|python_tag|>",
            "<function=",
            "f",
            "g",
            "x",
            '"',
            "'",
            "\\",
        ),
        *(
            "{",
            "}",
            "[",
            "]",
            "(",
            ")",
            ",",
            ":",
            ";",
            "=",
            " ",
            "\n",
            '{"name": "f", "arguments": {',
            '{"name": "g"}',
            "{}",
            "#",
        ),
        *(f"<{BAR}tool{BLOCK}call{BLOCK}begin{BAR}>", f"<{BAR}tool{BLOCK}sep{BAR}>", f"<{BAR}tool{BLOCK}call{BLOCK}end{BAR}>"),
        *("f(a=1)", "'''", "é", "```json", "null", "1e5"),
    ]
)


def answer(family: str, pieces: list[str], hold: int) -> tuple[str, list[tuple[str, str, str]]]:
    parser = ToolCallParser(TOOL_SYNTAXES[family], CallIds(), names=frozenset({"f", "g"}), hold=hold)
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.close()
    grammar = EventGrammar()
    grammar.feed([*events, Finish("stop")])
    grammar.close()
    assert not any(isinstance(event, TextDelta) and not event.text for event in events)
    choice = fold([*events, Finish("stop")]).choices[0]
    return "".join(choice.text), [(call.id, call.name, call.arguments) for call in choice.tool_calls()]


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("hold", [0, 6, HOLD])
def test_every_cut_of_the_bytes(family: str, hold: int) -> None:
    data = TEXTS[family].encode()
    whole = answer(family, [TEXTS[family]], hold)
    assert len(whole[1]) >= 2
    for cut in range(len(data) + 1):
        decoder = Utf8Decoder()
        pieces = [decoder.feed(data[:cut]), decoder.feed(data[cut:]), decoder.close()]
        assert answer(family, pieces, hold) == whole


@given(
    st.sampled_from(sorted(TEXTS)),
    st.lists(PIECES, max_size=30),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([0, 1, 5, HOLD]),
)
@settings(max_examples=400, deadline=None)
def test_any_text_at_any_split(family: str, parts: list[str], cuts: list[int], hold: int) -> None:
    text = "".join(parts)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    whole = answer(family, [text], hold)
    assert answer(family, pieces, hold) == whole
    assert answer(family, list(text), hold) == whole
    if not whole[1]:
        assert whole[0] == text
