"""What the embedded store asks of durable storage, and the form in which charges are stored beside a ledger row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from gateway.domain.settlement import Kind, LedgerRow, Rule

#: (admitted_us, whether it was settled, charges) of one stored row.
StoredCharges = tuple[int, bool, bytes]


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """One rule's amount of one request, stored as `[name, kind, window_ms, limit, amount, unit]`."""

    name: str
    kind: Kind
    window_ms: int
    limit: int
    amount: int
    unit: str = ""
    """"" in what a former version stored."""


class Outbox(Protocol):
    """Durable rows. Calls for one id are stored in the order in which they were made."""

    async def open(self, row: LedgerRow, charges: bytes) -> None:
        """Store the row of an admitted request; returns when it is durable. Any exception means: not stored."""

    def append(self, row: LedgerRow, charges: bytes) -> None:
        """Store the final row in place of the opening one. Never blocks, never raises."""

    def recent(self, since_us: int) -> Iterable[StoredCharges]:
        """The charges of every row admitted at or after `since_us`, and of every row whose period is not over."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Charge])


def pack_charges(rules: Sequence[Rule], amounts: Sequence[int]) -> bytes:
    """The charges of one request as msgpack. Leases are not stored: they end with the process that held them."""
    return pack_amounts(
        [
            Charge(rule.name, rule.kind, rule.window_ms, rule.limit, amount, rule.unit)
            for rule, amount in zip(rules, amounts, strict=True)
            if rule.kind != "lease"
        ]
    )


def pack_amounts(charges: Sequence[Charge]) -> bytes:
    """Charges as msgpack."""
    return _encoder.encode(charges)


def unpack_charges(data: bytes) -> list[Charge]:
    """What `pack_charges` wrote.

    Raises:
        msgspec.DecodeError: it is something else.
    """
    return _decoder.decode(data)
