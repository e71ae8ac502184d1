"""The gate process: one queue for all workers, and the metrics of all of them on one port. Without it, the one worker's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.gate.queue import PoolStats
from gateway.gate.server import GateServer
from gateway.runtime.line import Line, run_async
from gateway.runtime.roles import Child
from gateway.telemetry import families as f
from gateway.telemetry.aggregate import Fleet, exposition, merge, unpack
from gateway.telemetry.exporter import Exporter
from gateway.telemetry.metrics import Metrics

#: Between two tries to get the metrics port.
PORT_RETRY_S = 2.0


class _Log(Protocol):
    def event(self, name: str, /, **fields: object) -> None: ...


def run_gate(child: Child, *, path: Path, workers: int, max_waiting: int, metrics: tuple[str, int] | None, log: _Log) -> int:
    """The role's whole life, for `ForkRole.run`.

    Args:
        path: the Unix socket to make; its directory must be private.
        workers: how many are expected before anything is granted.
        metrics: host and port of the metrics, None for none.
    """

    async def main(line: Line) -> None:
        fleet = Fleet()

        def sampled(worker: int, boot: int, payload: bytes) -> None:
            try:
                fleet.put(worker, boot, unpack(payload))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                log.event("metrics_unreadable", worker=worker, error=str(error))

        gate = GateServer(workers, max_waiting, on_samples=sampled, on_gone=fleet.gone)

        async def render() -> bytes:
            own = Metrics()
            own.set(f.WORKERS, await gate.scrape())
            show_pools(own, gate.stats())
            return exposition(merge([fleet.total(), own.dump()]))

        await gate.start(path)
        line.ready()
        async with asyncio.TaskGroup() as group:
            exporting = group.create_task(export(Exporter(render), metrics, log)) if metrics is not None else None
            await line.draining.wait()
            if exporting is not None:
                exporting.cancel()
        gate.close()

    return run_async(child, main)


async def export_alone(metrics: Metrics, stats: Callable[[], dict[str, PoolStats]], listen: tuple[str, int], log: _Log) -> None:
    """For a gateway with one worker and no gate process: the worker serves its own metrics. Runs until cancelled.

    Args:
        stats: of the in-process gate.
    """

    async def render() -> bytes:
        metrics.set(f.WORKERS, 1)
        show_pools(metrics, stats())
        return exposition(metrics.dump())

    await export(Exporter(render), listen, log)


def show_pools(metrics: Metrics, stats: dict[str, PoolStats]) -> None:
    """Set the gauges of the queue and the slots."""
    for deployment, pool in stats.items():
        metrics.set(f.QUEUE_DEPTH, pool.waiting, deployment)
        metrics.set(f.SLOTS_IN_USE, pool.in_flight, deployment)
        metrics.set(f.SLOTS_LIMIT, pool.limit, deployment)


async def export(exporter: Exporter, listen: tuple[str, int], log: _Log) -> None:
    """Serve metrics until cancelled. A taken port is logged and tried again: it is no reason to serve no requests."""
    host, port = listen
    told = False
    try:
        while True:
            try:
                await exporter.start(host, port)
                break
            except OSError as error:
                if not told:
                    log.event("metrics_port_taken", listen=f"{host}:{port}", error=error.strerror or str(error))
                told = True
                await asyncio.sleep(PORT_RETRY_S)
        await asyncio.get_running_loop().create_future()
    finally:
        with contextlib.suppress(RuntimeError):
            exporter.close()
