"""What a result was measured on: processor, kernel, versions, revision, and how busy the machine was."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

from tests.gateway_process import ROOT
from tests.servers import redis_binary

_PACKAGES = ("uvicorn", "uvloop", "httptools", "msgspec", "redis", "hiredis")


def _said(*command: str) -> str:
    """What a program says about itself, on either output; empty when it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, cwd=ROOT)
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip()


def _processor() -> str:
    names = {line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line}
    return ", ".join(sorted(names)) or platform.machine()


def _revision() -> str:
    head = _said("git", "rev-parse", "--short", "HEAD") or "unknown"
    return head + (" and uncommitted changes" if _said("git", "status", "--porcelain", "--", "gateway", "backends") else "")


def describe(command: str) -> list[tuple[str, str]]:
    """Pairs of a name and a text, for the head of a report."""
    nginx = _said("nginx", "-v").rpartition("nginx/")[2] if shutil.which("nginx") else "not installed: no ratios"
    redis = next((w[2:] for w in _said(redis_binary() or "", "--version").split() if w.startswith("v=")), "unknown")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return [
        ("measured", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("command", f"`{command}`"),
        ("revision", _revision()),
        ("machine", f"{os.cpu_count()} x {_processor()}, {int(memory) / 2**20:.0f} GiB, Linux {platform.release()}"),
        ("load average at the end", " ".join(f"{value:.1f}" for value in os.getloadavg())),
        ("programs", f"Python {platform.python_version()}, nginx {nginx}, Redis {redis}"),
        ("packages", packages),
    ]
