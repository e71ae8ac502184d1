"""Texts that each hold all there was before them, turned into what is new.

Some servers send the whole text so far with every token (SGLang, TensorRT-LLM's BLS with `accumulate_tokens`). Such a
text is not final at its end: half a character shows as U+FFFD until its rest has come, and the beginning of a stop
string may vanish again when the server trims it. Both are held back; what was handed out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.parsing.stops import StopCutter


class Snapshots:
    """Whole texts in, their new parts out, cut before the first stop string; single use.

    `matched` is the stop string that was hit, "" before.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Args: stops: the strings to stop at; empty ones are ignored."""
        self._stops = stops
        self._sent = self._latest = ""
        self.matched = ""

    def feed(self, text: str, /, *, last: bool = False) -> str:
        """What is new and final. `last`: nothing follows, so that nothing has to be held back any more."""
        if self.matched:
            return ""
        self._latest = text
        # Where what was sent has changed, go on where the texts part.
        kept = self._sent if text.startswith(self._sent) else text[: _agree(self._sent, text)]
        fresh = text[len(kept) :]
        if not last:
            fresh = fresh.rstrip("\ufffd")
        cutter = StopCutter(self._stops)
        safe, _ = cutter.feed(fresh)
        self.matched = cutter.matched
        if last and not self.matched:
            safe += cutter.close()
        if safe:
            self._sent = kept + safe
        return safe

    def close(self) -> str:
        """The end, without a last text of its own: what was held back of the latest."""
        return self.feed(self._latest, last=True)


def _agree(one: str, other: str) -> int:
    """Length of the longest beginning that both have."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
