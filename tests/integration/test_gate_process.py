"""The gate over its socket: one bound for several workers, and what survives a death on either side."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.core.errors import Overloaded
from gateway.gate.client import GateClient
from gateway.gate.protocol import Gate, GatedDeployment
from gateway.gate.server import GateServer

D = [GatedDeployment("d", 2)]


@contextlib.asynccontextmanager
async def client(path: Path, worker: int, boot: int = 1, payload: bytes = b"") -> AsyncIterator[GateClient]:
    made = GateClient(path, worker, boot, lambda: payload)
    checked: Gate = made
    assert checked is made
    task = asyncio.get_running_loop().create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    return run / "gate.sock"


async def until(condition, timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_bound_is_one_for_all_workers(path: Path) -> None:
    server = GateServer(2)
    await server.start(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    running, worst = 0, 0

    async def work(gate: GateClient, n: int) -> None:
        nonlocal running, worst
        slot = await gate.acquire(f"r{n}", f"k{n % 3}", D, 10)
        running += 1
        worst = max(worst, running)
        await asyncio.sleep(0.002)
        running -= 1
        slot.release()

    async with client(path, 0) as a, client(path, 1) as b:
        async with asyncio.TaskGroup() as group:
            for n in range(60):
                group.create_task(work((a, b)[n % 2], n))
        assert worst == 2
        await until(lambda: server.stats()["d"].in_flight == 0)
    server.close()


async def test_when_one_worker_says_that_the_drain_is_over_no_worker_is_granted_a_slot(path: Path) -> None:
    server = GateServer(2)
    await server.start(path)
    async with client(path, 0) as a, client(path, 1) as b:
        slots = [await a.acquire(f"r{n}", "k", D, 10) for n in range(2)]
        waiting = asyncio.get_running_loop().create_task(b.acquire("r", "k", D, 10))
        await until(lambda: server.stats()["d"].waiting == 1)
        a.stop()
        for slot in slots:
            slot.release()
        await until(lambda: server.stats()["d"].in_flight == 0)
        assert server.stats()["d"].waiting == 1 and not waiting.done()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await until(lambda: server.stats()["d"].waiting == 0)
    server.close()


async def test_a_dead_workers_slots_are_freed(path: Path) -> None:
    server = GateServer(2)
    await server.start(path)
    async with client(path, 0) as a:
        async with client(path, 1) as b:
            for n in range(2):
                await b.acquire(f"r{n}", "k", D, 5)
            waiting = asyncio.get_running_loop().create_task(a.acquire("r", "k", D, 5))
            await until(lambda: server.stats()["d"].waiting == 1)
        slot = await waiting
        assert server.stats()["d"].in_flight == 1
        slot.release()
    server.close()


async def test_after_a_restart_what_is_held_counts_before_anything_is_granted(path: Path) -> None:
    server = GateServer(2)
    await server.start(path)
    async with client(path, 0) as a, client(path, 1) as b:
        held = [await a.acquire("r1", "k", D, 5), await b.acquire("r2", "k", D, 5)]
        waiting = asyncio.get_running_loop().create_task(a.acquire("r3", "k", D, 5))
        await until(lambda: server.stats()["d"].waiting == 1)
        server.close()
        await until(lambda: not a.connected and not b.connected)
        asked_meanwhile = asyncio.get_running_loop().create_task(b.acquire("r4", "k", D, 5))
        server = GateServer(2)
        await server.start(path)
        await until(lambda: server.stats().get("d") is not None and server.stats()["d"].waiting == 2)
        assert server.stats()["d"].in_flight == 2
        assert not waiting.done()
        held[1].release()
        done, _ = await asyncio.wait([waiting, asked_meanwhile], timeout=3, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        held[0].release()
        await asyncio.wait_for(asyncio.gather(waiting, asked_meanwhile), 3)
    server.close()


async def test_a_missing_worker_delays_the_first_grant_by_the_recovery_time_only(path: Path) -> None:
    server = GateServer(4, recover_s=0.2)
    await server.start(path)
    async with client(path, 0) as a:
        began = asyncio.get_running_loop().time()
        (await a.acquire("r", "k", D, 5)).release()
        assert 0.1 < asyncio.get_running_loop().time() - began < 2
    server.close()


async def test_no_gate_is_a_503_after_the_wait(path: Path) -> None:
    async with client(path, 0) as a:
        with pytest.raises(Overloaded) as caught:
            await a.acquire("r", "k", D, 0.05)
        assert caught.value.retry_after_ms


async def test_cancelling_takes_the_request_out_of_the_queue(path: Path) -> None:
    server = GateServer(1)
    await server.start(path)
    async with client(path, 0) as a:
        held = [await a.acquire(f"r{n}", "k", D, 5) for n in range(2)]
        waiting = asyncio.get_running_loop().create_task(a.acquire("r3", "k", D, 5))
        await until(lambda: server.stats()["d"].waiting == 1)
        waiting.cancel()
        await until(lambda: server.stats()["d"].waiting == 0)
        for slot in held:
            slot.release()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: server.stats()["d"].in_flight == 0)
    server.close()


async def test_refusals_cross_the_socket(path: Path) -> None:
    server = GateServer(1, max_waiting=1)
    await server.start(path)
    async with client(path, 0) as a:
        for n in range(2):
            await a.acquire(f"r{n}", "k", D, 5)
        late = asyncio.get_running_loop().create_task(a.acquire("late", "k", D, 0.1))
        await until(lambda: server.stats()["d"].waiting == 1)
        with pytest.raises(Overloaded, match="Too many"):
            await a.acquire("full", "k", D, 5)
        with pytest.raises(Overloaded, match="in time"):
            await late
    server.close()


async def test_scrape_asks_every_worker_and_the_last_word_comes_unasked(path: Path) -> None:
    seen: list[tuple[int, int, bytes]] = []
    gone: list[tuple[int, int]] = []
    server = GateServer(2, on_samples=lambda *a: seen.append(a), on_gone=lambda *a: gone.append(a))
    await server.start(path)
    async with client(path, 0, 5, b"zero"):
        async with client(path, 1, 6, b"one"):
            await until(lambda: len(seen) == 0 and not gone)
            async with asyncio.timeout(3):
                while await server.scrape() < 2:
                    await asyncio.sleep(0.01)
            assert set(seen) == {(0, 5, b"zero"), (1, 6, b"one")}
            seen.clear()
        await until(lambda: gone == [(1, 6)])
        assert seen == [(1, 6, b"one")]
        assert await server.scrape() == 1
    server.close()


async def test_nonsense_is_cut_and_a_public_directory_is_refused(path: Path) -> None:
    server = GateServer(1)
    await server.start(path)
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"\x00\x00\x00\x03abc")
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    server.close()
    path.parent.chmod(0o755)
    with pytest.raises(PermissionError):
        await GateServer(1).start(path)
