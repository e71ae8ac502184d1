"""Settlements that Redis could not take and memory should not hold: one bounded append-only file per worker.

Records are a big-endian 32-bit length and a msgpack `Closing`. Whatever was cut off by a crash at the end is dropped.
Reading does not remove; the file is emptied when everything that was read has been taken, so a crash in between repeats
settlements, which is harmless.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.limits.commands import Closing

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Closing)
_LENGTH = struct.Struct(">I")


class Spool:
    """The file of one worker, locked while it is open.

    Args:
        path: created when absent, readable by its owner only; its folder must exist.
        max_bytes: what does not fit is refused by `append`.

    Raises:
        OSError: it cannot be opened, or another process holds it.
    """

    def __init__(self, path: Path, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.size = self._whole(os.fstat(self._file).st_size)
            os.ftruncate(self._file, self.size)
        except OSError:
            os.close(self._file)
            raise
        self._taken = 0

    @property
    def full(self) -> bool:
        """Whether nothing more can be promised to fit: the worker should not be ready."""
        return self.size + 4096 > self._max_bytes

    @property
    def waiting(self) -> bool:
        """Whether it holds what was not taken yet."""
        return self._taken < self.size

    def append(self, closing: Closing) -> bool:
        """Write one settlement; False when it does not fit or the disk refuses it."""
        body = _encoder.encode(closing)
        record = _LENGTH.pack(len(body)) + body
        if self.size + len(record) > self._max_bytes:
            return False
        try:
            written = os.pwrite(self._file, record, self.size)
        except OSError:
            return False
        if written != len(record):
            return False
        self.size += written
        return True

    def peek(self, count: int) -> tuple[list[Closing], int]:
        """Up to `count` settlements that were not taken yet, and the position to hand to `take` when they are."""
        out: list[Closing] = []
        at = self._taken
        while len(out) < count and at < self.size:
            (length,) = _LENGTH.unpack(os.pread(self._file, 4, at))
            out.append(_decoder.decode(os.pread(self._file, length, at + 4)))
            at += 4 + length
        return out, at

    def take(self, position: int) -> None:
        """Everything before `position` has arrived."""
        self._taken = position
        if self._taken >= self.size:
            os.ftruncate(self._file, 0)
            self._taken = self.size = 0

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)

    def _whole(self, size: int) -> int:
        """The length of the leading whole records."""
        at = 0
        while at + 4 <= size:
            (length,) = _LENGTH.unpack(os.pread(self._file, 4, at))
            if at + 4 + length > size:
                break
            try:
                _decoder.decode(os.pread(self._file, length, at + 4))
            except msgspec.DecodeError:
                break
            at += 4 + length
        return at


def adopt(own: Spool, folder: Path, pattern: str, mine: Callable[[Path], bool]) -> int:
    """Move what other spool files of a folder hold into `own`, and delete them: their workers will not start again.

    A crash in between leaves a settlement in both, which is harmless. A file that is in use, or does not fit, stays.

    Args:
        own: takes the settlements; it is open already.
        folder, pattern: where the files are, as for `Path.glob`.
        mine: which files belong to a worker that opens them itself.

    Returns:
        How many settlements were moved.
    """
    moved = 0
    for path in sorted(folder.glob(pattern)):
        if mine(path):
            continue
        try:
            other = Spool(path)
        except OSError:
            continue
        try:
            closings, end = other.peek(other.size)
            taken = [own.append(closing) for closing in closings]
            moved += sum(taken)
            if all(taken):
                other.take(end)
                path.unlink()
        finally:
            other.close()
    return moved
