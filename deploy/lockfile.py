"""Whether `deploy/requirements.lock` is in step with pyproject.toml: `python -m deploy.lockfile`.

The lock has what the image installs: the dependencies and the extras below, every one of them at one version with the hashes
of its files. How it is made anew, where a registry can be reached:

    uv pip compile pyproject.toml --extra llamacpp --extra postgres --extra tokenizers --extra otel \\
        --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \\
        --no-emit-index-url --no-emit-find-links -o deploy/requirements.lock
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "deploy" / "requirements.lock"
#: The extras that the image has.
EXTRAS = ("llamacpp", "postgres", "tokenizers", "otel")


class Pin(NamedTuple):
    """One package of the lock."""

    name: str
    version: str
    hashes: int


def pins(text: str) -> list[Pin]:
    """The packages of a lock file.

    Raises:
        ValueError: a line that is neither a pin nor a hash.
    """
    out: list[Pin] = []
    for line in text.splitlines():
        stripped = line.strip().removesuffix("\\").strip()
        if not stripped or stripped.startswith("#"):
            continue
        if re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", stripped):
            out[-1] = out[-1]._replace(hashes=out[-1].hashes + 1)
        elif found := re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;]+)(?: ?; ?.*)?", stripped):
            out.append(Pin(canonicalize_name(found[1]), found[2], 0))
        else:
            raise ValueError(f"no pin and no hash: {stripped[:80]}")
    return out


def problems(project: str, lock: str) -> list[str]:
    """What does not fit between pyproject.toml and the lock; empty when they are in step."""
    wrong = ["the lock names an address"] if "://" in lock else []
    locked = {pin.name: pin for pin in pins(lock)}
    wrong += [f"{pin.name}=={pin.version} has no hash" for pin in locked.values() if not pin.hashes]
    declared = tomllib.loads(project)["project"]
    lines = [*declared["dependencies"], *(line for extra in EXTRAS for line in declared["optional-dependencies"][extra])]
    for line in lines:
        wanted = Requirement(line)
        pin = locked.get(canonicalize_name(wanted.name))
        if pin is None:
            wrong.append(f"{wanted.name} is not in the lock")
        elif not wanted.specifier.contains(pin.version, prereleases=True):
            wrong.append(f"{line} is wanted, the lock has {pin.version}")
    return wrong


def main() -> int:
    """Say what is wrong; 1 when something is."""
    found = problems((ROOT / "pyproject.toml").read_text(), LOCK.read_text())
    for line in found:
        print(line)
    if found:
        print(f"make it anew: see {Path(__file__).relative_to(ROOT)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
