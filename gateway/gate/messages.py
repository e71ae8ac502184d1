"""What workers and the gate process say to each other: frames of a 4-byte big-endian length and a msgpack array.

One frame carries all messages of one loop turn. The first frame of a connection is `Hello` and nothing else; a version
that differs is closed without an answer. This is a format: a new layout gets a new VERSION.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.gate.protocol import GatedDeployment

VERSION = 1
#: A frame over this is an error of the other side.
MAX_FRAME = 16 << 20


class Hello(msgspec.Struct, frozen=True, tag="h", array_like=True):
    """Worker to gate, first. `boot` tells two incarnations of one worker apart."""

    version: int
    worker: int
    boot: int
    held: list[tuple[int, str, int]]
    """Slots that it holds from before: serial, deployment, limit."""


class Acquire(msgspec.Struct, frozen=True, tag="a", array_like=True):
    """Worker to gate: one slot, please. `deployments`: (id, limit)."""

    serial: int
    request_id: str
    key: str
    weight: float
    priority: int
    deployments: list[tuple[str, int]]
    max_wait_us: int


class Release(msgspec.Struct, frozen=True, tag="r", array_like=True):
    """Worker to gate: the slot is free."""

    serial: int


class Cancel(msgspec.Struct, frozen=True, tag="c", array_like=True):
    """Worker to gate: nobody waits for it any more; also gives back a slot whose grant is on its way."""

    serial: int


class Stop(msgspec.Struct, frozen=True, tag="e", array_like=True):
    """Worker to gate: the gateway's drain is over, so grant nothing any more, to no worker."""


class Samples(msgspec.Struct, frozen=True, tag="m", array_like=True):
    """Worker to gate: its metrics, opaque here. `scrape` 0: unasked, its last word."""

    scrape: int
    payload: bytes


class Grant(msgspec.Struct, frozen=True, tag="g", array_like=True):
    """Gate to worker: the slot is yours."""

    serial: int
    deployment: str


class Refuse(msgspec.Struct, frozen=True, tag="x", array_like=True):
    """Gate to worker: no slot."""

    serial: int
    reason: Literal["full", "timeout"]
    retry_after_ms: int


class Scrape(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """Gate to worker: send your metrics."""

    scrape: int


FromWorker = Hello | Acquire | Release | Cancel | Stop | Samples
FromGate = Grant | Refuse | Scrape

_encode = msgspec.msgpack.Encoder().encode
_workers = msgspec.msgpack.Decoder(list[FromWorker])
_gates = msgspec.msgpack.Decoder(list[FromGate])


class FrameError(Exception):
    """The other side does not speak this protocol."""


class Frames:
    """Bytes to whole frames, any split. Single use."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames completed by these bytes.

        Raises:
            FrameError: a frame says it is longer than MAX_FRAME.
        """
        self._buffer += data
        out: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= 4:
            size = int.from_bytes(self._buffer[start : start + 4], "big")
            if size > MAX_FRAME:
                raise FrameError("frame too long")
            if len(self._buffer) - start - 4 < size:
                break
            out.append(bytes(self._buffer[start + 4 : start + 4 + size]))
            start += 4 + size
        del self._buffer[:start]
        return out


def pack(messages: Sequence[FromWorker] | Sequence[FromGate]) -> bytes:
    """One frame.

    Raises:
        FrameError: longer than MAX_FRAME.
    """
    body = _encode(messages)
    if len(body) > MAX_FRAME:
        raise FrameError("frame too long")
    return len(body).to_bytes(4, "big") + body


def from_worker(frame: bytes) -> list[FromWorker]:
    """What a worker said.

    Raises:
        FrameError: it is not a frame of this version.
    """
    try:
        return _workers.decode(frame)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise FrameError(str(error)) from error


def from_gate(frame: bytes) -> list[FromGate]:
    """What the gate said.

    Raises:
        FrameError: it is not a frame of this version.
    """
    try:
        return _gates.decode(frame)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise FrameError(str(error)) from error


def pairs(deployments: Sequence[GatedDeployment]) -> list[tuple[str, int]]:
    """Deployments as they travel."""
    return [(d.id, d.max_in_flight) for d in deployments]
