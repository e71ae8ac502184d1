"""Memory of a fresh gateway's worker: idle, after load, and with many streams open; and how soon it is ready."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path
from typing import cast

from tests.bench.accounting import cpu_between, cpu_times, pss_kib, tree
from tests.bench.figures import Memory
from tests.bench.programs import KEY, PATH, Bench
from tests.bench.rounds import Loaded, measuring, run_load
from tests.bench.scenarios import SCENARIOS, SLOW_MODEL
from tests.gateway_process import GatewayProcess

STREAMS = 1000
STARTS = 3


def worker_pid(gateway: GatewayProcess) -> int:
    """The process id of the one worker, by the gateway's own log."""
    started = [event for event in gateway.events("process_started") if event["role"] == "worker-0"]
    return cast(int, started[-1]["child"])


def root_pid(gateway: GatewayProcess) -> int:
    """The supervisor's process id."""
    assert gateway.process is not None
    return gateway.process.pid


def measure(bench: Bench, name: str = "memory", starts: int = STARTS, streams: int = STREAMS) -> Memory:
    """Start gateways of their own, one after the other, and look at the last one's memory.

    Raises:
        RuntimeError: not all of the streams were open when they were counted.
    """
    with measuring():
        ready_s, start_cpu_s = [], []
        for number in range(starts):
            began = time.monotonic()
            gateway = bench.gateway(f"{name}-{number}")
            ready_s.append(time.monotonic() - began)
            start_cpu_s.append(cpu_between({}, cpu_times([root_pid(gateway)])))
            if number < starts - 1:
                gateway.stop()
        time.sleep(1)
        worker, root = worker_pid(gateway), root_pid(gateway)
        loaded = Loaded("gateway", gateway.url + PATH, KEY, (root,))
        idle = pss_kib([worker]), pss_kib(tree([root]))
        # One short load first, so that code and pools that every request needs are not taken for a stream's memory.
        run_load(bench.load, bench.cores.loading, loaded, SCENARIOS["ns64"].arguments, 1.0)
        time.sleep(1)
        before = pss_kib([worker])
        during = _with_open_streams(bench, loaded, worker, streams)
        for scenario in ("ns64", "st64"):
            run_load(bench.load, bench.cores.loading, loaded, SCENARIOS[scenario].arguments, 2.0)
        time.sleep(1)
        after = pss_kib([worker]), pss_kib(tree([root]))
        gateway.stop()
    return Memory(
        ready_s=statistics.median(ready_s),
        start_cpu_s=statistics.median(start_cpu_s),
        idle_worker=idle[0],
        idle_tree=idle[1],
        loaded_worker=after[0],
        loaded_tree=after[1],
        per_stream=(during - before) / streams,
        streams=streams,
    )


def _with_open_streams(bench: Bench, loaded: Loaded, worker: int, streams: int) -> int:
    """PSS of the worker in KiB while this many streams are open and get a chunk each second."""
    arguments = ["-S", "-c", str(streams), "-m", SLOW_MODEL, "-w", "0", "-d", "8", "-u", loaded.url, "-k", loaded.key]
    command = ["taskset", "-c", str(bench.cores.loading), str(bench.load), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as load:
        time.sleep(6)
        during = pss_kib([worker])
        open_now = _established(worker)
        load.communicate(timeout=30)
    if open_now < 2 * streams:
        raise RuntimeError(f"only {open_now} connections were open for {streams} streams")
    return during


def _established(pid: int) -> int:
    """Open TCP connections of a process, both sides of a gateway counted."""
    own = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(str(fd.readlink()))
        except OSError:
            continue
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return sum(f[3] == "01" and f"socket:[{f[9]}]" in own for f in (line.split() for line in lines))
