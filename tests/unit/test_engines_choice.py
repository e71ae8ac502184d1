"""One choice on its way out, options in words, and logprobs of a row."""

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.core.events import Event, Finish, TextDelta, TokenLogprob
from backends.core.request import Sampling
from backends.engines.choice import ChoiceText
from backends.engines.options import EngineLoadFailed, read_options


def told(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def test_a_character_in_pieces_waits_for_its_end_and_its_logprobs_with_it() -> None:
    choice = ChoiceText(0, Sampling(), 10)
    first, second = "é".encode()[:1], "é".encode()[1:]
    one, two = TokenLogprob("", first, -1.0), TokenLogprob("", second, -2.0)
    assert choice.token(first, one) == []
    assert choice.token(second, two) == [TextDelta("é", 0, (one, two))]


def test_the_limit_ends_with_length_and_what_was_held_back() -> None:
    choice = ChoiceText(1, Sampling(max_tokens=2, stop=("stop",)), 10)
    assert choice.token(b"a") == [TextDelta("a", 1)]
    assert choice.token(b"st") == [TextDelta("st", 1), Finish("length", 1)]
    assert (choice.finished, choice.tokens) == (True, 2)


def test_the_context_is_a_limit_too() -> None:
    assert ChoiceText(0, Sampling(max_tokens=5), 1).token(b"a")[-1] == Finish("length")


def test_a_stop_string_over_tokens_is_left_out_and_its_logprobs_are_told() -> None:
    choice = ChoiceText(0, Sampling(stop=("END",)), 10)
    logprob = TokenLogprob("", b"", -1.0)
    events = [e for piece in (b"x E", b"N", b"D y") for e in choice.token(piece, logprob)]
    assert told(events) == "x "
    assert events[-1] == Finish("stop")
    assert sum(len(e.logprobs) for e in events if isinstance(e, TextDelta)) == 3


def test_the_model_ends_in_the_middle_of_a_character() -> None:
    choice = ChoiceText(0, Sampling(), 10)
    assert choice.token(b"\xf0\x9f") == []
    assert choice.end() == [TextDelta("\ufffd"), Finish("stop")]


@given(st.text(max_size=30), st.lists(st.integers(0, 90), max_size=10), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_any_split_into_tokens_gives_the_text_before_the_first_stop(text: str, cuts: list[int], stops: list[str]) -> None:
    data = text.encode()
    at = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    choice = ChoiceText(0, Sampling(stop=tuple(stops)), 1000)
    events: list[Event] = []
    for begin, end in itertools.pairwise(at):
        if not choice.finished:
            events += choice.token(data[begin:end])
    if not choice.finished:
        events += choice.end()
    assert sum(isinstance(e, Finish) for e in events) == 1
    assert isinstance(events[-1], Finish)
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        assert text.startswith(told(events))
        assert len(told(events)) < min(ends)
    else:
        assert told(events) == text


class Options(msgspec.Struct, frozen=True):
    threads: int = 1


def test_options_are_refused_in_words() -> None:
    assert read_options({"threads": 2}, Options).threads == 2
    with pytest.raises(EngineLoadFailed, match=r"unknown engine option 'thread'; known are: threads"):
        read_options({"thread": 2}, Options)
    with pytest.raises(EngineLoadFailed, match="threads"):
        read_options({"threads": "two"}, Options)


def test_logprobs_of_a_row() -> None:
    numpy = pytest.importorskip("numpy")
    from backends.engines.llamacpp.logprobs import token_logprob

    logits = numpy.log(numpy.array([0.1, 0.6, 0.3], dtype=numpy.float32)) + 7
    got = token_logprob(logits, 2, 2, lambda token: bytes([97 + token]))
    assert (got.token, got.bytes) == ("c", b"c")
    assert math.isclose(math.exp(got.logprob), 0.3, rel_tol=1e-5)
    assert [c.token for c in got.top] == ["b", "c"]
    assert math.isclose(math.exp(got.top[0].logprob), 0.6, rel_tol=1e-5)
    assert token_logprob(logits, 0, 0, lambda token: b"").top == ()
