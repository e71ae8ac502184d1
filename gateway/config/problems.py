"""What is wrong with a configuration: every problem at once, each with the place and the mend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing to mend. `key` is a dotted path (`models.chat.tiers[0]`), `line` counts from 1, 0 = unknown.

    No field ever holds a secret's value.
    """

    file: str
    key: str
    problem: str
    mend: str
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return (
            f"{place}: {self.key}: {self.problem}\n    mend: {self.mend}"
            if self.key
            else f"{place}: {self.problem}\n    mend: {self.mend}"
        )


class ConfigError(Exception):
    """A configuration that cannot be used; `problems` has all that was found, never empty."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(one) for one in problems))
        self.problems = tuple(problems)


KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """`("models", "chat", "tiers", 0)` as `models.chat.tiers[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
