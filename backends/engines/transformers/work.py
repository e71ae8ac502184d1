"""A job of the transformers engine, as its runners see it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from backends.core.events import Event, Failure
from backends.core.request import GenerationRequest
from backends.engines.transformers.answers import Answer

#: Takes a job's events, from any thread.
Tell = Callable[[str, Sequence[Event]], None]


class Work:
    """One job. `prompts`: token ids; `arguments`: of generation, for each prompt. `left` is set when nobody waits."""

    def __init__(
        self,
        id: str,
        job: GenerationRequest,
        prompts: list[list[int]],
        arguments: list[Mapping[str, object]],
        answer: Answer,
    ) -> None:
        self.id = id
        self.job = job
        self.prompts = prompts
        self.arguments = arguments
        self.answer = answer
        self.left = threading.Event()


def failure(error: BaseException) -> Failure:
    """What a runner's error means for the request. Memory that is short may be there again later."""
    detail = f"{type(error).__name__}: {error}"
    if "OutOfMemory" in type(error).__name__ or "out of memory" in str(error):
        return Failure("overloaded", "The model's memory is full; try again shortly.", retry_after_ms=5000, detail=detail)
    return Failure("unavailable", "The model's engine failed on this request.", detail=detail)
