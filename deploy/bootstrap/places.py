"""Where the installer keeps what: everything under the checkout, nothing elsewhere."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

CHAT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBED_MODEL = "all-MiniLM-L6-v2.f16.gguf"


class Places(NamedTuple):
    """`venv` is what runs, `tools` builds it (cmake, ninja, gguf), `build` can be deleted at any time."""

    root: Path

    @property
    def venv(self) -> Path:
        """The environment that serves."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin/python"

    @property
    def build(self) -> Path:
        """Sources, objects, logs and stamps."""
        return self.root / ".build"

    @property
    def tools(self) -> Path:
        """The environment of what is needed only to build."""
        return self.build / "tools"

    @property
    def models(self) -> Path:
        """The two models' files."""
        return self.root / "models"

    def tool(self, name: str) -> Path:
        """A build tool's path."""
        return self.tools / "bin" / name

    def package(self, name: str) -> Path:
        """The folder of a package installed in `venv`."""
        return next(iter(sorted(self.venv.glob("lib/python3*/site-packages"))), self.venv / "lib") / name


def llama_requirement(root: Path) -> str:
    """The pinned llama-cpp-python of pyproject's extra `llamacpp`, such as `llama-cpp-python==0.3.36`."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extra: list[str] = project["project"]["optional-dependencies"]["llamacpp"]
    return next(one for one in extra if one.startswith("llama-cpp-python"))
