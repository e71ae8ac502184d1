"""Rounds of load, interleaved: A B C, C B A, A B C …, so that what drifts on the machine drifts for all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.accounting import cpu_between, cpu_times
from tests.bench.scenarios import Scenario, Target


@dataclass(frozen=True)
class Loaded:
    """Who is loaded. `roots`: the processes whose trees are its CPU."""

    name: Target
    url: str
    key: str
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One run of the load generator. `load` is what it printed; CPU and wall time include its warm-up, as `all_*` does."""

    load: dict[str, Any]
    cpu_s: float
    redis_cpu_s: float
    wall_s: float

    def cpu_us(self, unit: str) -> float | None:
        """CPU microseconds per request or chunk; None when nothing was served."""
        served = self.load["all_chunks" if unit == "chunk" else "all_ok"]
        return self.cpu_s * 1e6 / served if served else None

    @property
    def redis_us(self) -> float | None:
        """CPU microseconds of Redis per request that was answered."""
        return self.redis_cpu_s * 1e6 / self.load["all_ok"] if self.load["all_ok"] else None

    @property
    def busy(self) -> float:
        """The part of its core that the loaded one used."""
        return self.cpu_s / self.wall_s


#: Samples by scenario and target, in the order of the rounds.
Samples = dict[str, dict[str, list[Sample]]]


def order(names: Sequence[Target], round_: int) -> list[Target]:
    """Who comes when: every other round runs backwards."""
    return list(names) if round_ % 2 == 0 else list(reversed(names))


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Wait until no other measurement runs on this machine, and keep others out."""
    with (Path(tempfile.gettempdir()) / f"switchyard-bench-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_load(program: Path, core: int, loaded: Loaded, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run the load generator once; what it printed.

    Raises:
        RuntimeError: it failed.
    """
    command = ["taskset", "-c", str(core), str(program), "-u", loaded.url, "-k", loaded.key, "-d", str(seconds), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def sample(program: Path, core: int, loaded: Loaded, redis: int, scenario: Scenario, seconds: float) -> Sample:
    """One run, with its costs."""
    before, redis_before, began = cpu_times(loaded.roots), cpu_times([redis]), time.monotonic()
    load = run_load(program, core, loaded, scenario.arguments, seconds)
    after, redis_after, ended = cpu_times(loaded.roots), cpu_times([redis]), time.monotonic()
    return Sample(load, cpu_between(before, after), cpu_between(redis_before, redis_after), ended - began)


def run_rounds(
    program: Path, core: int, targets: dict[Target, Loaded], redis: int, scenario: Scenario, rounds: int, seconds: float
) -> dict[str, list[Sample]]:
    """All rounds of one scenario, under the lock; targets that are not there are left out."""
    there = [name for name in scenario.targets if name in targets]
    samples: dict[str, list[Sample]] = {name: [] for name in there}
    with measuring():
        for round_ in range(rounds):
            for name in order(there, round_):
                samples[name].append(sample(program, core, targets[name], redis, scenario, seconds))
                time.sleep(0.2)  # what the last run left open ends in its own time, not in the next one's
    return samples
