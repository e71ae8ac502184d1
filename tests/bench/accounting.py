"""What processes cost: CPU time of a process tree in nanoseconds, and memory as PSS, both from /proc (Linux, proc(5)).

CPU time is the first field of each thread's `schedstat`, so it does not depend on clock ticks nor on who else runs.
A thread that ended between two looks is not counted; gateways and proxies keep theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
#: CPU ns by (process, thread).
CpuTimes = dict[tuple[int, int], int]


def tree(roots: Iterable[int], proc: Path = PROC) -> set[int]:
    """The processes and all their descendants that live now."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The second field is a name in brackets that may hold anything; the parent is the second after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    left = list(roots)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def cpu_times(roots: Iterable[int], proc: Path = PROC) -> CpuTimes:
    """CPU time so far of each thread of the trees."""
    times: CpuTimes = {}
    for pid in tree(roots, proc):
        with contextlib.suppress(OSError):
            for task in (proc / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    times[pid, int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return times


def cpu_between(before: CpuTimes, after: CpuTimes) -> float:
    """Seconds of CPU used from one look to the other; a thread that is new counts whole."""
    return sum(max(0, spent - before.get(thread, 0)) for thread, spent in after.items()) / 1e9


def pss_kib(pids: Iterable[int], proc: Path = PROC) -> int:
    """Proportional set size: private memory, and of shared pages each process's share. KiB.

    Raises:
        OSError: a process is gone or belongs to somebody else.
    """
    total = 0
    for pid in pids:
        lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
