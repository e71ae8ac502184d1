"""Cut text at the first stop string, across any split of it.

Text that may turn out to be the beginning of a stop string is held back until it is decided. The stop that is
complete first wins; of two that are complete at the same character, the longer.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Text in, text before the first stop string out; single use; any split gives the same text.

    `matched` is the stop string that was hit, "" before.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Args: stops: the strings to stop at; empty ones are ignored."""
        self._stops = sorted({stop for stop in stops if stop}, key=len, reverse=True)
        self._prefixes = {stop[:size] for stop in self._stops for size in range(1, len(stop))}
        self._lasts = {prefix[-1] for prefix in self._prefixes}
        self._longest = max(map(len, self._prefixes), default=0)
        self._held = ""
        self.matched = ""

    def feed(self, text: str, /) -> tuple[str, bool]:
        """The text that is surely before any stop string, and whether one was hit. After a hit: always ("", True)."""
        if self.matched:
            return "", True
        if not self._stops:
            return text, False
        text = self._held + text
        first_end, begin = len(text) + 1, 0
        for stop in self._stops:
            at = text.find(stop, 0, first_end - 1)
            if at >= 0:
                first_end, begin, self.matched = at + len(stop), at, stop
        if self.matched:
            self._held = ""
            return text[:begin], True
        held = self._undecided(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def close(self) -> str:
        """The end: what was held back and turned out to be ordinary text."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        if not text or text[-1] not in self._lasts:
            return 0
        for size in range(min(len(text), self._longest), 0, -1):
            if text[-size:] in self._prefixes:
                return size
        return 0
