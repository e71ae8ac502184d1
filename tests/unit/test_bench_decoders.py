"""The bench of the decoders measures every dialect, on answers that are whole."""

from __future__ import annotations

import pytest

from backends.core.events import Finish, Item, TextDelta, ToolCallDelta, Usage
from backends.registry import DIALECTS
from tests.bench.decoders import CHUNKS, WORD, Subject, answers, least_us, run, streams

SUBJECTS = [*streams(), *answers()]


def test_every_dialect_is_measured():
    assert {one.name.split("`")[1] for one in SUBJECTS} == set(DIALECTS)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.name)
def test_its_bytes_are_a_whole_answer(subject: Subject):
    _, events = run(subject, [subject.head, *subject.chunks, subject.tail])
    if "tei" in subject.name:
        assert sum(isinstance(event, Item) for event in events) == 1
        return
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    arguments = "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))
    if "tool call" in subject.name:
        assert arguments == '{"a": "' + "x" * 254 + '"}'
    else:
        assert text == WORD * CHUNKS
    assert sum(isinstance(event, Finish) for event in events) == 1
    if len(subject.chunks) > 1:
        assert [(one.input_tokens, one.output_tokens) for one in events if isinstance(one, Usage)] == [(11, CHUNKS)]
    assert least_us(subject, 16, rounds=1) > 0
