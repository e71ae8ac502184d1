"""What a server does not tell of its answer is counted with the model's tokenizer; what it tells is kept."""

from collections.abc import AsyncIterator, Sequence

from backends.core.events import Event, Failure, Finish, TextDelta
from backends.core.request import GenerationRequest, Message, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.remote.counted import Untold, counted

JOB = GenerationRequest("m", prompts=(Prompt("one two three"),), sampling=Sampling(max_tokens=4))


def words(text: str) -> int:
    return len(text.split())


async def run(*events: Event, job: GenerationRequest = JOB, reasons: bool = True) -> list[Event]:
    async def batches() -> AsyncIterator[Sequence[Event]]:
        for event in events:
            yield [event]

    return [event async for batch in counted(batches(), job, (), Untold(words, reasons)) for event in batch]


async def test_an_answer_that_fills_its_cap_ended_by_length() -> None:
    said = (TextDelta("a b"), TextDelta(" c d"), Finish("stop"))
    assert await run(*said) == [*said[:2], Finish("length"), Usage(3, 4, source="counted")]
    assert await run(*said, reasons=False) == [*said, Usage(3, 4, source="counted")]


async def test_a_shorter_one_did_not() -> None:
    said = (TextDelta("a b c"), Finish("stop"))
    assert await run(*said) == [*said, Usage(3, 3, source="counted")]


async def test_choices_are_counted_apart() -> None:
    said = (TextDelta("a b c"), TextDelta("d e f g", 1), Finish("stop"), Finish("stop", 1))
    assert await run(*said) == [*said[:3], Finish("length", 1), Usage(3, 7, source="counted")]


async def test_what_is_told_holds_and_a_failure_counts_nothing() -> None:
    said = (TextDelta("a"), Finish("stop"), Usage(9, 9))
    assert await run(*said) == list(said)
    broken = (TextDelta("a"), Failure("truncated", "cut"))
    assert await run(*broken) == list(broken)


async def test_a_conversation_that_the_server_renders_is_estimated() -> None:
    job = GenerationRequest("m", messages=(Message("user", (Text("one two"),)),))
    assert (await run(TextDelta("a"), Finish("stop"), job=job))[-1] == Usage(6, 1, source="estimated")


async def test_long_texts_are_counted_too() -> None:
    assert (await run(TextDelta("a " * 3000), Finish("stop")))[1:] == [Finish("length"), Usage(3, 3000, source="counted")]
