"""The embedded default: what `switchyard serve` runs without a configuration file.

Two real models in local llama.cpp engines, one worker, limits in the process, SQLite in `var/`, nothing listening
beyond this machine. `make run` lays the two model files into `models/`.
"""

from __future__ import annotations

from pathlib import Path

from gateway.config.loader import load_tree
from gateway.config.settings import Configuration

CHAT_MODEL_FILE = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBED_MODEL_FILE = "models/all-MiniLM-L6-v2.f16.gguf"
NAME = "embedded default"


def embedded_tree() -> dict[str, object]:
    """The embedded default as the values that a file would have."""
    return {
        "server": {"listen": "127.0.0.1:8080", "workers": 1},
        "engines": {
            "chat": {"kind": "llamacpp", "model": CHAT_MODEL_FILE, "slots": 8, "context": 2048},
            "embed": {"kind": "llamacpp", "model": EMBED_MODEL_FILE, "slots": 8, "context": 512, "embedding": True},
        },
        "deployments": {
            "chat-local": {"engine": "chat", "model": "SmolLM2-135M-Instruct"},
            "embed-local": {"engine": "embed", "model": "all-MiniLM-L6-v2"},
        },
        "models": {
            "chat": {"tiers": [["chat-local"]], "context": 2048, "default_output_tokens": 512, "owned_by": "HuggingFaceTB"},
            "embed": {
                "tiers": [["embed-local"]],
                "context": 512,
                "default_output_tokens": 1,
                "owned_by": "sentence-transformers",
            },
        },
    }


def embedded_configuration(base: Path) -> Configuration:
    """The embedded default with relative paths (`models/`, `var/`) taken from `base`; the environment still wins.

    Raises:
        ConfigError: the environment sets something that cannot be used.
    """
    return load_tree(embedded_tree(), base, NAME)
