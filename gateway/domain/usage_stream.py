"""The stream between settlement and ledger: its key, its fields and how a row is written in it. A format: versioned.

Settlement appends an entry in the same atom in which it corrects the counters; the ledger role writes entries to SQL
(unique by `LedgerRow.id`: an entry may come twice) and deletes them after the commit. It reads from the stream's
beginning, so the id of the last entry of a batch, written to `COMMITTED` after the commit, says that every entry up to
it is in SQL. Settlement hands it back to the workers, which keep their rows until then.
"""

from __future__ import annotations

import msgspec

from gateway.domain.settlement import LedgerRow

#: Everything in Redis has this prefix; one hash tag, so that every script is legal on a cluster.
PREFIX = "sy2:{sy}:"
STREAM = PREFIX + "usage"
COMMITTED = PREFIX + "committed"
#: A hash about the data themselves: `epoch` is new whenever they were lost, and `REBUILT` the epoch of which the quotas
#: hold what the ledger knows.
META = PREFIX + "meta"
EPOCH, REBUILT = "epoch", "rebuilt"
#: Fields of an entry: who settled it, that worker's running number, and the row (`pack_row`).
WORKER, SEQ, ROW = "w", "n", "r"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LedgerRow)


def pack_row(row: LedgerRow) -> bytes:
    """A row as msgpack, an array in the order of its fields."""
    return _encoder.encode(row)


def unpack_row(data: bytes) -> LedgerRow:
    """The row in an entry.

    Raises:
        msgspec.DecodeError: it is no row.
    """
    return _decoder.decode(data)
