"""The chat template out of each place where a model keeps it."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from backends.templates.sources import Source, read_source


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(*pairs: tuple[str, int, bytes], version: int = 3) -> bytes:
    """A GGUF without tensors: (key, kind, value)."""
    head = struct.pack("<4sIQQ", b"GGUF", version, 0, len(pairs))
    return head + b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)


TOKENS = ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("<end>") + text("b"))
EOS = ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 1))
SCORES = ("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 3) + bytes(12))
NESTED = ("x.nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 2) + bytes(8))
TEMPLATE = ("tokenizer.chat_template", 8, text("{{ x }}\n"))


def test_a_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(SCORES, NESTED, TOKENS, EOS, TEMPLATE))
    assert read_source(file) == Source("{{ x }}\n", "<end>")
    file.write_bytes(gguf(TEMPLATE, version=2))
    assert read_source(file) == Source("{{ x }}\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        gguf(TOKENS),
        gguf(TEMPLATE, version=1),
        gguf(TEMPLATE)[:-3],
        gguf(("x", 99, b"")),
        gguf(("x", 8, struct.pack("<Q", 1 << 60))),
        gguf(("x", 9, struct.pack("<IQ", 8, 1 << 60))),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 60),
    ],
)
def test_what_is_no_gguf_with_a_template(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    with pytest.raises(ValueError, match="GGUF"):
        read_source(file)


@pytest.mark.parametrize(
    ("config", "source"),
    [
        ({"chat_template": "T", "eos_token": "</s>"}, Source("T", "</s>")),
        ({"chat_template": "T", "eos_token": {"content": "<e>", "special": True}}, Source("T", "<e>")),
        ({"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]}, Source("D")),
        ({"chat_template": [{"name": "rag", "template": "R"}]}, Source("R")),
        ({"chat_template": "T", "eos_token": None}, Source("T")),
    ],
)
def test_tokenizer_config(config: dict[str, Any], source: Source, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_source(tmp_path / "tokenizer_config.json") == source
    assert read_source(tmp_path) == source


def test_a_folder_with_the_template_apart(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(" {{ y }} \n")
    assert read_source(tmp_path) == Source(" {{ y }} \n")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<e>", "chat_template": "old"}')
    assert read_source(tmp_path) == Source(" {{ y }} \n", "<e>")


def test_what_holds_no_template(tmp_path: Path) -> None:
    for name, data, why in (
        ("a.json", b"{}", "no `chat_template`"),
        ("b.json", b"[", "no JSON"),
        ("c.jinja", b"\xff\xfe", "UTF-8"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=why):
            read_source(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        read_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither"):
        read_source(tmp_path / "empty")
