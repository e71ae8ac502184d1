"""Weight files that are cut or broken are told before a library loads them."""

import json
from pathlib import Path

import pytest

from backends.engines.huggingface.weights import check_weights
from backends.engines.options import EngineLoadFailed


def file(folder: Path, data: bytes) -> Path:
    made = folder / "model.safetensors"
    made.write_bytes(data)
    return made


def whole(size: int = 24) -> bytes:
    header = json.dumps({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    }).encode()  # fmt: skip
    return len(header).to_bytes(8, "little") + header + bytes(size)


def test_what_is_whole_or_not_ours_to_judge(tmp_path: Path) -> None:
    check_weights("organisation/name")
    check_weights(str(tmp_path))
    file(tmp_path, whole())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    check_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (whole()[:40], "cut short"),
        (whole(23), "of"),
        (b"\xff" * 200, "no safetensors"),
        ((10).to_bytes(8, "little") + b"{" * 10, "header is broken"),
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "header is broken"),
        ((17).to_bytes(8, "little") + b'{"a":{"data_offse', "header is broken"),
    ],
)
def test_what_is_not(tmp_path: Path, data: bytes, words: str) -> None:
    made = file(tmp_path, data)
    with pytest.raises(EngineLoadFailed, match=words) as failed:
        check_weights(str(tmp_path))
    assert str(made) in str(failed.value)
