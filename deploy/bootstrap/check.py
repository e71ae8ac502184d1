"""The checks of `make test`, each with its seconds; pytest comes last, so that its closing line is the last one.

python -m deploy.bootstrap.check [lint|type|deploy|deploy-quick|image ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from deploy.bootstrap.places import CHAT_MODEL, EMBED_MODEL, Places

_LINT = ("ruff format", "ruff check", "import-linter")
_TYPE = ("mypy",)
_IMAGE = "tests/deploy/test_image.py"
_FLEET = "tests/deploy/test_replicas.py"
_GROUPS = {"lint": _LINT, "type": _TYPE, **{name: (name,) for name in ("deploy", "deploy-quick", "image")}}


def commands() -> dict[str, list[str]]:
    """Every check by name, in order."""
    python = sys.executable
    scripts = Path(python).parent
    deploy = [python, "-m", "pytest", "-m", "deploy", "-v", "-rs", "--durations=5"]
    return {
        "ruff format": [python, "-m", "ruff", "format", "--check", "--quiet", "."],
        "ruff check": [python, "-m", "ruff", "check", "--quiet", "."],
        "import-linter": [str(scripts / "lint-imports")],
        "mypy": [python, "-m", "mypy"],
        "deploy": [*deploy, "tests/deploy", f"--ignore={_IMAGE}"],
        "deploy-quick": [*deploy, "tests/deploy", f"--ignore={_IMAGE}", f"--ignore={_FLEET}"],
        "image": [*deploy, _IMAGE],
        "pytest": [python, "-m", "pytest", "-m", "not heavy and not gpu and not deploy"],
    }


def model_variables(root: Path) -> dict[str, str]:
    """The environment variables by which tests find the installed models."""
    models = Places(root).models
    return {"SWITCHYARD_TEST_CHAT_GGUF": str(models / CHAT_MODEL), "SWITCHYARD_TEST_EMBED_GGUF": str(models / EMBED_MODEL)}


def main(arguments: list[str]) -> int:
    """Run the checks asked for, all without arguments; stops at the first that fails and returns its exit status."""
    if unknown := [one for one in arguments if one not in _GROUPS]:
        print(f"unknown: {unknown[0]}; known: {', '.join(_GROUPS)}", file=sys.stderr)
        return 2
    chosen = tuple(name for one in arguments for name in _GROUPS[one]) or (*_LINT, *_TYPE, "pytest")
    environment = {**model_variables(Path.cwd()), **os.environ}
    for name in chosen:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        code = subprocess.run(commands()[name], env=environment, check=False).returncode
        if name != "pytest":
            print(f"== {name}: {'ok' if code == 0 else 'failed'}, {time.monotonic() - began:.1f} s", flush=True)
        if code != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
