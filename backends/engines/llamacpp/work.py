"""Jobs and sequences of the llama.cpp engine: what is known of each, no model calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from backends.core.events import Event, Started
from backends.core.request import GenerationRequest
from backends.core.usage import Usage
from backends.engines.choice import ChoiceText
from backends.engines.llamacpp.sampling import Sampler
from backends.engines.llamacpp.slots import WORTH, shared


class Sequence:
    """One choice. `tokens`: prompt and what was made; the first `position` of them are in the model's memory.

    `source`: another one whose first `shares` tokens are the same, and are to be taken over when it has read them.
    """

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
        self.source: Sequence | None = None
        self.shares = 0

    @property
    def follows(self) -> bool:
        """Whether it waits for another to have read what the two begin with."""
        return self.source is not None

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

    def __init__(self, id: str, request: GenerationRequest, input_tokens: int, adapter: str = "") -> None:
        self.id = id
        self.request = request
        self.adapter = adapter
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


def source_of(sequence: Sequence, running: Iterable[Sequence], *, others: bool) -> tuple[Sequence | None, int]:
    """Which running sequence reads, or has read, the longest beginning of this one's prompt, and how much of it.

    A choice of the same prompt is one; other jobs' only with `others`. The last token is never shared: its logits are
    wanted.
    """
    best: Sequence | None = None
    length = 0
    for other in running:
        brother = other.job is sequence.job and other.prompt_index == sequence.prompt_index
        if (not brother and not others) or other.job.adapter != sequence.job.adapter:
            continue
        common = min(shared(other.tokens, sequence.tokens), len(sequence.tokens) - 1)
        if common > length and (brother or common >= WORTH):
            best, length = other, common
    return best, length


def whose_turn(running: Iterable[Sequence], last: str) -> str:
    """The adapter of the next step: those of the running sequences take turns, in the order of their names."""
    present = sorted({sequence.job.adapter for sequence in running})
    later = [name for name in present if name > last]
    return (later or present or [""])[0]
