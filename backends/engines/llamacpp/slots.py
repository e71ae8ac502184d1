"""Which sequence of the context a request gets, and what is still held of earlier ones, there and outside. Pure.

Attention walks over every cell of the cache up to the last one in use, also those that only an idle sequence holds: some
1,500 idle ones made a step of a small model 8 % longer. So an idle sequence keeps its memory only while nobody computes;
then it is copied out, and put back for a request that begins the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

Memory = TypeVar("Memory")

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


class Held(NamedTuple):
    """Tokens that a memory holds, and the adapter that computed them."""

    tokens: list[int]
    adapter: str


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
        that is free longest. The caller lifts what the slot holds, and removes the rest of its memory.
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
        return best, kept

    def lift(self, slot: int) -> Held:
        """What a slot's memory holds of an earlier request; it counts as holding nothing from now on."""
        held = Held(self._held[slot], self._adapter[slot])
        self._held[slot] = []
        return held

    def holding(self) -> list[int]:
        """Free slots that hold something, longest free first."""
        return [slot for slot in self._free if self._held[slot]]

    def length(self, slot: int) -> int:
        """How many tokens a slot holds."""
        return len(self._held[slot])

    def give(self, slot: int, tokens: list[int], adapter: str = "") -> None:
        """A slot is free again; `tokens` is what the model's memory holds for it, computed with this adapter."""
        assert slot not in self._free, "a slot is given back once"
        self._free.append(slot)
        self._held[slot] = tokens
        self._adapter[slot] = adapter


class Kept(Generic[Memory]):
    """Copies of what slots held: at most `room` tokens of them, those longest unused go first."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tokens = 0
        self._entries: OrderedDict[int, tuple[Held, Memory]] = OrderedDict()  # longest unused first
        self._number = 0

    def takes(self, count: int) -> bool:
        """Whether so many tokens are kept at all."""
        return WORTH <= count <= self.room

    def knows(self, held: Held) -> bool:
        """Whether something kept begins with all of this."""
        return any(length == len(held.tokens) for _, length in self._alike(held))

    def put(self, held: Held, memory: Memory) -> None:
        """Keep a copy. What is only a beginning of it goes, and then what is longest unused, until there is room."""
        for number, length in list(self._alike(held)):
            if length == len(self._entries[number][0].tokens):
                self._drop(number)
        while self._entries and self.tokens + len(held.tokens) > self.room:
            self._drop(next(iter(self._entries)))
        self._number += 1
        self._entries[self._number] = held, memory
        self.tokens += len(held.tokens)

    def find(self, wanted: Held, beyond: int = 0) -> tuple[Memory, int] | None:
        """The copy that shares the longest beginning, and its length, the last token wanted not counted; None: none is
        longer than `beyond` and worth it.
        """
        most = len(wanted.tokens) - 1
        number, length = max(self._alike(wanted), key=lambda found: found[1], default=(0, 0))
        if min(length, most) <= max(beyond, WORTH - 1):
            return None
        self._entries.move_to_end(number)
        return self._entries[number][1], min(length, most)

    def _alike(self, wanted: Held) -> Iterator[tuple[int, int]]:
        """Numbers of entries of the same adapter that share a beginning worth it, and how long that is."""
        first = wanted.tokens[:WORTH]
        for number, (held, _) in self._entries.items():
            if held.adapter == wanted.adapter and held.tokens[:WORTH] == first:
                yield number, shared(held.tokens, wanted.tokens)

    def _drop(self, number: int) -> None:
        held, _ = self._entries.pop(number)
        self.tokens -= len(held.tokens)
