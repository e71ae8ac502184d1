"""What a host started does not outlive it, however it ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
CODE = """
import subprocess, sys, time
from backends.engines.guardian import guard
kept = guard()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid if kept else "unguarded", flush=True)
time.sleep(float(sys.argv[1]))
"""


def started(lasts_s: float, group: int | None) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(lasts_s)], cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=group
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("killed", [True, False])
def test_its_children_end_with_it(killed: bool) -> None:
    process, said = started(600 if killed else 0.1, 0)
    child = psutil.Process(int(said))
    if killed:
        process.kill()
    process.wait(30)
    end = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_group_that_is_not_its_own_is_left_alone() -> None:
    process, said = started(600, None)
    assert said == "unguarded"
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait(30)
