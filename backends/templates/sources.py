"""Where a model keeps its chat template: a jinja file, Hugging Face's tokenizer files, or the metadata of a GGUF.

Sources: transformers 5.x (`chat_template.jinja`, `tokenizer_config.json` with `chat_template` a text or a list of named
ones), ggml docs/gguf.md (version 2 and 3, little-endian; `tokenizer.chat_template`, `tokenizer.ggml.eos_token_id`).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

#: Largest file of text that is read, in bytes.
MAX_BYTES = 16 << 20
_MAX_PAIRS = 10_000
_MAX_ITEMS = 4_000_000
_TEMPLATE, _EOS, _TOKENS = "tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.tokens"
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


class Source(NamedTuple):
    """A template's source, the text of the token that ends a turn, which some templates write, and the strings that end an
    answer under it.
    """

    template: str
    eos_token: str = ""
    stops: tuple[str, ...] = ()


def read_source(path: Path) -> Source:
    """The chat template that a file holds, or that a model's folder does.

    Raises:
        ValueError: there is none, or it cannot be read; in words for whoever configured it.
    """
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".gguf":
        return _of_gguf(path)
    text = _text(path)
    return _of_config(text) if path.suffix == ".json" else Source(text)


def _of_folder(folder: Path) -> Source:
    config = folder / "tokenizer_config.json"
    apart = folder / "chat_template.jinja"
    if apart.is_file():
        return Source(_text(apart), _eos(_object(_text(config))) if config.is_file() else "")
    if config.is_file():
        return _of_config(_text(config))
    raise ValueError("the folder has neither chat_template.jinja nor tokenizer_config.json")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"the file is larger than {MAX_BYTES >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError:
        raise ValueError("the file is no UTF-8 text") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the file is no JSON") from None
    return value if isinstance(value, dict) else {}


def _of_config(text: str) -> Source:
    """`tokenizer_config.json` or `chat_template.json`; of several templates the one named `default`."""
    config = _object(text)
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    if not isinstance(found, str) or not found:
        raise ValueError("the file has no `chat_template`")
    return Source(found, _eos(config))


def _eos(config: dict[str, Any]) -> str:
    """A token is written as its text, or as an object with `content`."""
    token = config.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _of_gguf(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            return _read_gguf(file)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or type(error).__name__}") from None
    except (struct.error, UnicodeDecodeError, OverflowError):
        raise ValueError("the GGUF's metadata cannot be read") from None


def _read_gguf(file: BinaryIO) -> Source:
    magic, version, _, pairs = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version not in (2, 3) or pairs > _MAX_PAIRS:
        raise ValueError("the file is no GGUF of version 2 or 3")
    found: dict[str, Any] = {}
    for _ in range(pairs):
        key = _string(file)
        (kind,) = struct.unpack("<I", file.read(4))
        value = _value(file, kind, keep=key in (_TEMPLATE, _EOS, _TOKENS))
        if key in (_TEMPLATE, _EOS, _TOKENS):
            found[key] = value
    template, eos, tokens = found.get(_TEMPLATE), found.get(_EOS), found.get(_TOKENS)
    if not isinstance(template, str) or not template:
        raise ValueError("the GGUF has no chat template")
    known = isinstance(tokens, list) and isinstance(eos, int) and 0 <= eos < len(tokens)
    return Source(template, str(tokens[eos]) if known and tokens is not None and eos is not None else "")


def _value(file: BinaryIO, kind: int, *, keep: bool) -> Any:
    if kind == _TEXT:
        return _string(file)
    if kind in _FIXED:
        (value,) = struct.unpack("<" + _FIXED[kind], file.read(struct.calcsize("<" + _FIXED[kind])))
        return value
    if kind != _ARRAY:
        raise ValueError(f"the GGUF's metadata has a value of the unknown kind {kind}")
    inner, count = struct.unpack("<IQ", file.read(12))
    if count > _MAX_ITEMS:
        raise ValueError("the GGUF's metadata has a list that is too long")
    if inner in _FIXED and not keep:
        file.seek(struct.calcsize("<" + _FIXED[inner]) * count, 1)
        return None
    return [_value(file, inner, keep=keep) for _ in range(count)]


def _string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    if size > MAX_BYTES:
        raise ValueError("the GGUF's metadata has a text that is too long")
    data = file.read(size)
    if len(data) != size:
        raise ValueError("the GGUF ends inside its metadata")
    return data.decode("utf-8", "replace")
