"""An engine host runs in the engine's own environment: of what Switchyard needs, only msgspec and jinja2 are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backends.engines.kinds import ENGINES

_ALONE = """
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

class Bare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("backends", "msgspec", "jinja2", "markupsafe"):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and "site-packages" in str(spec.origin):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Bare())
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("kind", ["vllm", "transformers", "scripted"])
def test_it_needs_nothing_else_to_begin(kind: str) -> None:
    module = ENGINES[kind].partition(":")[0]
    command = [sys.executable, "-c", _ALONE, "backends.engines.host", module, "backends.wire.json_body"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
