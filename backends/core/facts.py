"""What a server tells of itself, outside any job."""

from __future__ import annotations

import msgspec


class Facts(msgspec.Struct):
    """Each is empty or 0 where the server does not tell it.

    `context`: tokens of prompt and answer of one request. `slots`, `busy`: requests computed at once, and now. `batch`:
    inputs of one embedding request. `template`: the chat template's source.
    """

    model: str = ""
    version: str = ""
    context: int = 0
    slots: int = 0
    busy: int = 0
    batch: int = 0
    template: str = ""

    @property
    def told(self) -> bool:
        """Whether it tells anything."""
        return self != Facts()
