"""One generation of the transformers engine on its way out: token ids in, events out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backends.core.events import Event, Failure, Started, TokenLogprob
from backends.core.request import GenerationRequest
from backends.core.usage import Usage
from backends.engines.choice import ChoiceText


class Ends:
    """What tokens mean for the end and the text. `ends`: tokens that end an answer; `hidden`: tokens without text."""

    def __init__(self, ends: Sequence[int], hidden: Sequence[int], spell: Callable[[int], bytes]) -> None:
        self.ends = tuple(ends)
        self.hidden = frozenset(hidden)
        self.spell = spell

    def text(self, token: int) -> bytes:
        """What a token adds to the answer."""
        return b"" if token in self.hidden else self.spell(token)


class Answer:
    """Single use; used by one thread at a time. `sizes`: tokens of each prompt."""

    def __init__(self, job: GenerationRequest, sizes: Sequence[int], context: int, ends: Ends) -> None:
        self._job = job
        self._sizes = sizes
        self._ends = ends
        self._choices = [ChoiceText(index, job.sampling, context - sizes[index // job.n]) for index in range(job.choices)]
        self._begun = False
        self._stops = frozenset() if job.sampling.ignore_eos else frozenset(ends.ends)

    def finished(self, choice: int) -> bool:
        """Whether a choice is complete."""
        return self._choices[choice].finished

    @property
    def complete(self) -> bool:
        """Whether all are."""
        return all(choice.finished for choice in self._choices)

    def token(self, choice: int, token: int, logprob: TokenLogprob | None = None) -> list[Event]:
        """A generated token; nothing when its choice is complete. `Usage` follows the last `Finish`."""
        text = self._choices[choice]
        if text.finished:
            return []
        ended = token in self._stops and text.tokens >= (self._job.sampling.min_tokens or 0)
        return self._told(text.end() if ended else text.token(self._ends.text(token), logprob))

    def end(self, choice: int) -> list[Event]:
        """The model has no more for this choice."""
        text = self._choices[choice]
        return [] if text.finished else self._told(text.end())

    def usage(self) -> Usage:
        """What it came to so far."""
        return Usage(sum(self._sizes), sum(choice.tokens for choice in self._choices), source="counted")

    def fail(self, failure: Failure) -> list[Event]:
        """Nothing more comes."""
        return [failure]

    def _told(self, events: list[Event]) -> list[Event]:
        if not self._begun:
            self._begun = True
            events.insert(0, Started(self._job.model))
        if self.complete:
            events.append(self.usage())
        return events
