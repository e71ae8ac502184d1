"""JSON forms from a backend that only speaks: checked, asked once more, and honest about what it could not get."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from backends.core.errors import UnsupportedParameter, UpstreamProtocol, UpstreamTruncated
from backends.core.events import Event, EventGrammar, Failure, Finish, Started, TextDelta, ToolCallDelta
from backends.core.request import GenerationRequest, Message, Output, Prompt, Text
from backends.core.usage import Usage
from backends.parsing.json_form import Form, Mistake, unwrapped
from backends.remote.repair import GIVES, Repairing

SCHEMA = b'{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
FORM = Output("json_schema", "x", msgspec.Raw(SCHEMA))
JOB = GenerationRequest("m", messages=(Message("user", (Text("q"),)),), output=FORM)


MANY = b'{"anyOf":[' + b",".join([b'{"const":1}'] * 2000) + b"]}"


class Scripted:
    """Answers its calls one after the other; counts how many are open."""

    def __init__(self, *answers: str | list[Event]) -> None:
        self.answers = list(answers)
        self.jobs: list[GenerationRequest] = []
        self.open_now = 0

    @asynccontextmanager
    async def open(self, job: Any, leaving: Any = None) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
        self.jobs.append(job)
        said = self.answers.pop(0)
        self.open_now += 1

        async def batches() -> AsyncIterator[Sequence[Event]]:
            if isinstance(said, list):
                yield said
                return
            yield [Started("up"), TextDelta(said[:2])]
            yield [TextDelta(said[2:]), Finish("stop"), Usage(10, len(said))]

        try:
            yield batches()
        finally:
            self.open_now -= 1

    async def aclose(self) -> None:
        pass


async def run(inner: Scripted, job: GenerationRequest = JOB, can: frozenset[str] = frozenset()) -> list[Event]:
    grammar = EventGrammar()
    async with Repairing(inner, can).open(job) as batches:
        events = [event async for batch in batches for event in grammar.feed(batch)]
    grammar.close()
    assert inner.open_now == 0
    return events


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_an_answer_that_fits_is_one_call() -> None:
    inner = Scripted('{"a": 1}')
    events = await run(inner)
    assert text(events) == '{"a": 1}'
    assert events[-1] == Usage(10, 8)
    (job,) = inner.jobs
    assert job.output == Output()
    assert job.messages[0].role == "system" and SCHEMA.decode() in job.messages[0].text


async def test_what_stands_around_the_value_is_left_out() -> None:
    assert text(await run(Scripted('```json\n{"a": 1}\n```'))) == '{"a": 1}'
    assert text(await run(Scripted('\n {"a": 1}\n'))) == '{"a": 1}'


async def test_one_that_does_not_fit_is_asked_once_more_and_both_are_paid() -> None:
    inner = Scripted('{"a": "x"}', '{"a": 2}')
    events = await run(inner)
    assert text(events) == '{"a": 2}'
    assert events[-1] == Usage(20, 18, calls=(Usage(10, 10), Usage(10, 8)))
    second = inner.jobs[1].messages
    assert second[-2] == Message("assistant", (Text('{"a": "x"}'),))
    assert "$.a" in second[-1].text


async def test_what_does_not_fit_twice_is_an_error() -> None:
    inner = Scripted("no", "no")
    with pytest.raises(UpstreamProtocol) as caught:
        await run(inner)
    assert caught.value.code == "form_not_met"
    assert inner.open_now == 0


async def test_what_is_cut_or_calls_a_tool_is_passed_on() -> None:
    cut: list[Event] = [Started(), TextDelta('```{"a"'), Finish("length"), Usage(1, 1)]
    assert await run(Scripted(cut)) == cut
    called: list[Event] = [Started(), ToolCallDelta(0, "c", "f", "{}"), Finish("tool_calls")]
    assert await run(Scripted(called)) == called
    failed: list[Event] = [Started(), TextDelta("x"), Failure("truncated", "cut")]
    assert await run(Scripted(failed)) == failed
    with pytest.raises(UpstreamTruncated):
        await run(Scripted([Started()]))


async def test_several_choices_are_asked_one_by_one() -> None:
    inner = Scripted('{"a": 1}', '{"a": 2}')
    events = await run(inner, msgspec.structs.replace(JOB, n=2))
    assert {event.choice for event in events if isinstance(event, Finish)} == {0, 1}
    assert [one.n for one in inner.jobs] == [1, 1]


async def test_what_the_backend_can_do_itself_is_left_to_it() -> None:
    inner = Scripted("free", "free", "free")
    await run(inner, can=GIVES)
    await run(inner, msgspec.structs.replace(JOB, output=Output()))
    assert [one.output for one in inner.jobs] == [FORM, Output()]
    half = Scripted('{"a": 1}')
    await run(half, can=frozenset({"response_format.json_object"}))
    assert half.jobs[0].output == Output("json_object")


async def test_what_cannot_be_checked_is_refused_by_name() -> None:
    for schema in (
        b'{"properties":{"a":{"pattern":"(a+)+$"}}}',
        b'{"type":"nonsense"}',
        b'{"patternProperties":{}}',
        b'{"$dynamicRef":"#"}',
    ):
        with pytest.raises(UnsupportedParameter) as caught:
            await run(Scripted(), msgspec.structs.replace(JOB, output=Output("json_schema", "x", msgspec.Raw(schema))))
        assert caught.value.param == "response_format"
    with pytest.raises(UnsupportedParameter):
        await run(Scripted(), msgspec.structs.replace(JOB, messages=(), prompts=(Prompt("x"),)))


def form(schema: bytes) -> Form:
    return Form(Output("json_schema", "x", msgspec.Raw(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        b'{"$ref":"#"}',
        b'{"$ref":"http://127.0.0.1:1/schema.json"}',
        b'{"$ref":"#/$defs/nowhere"}',
        b'{"anyOf":[' + b",".join([b'{"items":{"anyOf":[' + b",".join([b'{"const":1}'] * 200) + b"]}}"] * 4) + b"]}",
        b'{"$defs":{"a0":{"allOf":[{"$ref":"#/$defs/a1"},{"$ref":"#/$defs/a1"}]},'
        + b",".join(
            b'"a%d":{"allOf":[{"$ref":"#/$defs/a%d"},{"$ref":"#/$defs/a%d"}]}' % (n, n + 1, n + 1) for n in range(1, 60)
        )
        + b',"a60":{"type":"string"}},"anyOf":[{"$ref":"#/$defs/a0"}]}',
    ],
)
def test_schemas_that_lead_nowhere_or_everywhere_end(schema: bytes) -> None:
    with pytest.raises(Mistake):
        form(schema).check('"text"' if b'"items"' not in schema else str([2] * 1000))


def test_a_property_may_be_called_pattern() -> None:
    form(b'{"properties":{"pattern":{"type":"string"}}}').check('{"pattern":"x"}')


def test_any_object() -> None:
    ours = Form(Output("json_object"))
    ours.check("{}")
    for wrong in ("[]", "1", "NaN", "{", "", "{} x"):
        with pytest.raises(Mistake):
            ours.check(wrong)


@pytest.mark.parametrize("told", ["{}", "```\n{}\n```", "```json\n{}```", "  {}\n"])
def test_fences(told: str) -> None:
    assert unwrapped(told) == "{}"
