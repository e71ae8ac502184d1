"""Which sequence of the context a request gets, and what the sequences still hold from earlier ones. Pure."""

from __future__ import annotations

from collections.abc import Sequence

#: A shared beginning shorter than this is not worth keeping.
WORTH = 16


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    low, high = 0, most  # the longest equal beginning is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Slots:
    """The sequences 0 .. count-1. A free one remembers the tokens that the model's memory still holds for it, and which
    adapter computed them: with another they would be of no use.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free: list[int] = list(range(count))  # longest free first
        self._held: dict[int, list[int]] = {slot: [] for slot in range(count)}
        self._adapter: dict[int, str] = dict.fromkeys(range(count), "")

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    def take(self, tokens: list[int], reuse: bool, beyond: int = 0, adapter: str = "") -> tuple[int, int] | None:
        """A free slot, and how many of the first tokens its memory holds already; None when all are taken.

        With `reuse` the slot that shares the longest beginning is chosen; the last token is never counted as held,
        because its logits are wanted. Otherwise, or when no more than `beyond` or nothing worth it is shared, the one
        that is free longest. The caller removes the rest of the slot's memory.
        """
        if not self._free:
            return None
        best, kept = self._free[0], 0
        if reuse:
            for slot in self._free:
                if self._adapter[slot] != adapter:
                    continue
                length = min(shared(self._held[slot], tokens), len(tokens) - 1)
                if length >= WORTH and length > max(kept, beyond):
                    best, kept = slot, length
        if not kept:  # an empty one first: others may be of use to somebody later
            best = next((slot for slot in self._free if not self._held[slot]), best)
        self._free.remove(best)
        self._held[best] = []
        return best, kept

    def give(self, slot: int, tokens: list[int], adapter: str = "") -> None:
        """A slot is free again; `tokens` is what the model's memory holds for it, computed with this adapter."""
        assert slot not in self._free, "a slot is given back once"
        self._free.append(slot)
        self._held[slot] = tokens
        self._adapter[slot] = adapter

    def forget(self) -> list[int]:
        """Free slots that still held something, for their memory to be cleared; they hold nothing from now on."""
        holding = [slot for slot in self._free if self._held[slot]]
        for slot in holding:
            self._held[slot] = []
        return holding
