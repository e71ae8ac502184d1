"""Files that describe a model, looked at when the configuration is checked, so that a mistake is found before a start."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path


def tokenizer_problem(path: Path) -> tuple[str, str] | None:
    """Problem and mend of a tokenizer.json, which is looked at, but not loaded; None = it may be used."""
    mend = "write the path of a model's tokenizer.json"
    if importlib.util.find_spec("tokenizers") is None:
        return "the extra `tokenizers` is not installed", "pip install 'switchyard[tokenizers]'"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return "it cannot be read, or is no JSON", mend
    if not isinstance(found, dict) or "model" not in found:
        return "it is no tokenizer of Hugging Face's form", mend
    return None


def weights_mb(path: Path) -> int:
    """MiB of a model's file, or of all files in its folder; 0 when there is nothing."""
    try:
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        return sum(one.stat().st_size for one in files) >> 20
    except OSError:
        return 0
