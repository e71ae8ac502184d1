"""The event grammar and the fold."""

import msgspec
import pytest

from backends.core.errors import BackendError, UpstreamOverloaded, UpstreamTruncated
from backends.core.events import (
    Candidate,
    Embedding,
    Event,
    EventGrammar,
    Failure,
    Finish,
    GrammarError,
    Item,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from backends.core.fold import fold
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Message, Output, Prompt, Text
from backends.core.usage import Usage


def test_a_whole_stream_is_accepted_and_folds() -> None:
    events = [Started("m"), TextDelta("a"), TextDelta("b", 1), TextDelta("c"), Finish("stop"), Finish("length", 1), Usage(1, 2)]
    grammar = EventGrammar()
    grammar.feed(events)
    grammar.close()
    answer = fold(events)
    assert "".join(answer.choices[0].text) == "ac"
    assert answer.choices[1].finish == "length"
    assert answer.usage == Usage(1, 2)


def test_tool_call_pieces_join_by_number() -> None:
    answer = fold(
        [ToolCallDelta(0, "call_1", "f", '{"a"'), ToolCallDelta(1, "call_2", "g", "{}"), ToolCallDelta(0, arguments=":1}")]
    )
    calls = answer.choices[0].tool_calls()
    assert [(c.id, c.name, c.arguments) for c in calls] == [("call_1", "f", '{"a":1}'), ("call_2", "g", "{}")]


@pytest.mark.parametrize(
    "events",
    [
        [TextDelta("a"), Started()],
        [Finish("stop"), Finish("stop")],
        [Finish("stop"), TextDelta("late")],
        [Usage(1, 1), TextDelta("late")],
        [Failure("truncated", "x"), TextDelta("late")],
    ],
)
def test_what_is_out_of_place_is_refused(events: list) -> None:
    with pytest.raises(GrammarError):
        EventGrammar().feed(events)


def test_an_open_choice_is_found_at_the_end() -> None:
    grammar = EventGrammar()
    grammar.feed([TextDelta("a")])
    with pytest.raises(GrammarError):
        grammar.close()


def test_a_failure_folds_to_its_error() -> None:
    with pytest.raises(UpstreamTruncated):
        fold([TextDelta("a"), Failure("truncated", "cut")])
    error = BackendError.of(Failure("overloaded", "busy", retry_after_ms=2000))
    assert isinstance(error, UpstreamOverloaded)
    assert (error.status, error.code, error.retry_after_ms) == (503, "upstream_overloaded", 2000)


def test_every_event_and_job_survives_msgpack_and_json() -> None:
    events: list[Event] = [
        Started("m"),
        TextDelta("a", 1, (TokenLogprob("a", b"a", -0.5, (Candidate("b", b"b", -1.0),)),)),
        ReasoningDelta("r"),
        RefusalDelta("no"),
        ToolCallDelta(0, "call_1", "f", "{}"),
        Item(Embedding(0, b"\x00\x00\x80\x3f")),
        Finish("stop"),
        Usage(1, 2),
        Failure("crashed", "gone"),
    ]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(events), type=list[Event]) == events
    assert msgspec.json.decode(msgspec.json.encode(events), type=list[Event]) == events
    jobs: list[Job] = [
        GenerationRequest("m", (Message("user", (Text("hi"),)),), output=Output(schema=msgspec.Raw(b"{}"))),
        EmbeddingRequest("m", (Prompt("x"), Prompt(tokens=(1, 2)))),
    ]
    assert msgspec.json.decode(msgspec.json.encode(jobs), type=list[Job]) == jobs
