"""Thoughts, calls and text of one answer, and what becomes of finish reasons and logprobs."""

from __future__ import annotations

from backends.core.events import EventGrammar, Finish, ReasoningDelta, Started, TextDelta, TokenLogprob, ToolCallDelta
from backends.core.fold import fold
from backends.core.usage import Usage
from backends.parsing.interpreter import Interpreter, Reading
from backends.parsing.think import THINK_TAGS
from backends.parsing.toolcalls.families import TOOL_SYNTAXES

TEXT = '<think>\nHm <tool_call>{"name":"f"}\n</think>\n\nI ask.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
READING = Reading(TOOL_SYNTAXES["hermes"], THINK_TAGS["qwen"], names=frozenset({"f"}), first_id=3)


def read(reading: Reading, events: list[object]) -> list[object]:
    interpreter = Interpreter(reading)
    grammar = EventGrammar()
    out = [one for event in events for one in grammar.feed(interpreter.feed([event]))]  # type: ignore[list-item]
    grammar.close()
    return list(out)


def test_each_choice_is_read_by_itself_and_ids_are_unique() -> None:
    events: list[object] = [Started("m")]
    for letter in TEXT:
        events += [TextDelta(letter, 0), TextDelta(letter, 1)]
    out = read(READING, [*events, Finish("stop", 0), Finish("length", 1), Usage(1, 2)])
    answer = fold(out)  # type: ignore[arg-type]
    ids = set()
    for index, reason in ((0, "tool_calls"), (1, "length")):
        choice = answer.choices[index]
        assert "".join(choice.reasoning) == 'Hm <tool_call>{"name":"f"}'
        assert "".join(choice.text) == "I ask."
        [call] = choice.tool_calls()
        assert (call.name, call.arguments) == ("f", '{"a": 1}')
        assert choice.finish == reason
        ids.add(call.id)
    assert ids == {"call_3", "call_4"}
    assert answer.usage == Usage(1, 2)


def test_a_wish_for_one_call_gives_one() -> None:
    text = '<tool_call>{"name":"f"}</tool_call><tool_call>{"name":"f"}</tool_call>'
    one = Reading(TOOL_SYNTAXES["hermes"], parallel=False)
    assert len([e for e in read(one, [TextDelta(text), Finish("stop")]) if isinstance(e, ToolCallDelta)]) == 1


def test_logprobs_are_kept() -> None:
    marks = [TokenLogprob(token, token.encode(), -0.5) for token in ("<think>a</think>", "b", "<tool", "_call>")]
    events = [TextDelta(mark.token, 0, (mark,)) for mark in marks]
    out = read(READING, [*events, Finish("stop")])
    assert [mark for event in out if isinstance(event, TextDelta) for mark in event.logprobs] == marks
    assert ReasoningDelta("a") in out
    assert "".join(event.text for event in out if isinstance(event, TextDelta)) == "b<tool_call>"


def test_what_a_backend_told_apart_itself_passes() -> None:
    events = [ReasoningDelta("r"), ToolCallDelta(0, "x", "f", "{}"), Finish("tool_calls")]
    assert read(READING, list(events)) == events
