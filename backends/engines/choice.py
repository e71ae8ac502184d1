"""One choice of a generation on its way out: token bytes in, events out, until a stop string, a limit or the model ends it.

Shared by every engine that makes tokens itself. Pure.
"""

from __future__ import annotations

from backends.core.events import Event, Finish, FinishReason, TextDelta, TokenLogprob
from backends.core.request import Sampling
from backends.parsing.stops import StopCutter
from backends.parsing.utf8 import Utf8Decoder


class ChoiceText:
    """Single use. `tokens` counts what was generated, an end-of-generation token excluded.

    Logprobs leave with the text they belong to or later, never before it: those of tokens whose text is held back (an
    unfinished character, a possible stop string) wait with it; those of a stop string's own tokens leave with the end.
    """

    def __init__(self, index: int, sampling: Sampling, room: int) -> None:
        """`index`: the choice's number. `room`: tokens that the context still holds after the prompt, at least 1."""
        self.index = index
        self.tokens = 0
        self.finished = False
        stated = sampling.max_tokens
        self._most = room if stated is None else min(room, stated)
        self._decoder = Utf8Decoder()
        self._stops = StopCutter(sampling.stop)
        self._pending: list[TokenLogprob] = []

    def token(self, data: bytes, logprob: TokenLogprob | None = None) -> list[Event]:
        """One generated token's bytes; the events it brings, `Finish` among them when it was the last."""
        self.tokens += 1
        if logprob is not None:
            self._pending.append(logprob)
        text, hit = self._stops.feed(self._decoder.feed(data))
        if hit:
            return self._end("stop", text)
        if self.tokens >= self._most:
            return self._end("length", text)
        return self._delta(text)

    def end(self) -> list[Event]:
        """The model ended it."""
        return self._end("stop", "")

    def _end(self, reason: FinishReason, text: str) -> list[Event]:
        self.finished = True
        if not self._stops.matched:
            tail, hit = self._stops.feed(self._decoder.close())
            text += tail if hit else tail + self._stops.close()
        events: list[Event] = []
        if text or self._pending:
            events.append(TextDelta(text, self.index, tuple(self._pending)))
            self._pending.clear()
        events.append(Finish(reason, self.index))
        return events

    def _delta(self, text: str) -> list[Event]:
        if not text:
            return []
        delta = TextDelta(text, self.index, tuple(self._pending))
        self._pending.clear()
        return [delta]
