"""What goes into the next llama_decode: pure, so that its promises can be tested without a model.

Every decoding sequence has its one row in every step. What is left of the batch goes to prefill, shared evenly among
the sequences that have some, and less of it while others decode: a new prompt may stretch their step, not stall it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Step(msgspec.Struct, frozen=True):
    """`decode`: slots with one row each. `prefill`: (slot, prompt tokens), in order, counts at least 1."""

    decode: tuple[int, ...]
    prefill: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.decode) + sum(count for _, count in self.prefill)


def plan(
    decoding: Sequence[int], prefilling: Sequence[tuple[int, int]], batch: int, budget: int, turn: int, slots: int
) -> Step:
    """The next step.

    Args:
        decoding: slots whose last token is to be fed.
        prefilling: (slot, prompt tokens left), oldest first; counts at least 1.
        batch: rows that one llama_decode takes; at least the number of slots.
        budget: prompt tokens that this step may take.
        turn: the step's number; where the budget does not reach everyone, it is slot `turn` mod `slots`' turn first, so
            that nobody waits for more than `slots` steps, whoever comes and goes meanwhile.
        slots: how many slots there are in all.
    """
    left = min(budget, batch - len(decoding))
    if left <= 0 or not prefilling:
        return Step(tuple(decoding), ())
    takes = dict.fromkeys((slot for slot, _ in prefilling), 0)
    if left < len(prefilling):
        for slot, _ in sorted(prefilling, key=lambda one: (one[0] - turn) % slots)[:left]:
            takes[slot] = 1
    else:
        wanting = list(prefilling)
        while wanting and left:
            share, extra = divmod(left, len(wanting))
            still: list[tuple[int, int]] = []
            for place, (slot, want) in enumerate(wanting):
                take = min(want - takes[slot], share + (place < extra))
                takes[slot] += take
                left -= take
                if takes[slot] < want:
                    still.append((slot, want))
            wanting = still
    return Step(tuple(decoding), tuple((slot, takes[slot]) for slot, _ in prefilling if takes[slot]))


class Pace:
    """How many prompt tokens a step may take: learnt from how long steps took, because machines differ by 1,000.

    Alone, prompts get `alone` tokens a step, always: equal requests then make equal batches and equal answers. Beside
    decoding sequences they get what is thought to make the step at most `stretch` times as long as without them (more,
    when more short prompts wait than sequences decode: holding up one for a moment to let seven begin is a gain), at
    least 1 token and at most `beside`. A row beside others costs more than one of a large batch, so the two are learnt
    apart; until the first is known it is taken for twice the second.
    """

    #: Weight of a new observation.
    GAIN = 0.25
    #: Prompt tokens beside decoding sequences before anything is known.
    FIRST = 2

    def __init__(self, alone: int, beside: int, stretch: float = 2.5) -> None:
        """`alone`, `beside`: prompt tokens; `stretch`: a factor above 1."""
        self._alone = alone
        self._beside = beside
        self._stretch = stretch
        self._decode_s: dict[int, float] = {}
        self._alone_s: float | None = None
        self._beside_s: float | None = None

    def budget(self, decoding: int, short: int = 0) -> int:
        """Prompt tokens for a step beside this many decoding sequences. `short`: prompts that are read in a step or two."""
        if not decoding:
            return self._alone
        step_s, token_s = self._expected_s(decoding), self._token_s()
        if step_s is None or token_s is None:
            return min(self._beside, self.FIRST)
        stretch = self._stretch * max(1.0, short / decoding)
        return max(1, min(self._beside, int(step_s * (stretch - 1) / token_s)))

    def observe(self, decode: int, prefill: int, seconds: float) -> None:
        """A step of this many decode rows and prompt tokens took so long."""
        if not prefill:
            if decode:
                self._decode_s[decode] = self._blend(self._decode_s.get(decode), seconds)
        elif not decode:
            self._alone_s = self._blend(self._alone_s, max(seconds, 1e-9) / prefill)
        elif (beside := self._expected_s(decode)) is not None:
            before, now = self._token_s(), (seconds - beside) / prefill
            if before is not None:
                now = max(before / 2, now)  # one step that seemed short lets no crowd in
            if now > 0:
                self._beside_s = self._blend(before, now)

    def _token_s(self) -> float | None:
        """Of a prompt token beside decoding sequences; above 0."""
        if self._beside_s is None and self._alone_s is not None:
            return 2 * self._alone_s
        return self._beside_s

    def _expected_s(self, decoding: int) -> float | None:
        if not self._decode_s:
            return None
        nearest = min(self._decode_s, key=lambda known: abs(known - decoding))
        return self._decode_s[nearest]

    def _blend(self, before: float | None, now: float) -> float:
        return now if before is None else before + self.GAIN * (now - before)
