"""Jobs and sequences of the llama.cpp engine: what is known of each, no model calls."""

from __future__ import annotations

from collections.abc import Iterator

from backends.core.events import Event, Started
from backends.core.request import GenerationRequest
from backends.core.usage import Usage
from backends.engines.choice import ChoiceText
from backends.engines.llamacpp.sampling import Sampler


class Sequence:
    """One choice. `tokens`: prompt and what was made; the first `position` of them are in the model's memory."""

    def __init__(self, job: Running, index: int, prompt: list[int], text: ChoiceText, sampler: Sampler) -> None:
        self.job = job
        self.index = index
        self.prompt_index = index // job.request.n
        self.prompt_size = len(prompt)
        self.tokens = list(prompt)
        self.position = 0
        self.slot = -1
        self.row = -1
        self.text = text
        self.sampler = sampler

    @property
    def prefilling(self) -> bool:
        """Whether prompt tokens are still to be fed."""
        return self.position < self.prompt_size

    @property
    def left(self) -> int:
        """Prompt tokens still to be fed."""
        return self.prompt_size - self.position


class Running:
    """One job: its unfinished sequences and what its usage will be."""

    def __init__(self, id: str, request: GenerationRequest, input_tokens: int) -> None:
        self.id = id
        self.request = request
        self.open: list[Sequence] = []
        self.input_tokens = input_tokens
        self.cached = [0] * max(1, len(request.prompts))
        self.output_tokens = 0
        self.began = 0.0
        self._started = False

    def started(self) -> Iterator[Event]:
        """`Started`, the first time."""
        if not self._started:
            self._started = True
            yield Started(self.request.model)

    def usage(self) -> Usage:
        """Its exact usage so far."""
        return Usage(self.input_tokens, self.output_tokens, sum(self.cached), source="counted")

    def phase(self) -> str:
        """`queued`, `prefill` or `decode`: the furthest of its sequences."""
        running = [sequence for sequence in self.open if sequence.slot >= 0]
        if self._started or any(not sequence.prefilling for sequence in running):
            return "decode"
        return "prefill" if running else "queued"
