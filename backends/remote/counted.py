"""Usage, and the finish reason `length`, for servers that tell neither: counted with the model's own tokenizer.

Events in, events out. What was generated is counted when the answer ends. Text does not tell each token (an end mark, a
token that the server skipped), so a count may be a little too small; an answer that was cut exactly at its cap may
thus be told as `stop`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from backends.core.events import Event, Failure, Finish, ReasoningDelta, TextDelta, ToolCallDelta
from backends.core.request import GenerationRequest, Prompt
from backends.core.usage import Usage, UsageSource

#: The number of tokens of a text.
Count = Callable[[str], int]
#: Up to so many characters are counted on the event loop; longer texts in a thread.
_INLINE_CHARS = 2048
#: What a template puts around a message, where the server renders it.
_PER_MESSAGE = 4


class Untold(NamedTuple):
    """How to count what a server does not tell, by its model's tokenizer.

    Attributes:
        count: the tokens of a text.
        reasons: it does not tell why an answer ended: one that has as many tokens as it may have is then `length`.
        prompt: the tokens of a prompt as it reads one, where its output cap includes the prompt; None elsewhere.
    """

    count: Count
    reasons: bool
    prompt: Count | None = None


async def counted(
    batches: AsyncIterator[Sequence[Event]],
    job: GenerationRequest,
    prompts: Sequence[Prompt],
    untold: Untold,
) -> AsyncIterator[Sequence[Event]]:
    """The same events, with a `Usage` where none was told.

    Args:
        batches: the answer's.
        job: what was asked.
        prompts: as they were rendered; none where the server renders.
        untold: how to count.
    """
    count = untold.count
    texts: dict[int, list[str]] = {}
    told = failed = False
    async for batch in batches:
        out: list[Event] = []
        for event in batch:
            if isinstance(event, TextDelta | ReasoningDelta):
                texts.setdefault(event.choice, []).append(event.text)
            elif isinstance(event, ToolCallDelta):
                texts.setdefault(event.choice, []).append(event.name + event.arguments)
            elif isinstance(event, Finish) and untold.reasons and event.reason == "stop":
                most = job.sampling.max_tokens
                full = most is not None and await tokens(count, "".join(texts.get(event.choice, ()))) >= most
                out.append(Finish("length", event.choice) if full else event)
                continue
            told = told or isinstance(event, Usage)
            failed = failed or isinstance(event, Failure)
            out.append(event)
        yield out
    if not told and not failed:
        output = sum([await tokens(count, "".join(text)) for text in texts.values()])
        given, source = await _input(job, prompts, count)
        yield [Usage(given, output, source=source)]


async def _input(job: GenerationRequest, prompts: Sequence[Prompt], count: Count) -> tuple[int, UsageSource]:
    """The prompts' tokens; an estimate where the server rendered the conversation."""
    given = prompts or job.prompts
    texts = [one.text for one in given if one.tokens is None] or ([] if given else [one.text for one in job.messages])
    ids = sum(len(one.tokens) for one in given if one.tokens is not None)
    total = ids + sum([await tokens(count, text) for text in texts])
    return (total, "counted") if given else (total + _PER_MESSAGE * len(job.messages), "estimated")


async def tokens(count: Count, text: str) -> int:
    """The number of tokens; a long text is counted in a thread."""
    return count(text) if len(text) <= _INLINE_CHARS else await asyncio.to_thread(count, text)
