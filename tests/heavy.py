"""Interpreters of the environments that have vLLM or transformers: not those of the tests, whose libraries they would change.

`make test-engines` makes them and names them in SWITCHYARD_VLLM_PYTHON and SWITCHYARD_TRANSFORMERS_PYTHON.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: Nothing is looked for on a hub.
OFFLINE = {"HF_HUB_OFFLINE": "1"}
#: vLLM's variables on a machine without a GPU: a GiB of cache is plenty for a tiny model.
VLLM_ON_CPU = {**OFFLINE, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}


def python(library: str) -> Path:
    """The interpreter that has this library; skips the test, with the reason, where none is named."""
    variable = f"SWITCHYARD_{library.upper()}_PYTHON"
    named = os.environ.get(variable)
    if not named:
        pytest.skip(
            f"{library} is heavy and in an environment of its own: `make test-engines` runs this ({variable} is not set)"
        )
    return Path(named)


def tiny_model(python: Path) -> Path:
    """The folder of the tiny chat model, made when it is not there."""
    from tests.tiny_model import made_by

    return made_by(python)
