"""The gate's frames: any split, bounds, versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.gate.messages import (
    MAX_FRAME,
    VERSION,
    Acquire,
    FrameError,
    Frames,
    Grant,
    Hello,
    Refuse,
    from_gate,
    from_worker,
    pack,
)

FIRST = [Hello(VERSION, 3, 99, [(7, "d", 2)])]
SECOND = [Acquire(1, "id", "key", 1.0, 0, [("d", 2), ("e", 1)], 5_000_000)]


@given(cuts=st.lists(st.integers(0, 120), max_size=8))
def test_any_split_is_the_whole(cuts: list[int]) -> None:
    data = pack(FIRST) + pack(SECOND)
    frames, out, at = Frames(), [], 0
    for cut in [*sorted(c for c in cuts if c < len(data)), len(data)]:
        out += frames.feed(data[at:cut])
        at = max(at, cut)
    assert [from_worker(f) for f in out] == [FIRST, SECOND]


def test_the_gates_words() -> None:
    said = [Grant(1, "d"), Refuse(2, "full", 1500)]
    (frame,) = Frames().feed(pack(said))
    assert from_gate(frame) == said


def test_nonsense_is_an_error() -> None:
    with pytest.raises(FrameError):
        Frames().feed((MAX_FRAME + 1).to_bytes(4, "big"))
    for frame in (b"", b"\xc1", b"\x93\x01\x02\x03", pack([Grant(1, "d")])[4:]):
        with pytest.raises(FrameError):
            from_worker(frame)
    with pytest.raises(FrameError):
        from_gate(pack(SECOND)[4:])
