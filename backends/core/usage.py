"""Token usage of one answer. Input includes cached input; output includes reasoning."""

from __future__ import annotations

from typing import Literal

import msgspec

#: Token counts from here on are nonsense, whoever tells them.
ABSURD = 10**9
UsageSource = Literal["reported", "counted", "estimated"]


def told_count(value: object) -> int | None:
    """A count that a server told: a whole number, also as a float or as digits in a string; None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 12:
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


class Usage(msgspec.Struct, frozen=True, gc=False, tag="usage"):
    """Tokens of one answer, an event of the stream.

    `source`: `reported` by the backend, `counted` by us with the model's tokenizer, or `estimated`.
    `calls`: of each call that the answer took, where it took more than one; they are in the sums.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "reported"
    calls: tuple[Usage, ...] = ()

    @property
    def total_tokens(self) -> int:
        """Input plus output."""
        return self.input_tokens + self.output_tokens
