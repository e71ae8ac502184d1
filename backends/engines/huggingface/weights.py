"""Whether a folder's weight files are whole, told before a library loads them: its own words for a cut file are seldom of use.

Source: safetensors' README: 8 bytes of the header's length (little-endian), the header as JSON with each tensor's
`data_offsets`, then the data up to the largest of them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from backends.engines.options import EngineLoadFailed

#: Bytes of a header at most, as the format says.
_MOST = 100_000_000


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int] = (0, 0)


_read = msgspec.json.Decoder(dict[str, _Tensor]).decode


def check_weights(folder: str) -> None:
    """Look at every safetensors file of a folder; a name on a hub, or other formats, are left to the library.

    Raises:
        EngineLoadFailed: which file is broken or cut short.
    """
    if not Path(folder).is_dir():
        return
    for file in sorted(Path(folder).glob("*.safetensors")):
        if problem := _problem(file):
            raise EngineLoadFailed(f"{file} {problem}")


def _problem(file: Path) -> str:
    try:
        size = file.stat().st_size
        with file.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            if not 2 <= length <= min(_MOST, size - 8):
                return "is no safetensors file, or is cut short"
            tensors = _read(source.read(length))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "is no safetensors file: its header is broken"
    end = 8 + length + max((one.data_offsets[1] for one in tensors.values()), default=0)
    return f"is cut short: it has {size} bytes of {end}" if size < end else ""
