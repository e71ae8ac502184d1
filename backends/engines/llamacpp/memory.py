"""Which memory of earlier tokens each sequence computes with: its slot's, another sequence's, or one that was moved out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from backends.engines.llamacpp import work
from backends.engines.llamacpp.context import Context
from backends.engines.llamacpp.slots import Held, Kept, Slots


class Memory:
    """The slots of one context and what is kept beside it. Positions of sequences and their slots are set here."""

    def __init__(self, context: Context, slots: int, *, parts: bool, keep: bool, room: int) -> None:
        """`parts`: the model can remove and copy parts of a sequence. `keep`: what finished requests leave is of use,
        beside the cache at most `room` tokens of it.
        """
        self._context = context
        self._slots = Slots(slots)
        self._parts = parts
        self._keep = keep and parts
        self._kept: Kept[np.ndarray] = Kept(room if self._keep else 0)

    @property
    def free(self) -> int:
        """Slots nobody has."""
        return self._slots.free

    @property
    def kept_tokens(self) -> int:
        """Tokens kept beside the cache."""
        return self._kept.tokens

    def seat(self, sequence: work.Sequence, running: Iterable[work.Sequence]) -> None:
        """Give a waiting sequence a free slot, of which there is one, with as much of its beginning as is to be had."""
        reuse = self._keep and sequence.job.request.sampling.seed is None
        if self._parts:
            sequence.source, sequence.shares = work.source_of(sequence, running, others=reuse)
        found = self._slots.take(sequence.tokens, reuse, beyond=sequence.shares, adapter=sequence.job.adapter)
        assert found is not None, "a slot is free"
        sequence.slot, kept = found
        moved = None
        if reuse:  # looked for before something else is moved out in its place
            moved = self._kept.find(Held(sequence.tokens, sequence.job.adapter), beyond=max(kept, sequence.shares))
        if not self._move_out(sequence.slot, kept):
            self._context.cut(sequence.slot, 0)
            kept = 0
        sequence.position = kept if moved is None else self._put_back(sequence.slot, *moved)
        if sequence.position:
            sequence.source = None
        self._count(sequence)

    def clear(self) -> None:
        """Move out what nobody computes with: attention would walk over it. What is too long to be kept beside stays."""
        for slot in self._slots.holding():
            if self._kept.takes(self._slots.length(slot)):
                self._move_out(slot)

    def take_over(self, sequence: work.Sequence) -> None:
        """Share the memory of the one it follows, once that has read what they begin with; alone if that is gone."""
        source = sequence.source
        assert source is not None, "it follows one"
        if source.slot >= 0 and source.position < sequence.shares:
            return
        sequence.source = None
        if source.slot >= 0:
            self._context.cut(sequence.slot, 0)
            self._context.copy(source.slot, sequence.slot, sequence.shares)
            sequence.position = sequence.shares
            self._count(sequence)

    def undo(self, sequence: work.Sequence) -> None:
        """Take out what a step that was cut short put in; a memory that cannot lose a part is read anew."""
        if not self._context.cut(sequence.slot, sequence.position):
            self._context.cut(sequence.slot, 0)
            sequence.position = 0
            sequence.prompt_size = len(sequence.tokens)

    def give(self, sequence: work.Sequence) -> None:
        """Its slot is free again."""
        held = sequence.tokens[: sequence.position] if self._keep else []
        if not held:
            self._context.cut(sequence.slot, 0)
        self._slots.give(sequence.slot, held, sequence.job.adapter)
        sequence.slot = -1

    def make_room(self) -> bool:
        """Empty the free slots; whether any held something."""
        holding = self._slots.holding()
        for slot in holding:
            self._move_out(slot)
        return bool(holding)

    def _move_out(self, slot: int, keep: int = 0) -> bool:
        """Cut what a slot holds of an earlier request; as `Context.cut`. A copy is kept where most of it would be lost."""
        held = self._slots.lift(slot)
        count = len(held.tokens)
        if count > 2 * keep and self._kept.takes(count) and not self._kept.knows(held):
            copied = self._context.lift(slot)
            if copied is not None:
                self._kept.put(held, copied)
        return self._context.cut(slot, keep)

    def _put_back(self, slot: int, copied: np.ndarray, keep: int) -> int:
        """Put the first tokens of what was moved out into a slot, in place of what it has; how many those are."""
        if not self._context.put_back(slot, copied):
            return 0
        self._context.cut(slot, keep)
        return keep

    @staticmethod
    def _count(sequence: work.Sequence) -> None:
        """A prompt's first choice tells how much of it was not read."""
        if sequence.index % sequence.job.request.n == 0:
            sequence.job.cached[sequence.prompt_index] = sequence.position
