"""Any split of the engine socket's bytes gives the same messages."""

import contextlib
import itertools

from hypothesis import given
from hypothesis import strategies as st

from backends.core.events import Finish, TextDelta
from backends.engines import ipc

ids = st.text(min_size=1, max_size=12)
to_host = st.lists(
    st.one_of(
        st.builds(ipc.Submit, ids, st.binary(max_size=300)),
        st.builds(ipc.Cancel, ids),
        st.builds(ipc.AskStats, st.integers(0, 9)),
    ),
    max_size=8,
)
to_worker = st.lists(
    st.one_of(
        st.builds(ipc.Ready, st.booleans(), reason=st.text(max_size=9)),
        st.builds(ipc.Refused, ids, st.just("Overloaded"), st.text(max_size=20)),
        ids.map(lambda id: ipc.Events((ipc.batch(id, [TextDelta("é"), Finish("stop")], True),))),
    ),
    max_size=8,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@given(to_host, st.lists(st.integers(0, 5000), max_size=30))
def test_host_side(messages: list[ipc.ToHost], cuts: list[int]) -> None:
    whole = [ipc.Hello(ipc.VERSION, "t"), *messages]
    inbound = ipc.HostInbound("t")
    data = b"".join(ipc.frame(m) for m in whole)
    assert [m for piece in pieces(data, cuts) for m in inbound.feed(piece)] == whole


@given(to_worker, st.lists(st.integers(0, 5000), max_size=30))
def test_worker_side(messages: list[ipc.ToWorker], cuts: list[int]) -> None:
    inbound = ipc.WorkerInbound()
    data = b"".join(ipc.frame(m) for m in messages)
    assert [m for piece in pieces(data, cuts) for m in inbound.feed(piece)] == messages


@given(st.binary(max_size=200), st.integers(0, 200))
def test_noise_is_refused_or_awaited_never_believed(noise: bytes, cut: int) -> None:
    inbound = ipc.HostInbound("t")
    with contextlib.suppress(ipc.FrameError):
        assert inbound.feed(noise[:cut]) + inbound.feed(noise[cut:]) == []
    assert inbound.worker is None


@given(st.binary(max_size=50))
def test_frames_know_when_they_are_whole(body: bytes) -> None:
    frames = ipc.Frames()
    data = len(body).to_bytes(4, "big") + body
    for at in range(len(data)):
        frames.feed(data[at : at + 1])
        if at < len(data) - 1:
            assert frames.next() is None
            assert not frames.clean
    assert frames.next() == body
    assert frames.clean
