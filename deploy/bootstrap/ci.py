"""What `.ci/run` does after `make test`, while its time lasts: the deployment's tests, but for the image and the fleet.

    .venv/bin/python -m deploy.bootstrap.ci SECONDS_SPENT

Such a step fails when what it tests is wrong. What it merely lacks here (packages from apt, disk, time) is no fault of the
code: then the step is left out, and a line says why. Each step tells its seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

#: Seconds that the whole may take, `make test` among it.
BUDGET_S = 45 * 60.0
_STOP_S = 20.0


class Step(NamedTuple):
    """`needs_s`: it is not begun with less time left. `must`: whether its failure is the code's."""

    name: str
    command: Sequence[str]
    needs_s: float
    must: bool = True
    free_gb: float = 0.0


def steps(python: str) -> list[Step]:
    """In order; what comes after an optional step that failed needs it, and is left out too."""
    check = (python, "-m", "deploy.bootstrap.check")
    return [
        Step("install-deploy", ("make", "install-deploy"), 300, must=False, free_gb=2),
        # `make test-deploy` has more: a fleet that fails over wants a machine of its own for two minutes, and the image takes
        # 10 GB of disk, root, and what others serve.
        Step("deploy", (*check, "deploy-quick"), 480),
    ]


def main(arguments: list[str]) -> int:
    """Run what fits; the exit status of the first step that failed and must not."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        print("usage: python -m deploy.bootstrap.ci SECONDS_SPENT", file=sys.stderr)
        return 2
    ends = time.monotonic() + BUDGET_S - float(arguments[0])
    for step in steps(sys.executable):
        began = time.monotonic()
        if reason := _impossible(step, ends - began):
            print(f"== {step.name}: LEFT OUT, {reason}", flush=True)
            continue
        print(f"== {step.name}: begins, {ends - began:.0f} s are left", flush=True)
        code = _run(step, ends - began)
        taken = f"{time.monotonic() - began:.0f} s"
        if code is None:
            print(f"== {step.name}: LEFT OUT, it did not end in the time that was left, {taken}", flush=True)
        elif code and step.must:
            print(f"== {step.name}: failed, {taken}", flush=True)
            return code
        elif code:
            print(f"== {step.name}: LEFT OUT with all that follows, it cannot be done here (see above), {taken}", flush=True)
            return 0
        else:
            print(f"== {step.name}: ok, {taken}", flush=True)
    return 0


def _impossible(step: Step, left_s: float) -> str:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    if left_s < step.needs_s:
        return f"{max(left_s, 0):.0f} s are left of {BUDGET_S:.0f}, and it may take {step.needs_s:.0f}"
    if free_gb < step.free_gb:
        return f"it takes {step.free_gb:.0f} GB of disk, and {free_gb:.1f} GB are free"
    return ""


def _run(step: Step, within_s: float) -> int | None:
    """The exit status; None where its time ran out, and it was stopped with all its children."""
    process = subprocess.Popen(step.command, start_new_session=True)
    try:
        return process.wait(within_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
