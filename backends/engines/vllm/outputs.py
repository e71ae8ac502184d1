"""vLLM's outputs as events. Pure: it reads attributes of `RequestOutput` and `CompletionOutput`, and imports no vLLM.

Outputs are deltas (`RequestOutputKind.DELTA`); an output may bring tokens without text, while characters or stop strings
are incomplete. Source: `vllm/outputs.py`, `vllm/logprobs.py` of 0.32 and 0.33.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from backends.core.events import (
    Candidate,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
)
from backends.core.request import GenerationRequest
from backends.core.usage import Usage

_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "stop"}


class Reader(Protocol):
    """Reads one choice's text for tool calls and thoughts."""

    def read(self, text: str, tokens: Sequence[int], prompt: Sequence[int], finished: bool) -> list[Event]:
        """The events of a delta."""

    @property
    def called(self) -> bool:
        """Whether it has told of a tool call."""

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of thoughts so far."""


class Unfinished(Exception):
    """vLLM ended a choice for a reason of its own; the text is for the log."""


class JobEvents:
    """The events of one job. Single use. `reader` makes one for each choice, None = plain text."""

    def __init__(
        self,
        job: GenerationRequest,
        spell: Callable[[int], bytes],
        reader: Callable[[int], Reader] | None = None,
    ) -> None:
        self._job = job
        self._spell = spell
        self._readers = [reader(index) for index in range(job.choices)] if reader is not None else []
        self._held: list[list[TokenLogprob]] = [[] for _ in range(job.choices)]
        self._finished: set[int] = set()
        self._prompt_tokens = [0] * max(1, len(job.prompts))
        self._cached = [0] * max(1, len(job.prompts))
        self._output_tokens = 0
        self.started = False

    @property
    def finished(self) -> bool:
        """Whether every choice is complete."""
        return len(self._finished) == self._job.choices

    def feed(self, output: Any, prompt_index: int = 0) -> list[Event]:
        """The events of a `RequestOutput` of prompt number `prompt_index`; `Usage` follows the last choice's `Finish`.

        Raises:
            Unfinished: a choice was ended that is not complete.
        """
        events: list[Event] = []
        if not self.started:
            self.started = True
            events.append(Started(self._job.model))
        if output.prompt_token_ids is not None:
            self._prompt_tokens[prompt_index] = len(output.prompt_token_ids)
        for one in output.outputs:
            choice = prompt_index * self._job.n + one.index
            if choice not in self._finished:
                if one.index == 0 and output.num_cached_tokens:
                    self._cached[prompt_index] = output.num_cached_tokens
                events += self._choice(one, choice, output.prompt_token_ids or ())
        if self.finished:
            events.append(self.usage())
        return events

    def usage(self) -> Usage:
        """What was counted so far."""
        thoughts = sum(reader.reasoning_tokens for reader in self._readers)
        return Usage(sum(self._prompt_tokens), self._output_tokens, sum(self._cached), thoughts, source="counted")

    def _choice(self, one: Any, choice: int, prompt: Sequence[int]) -> list[Event]:
        tokens = list(one.token_ids)
        self._output_tokens += len(tokens)
        ended = one.finish_reason is not None
        held = self._held[choice]
        if one.logprobs:
            held += [self._logprob(token, found) for token, found in zip(tokens, one.logprobs, strict=True)]
        reader = self._readers[choice] if self._readers else None
        events: list[Event] = []
        if reader is not None:
            events = reader.read(one.text, tokens, prompt, ended)
        elif one.text:
            events = [TextDelta(one.text, choice)]
        if held and (ended or any(isinstance(event, TextDelta | ReasoningDelta) for event in events)):
            events = _with_logprobs(events, choice, tuple(held))
            held.clear()
        if ended:
            self._finished.add(choice)
            if one.finish_reason not in _FINISH:
                raise Unfinished(f"a choice ended as {one.finish_reason!r}")
            called = reader is not None and reader.called and one.finish_reason == "stop"
            events.append(Finish("tool_calls" if called else _FINISH[one.finish_reason], choice))
        return events

    def _logprob(self, token: int, found: Mapping[int, Any]) -> TokenLogprob:
        """`found`: the chosen token and the likeliest, token id to rank (1 = likeliest) and logprob."""
        most = self._job.top_logprobs or 0
        ranked = sorted((one.rank, id, one.logprob) for id, one in found.items() if one.rank is not None and one.rank <= most)
        top = tuple(self._candidate(id, logprob) for _, id, logprob in ranked[:most])
        spelled = self._spell(token)
        return TokenLogprob(spelled.decode("utf-8", "replace"), spelled, _finite(found[token].logprob), top)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        spelled = self._spell(token)
        return Candidate(spelled.decode("utf-8", "replace"), spelled, _finite(logprob))


def _with_logprobs(events: list[Event], choice: int, logprobs: tuple[TokenLogprob, ...]) -> list[Event]:
    """The events with the logprobs on the first text among them, or on an empty one at the end."""
    for index, event in enumerate(events):
        if isinstance(event, TextDelta):
            return [*events[:index], TextDelta(event.text, choice, logprobs), *events[index + 1 :]]
    return [*events, TextDelta("", choice, logprobs)]


def _finite(logprob: float) -> float:
    """JSON has no -inf, which a token masked by a grammar has; OpenAI's documentation writes -9999 for such."""
    return max(logprob, -9999.0)
