"""Where the key pepper comes from when no configuration names one: a 0600 file in the state directory."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from gateway.auth.keys import WeakPepper, check_pepper


def load_or_create_pepper(path: Path) -> bytes:
    """The pepper kept in a file, made with 32 random bytes (as hex) at first use.

    Two processes that start at once end up with the same one: the file appears whole or not at all.

    Raises:
        WeakPepper: the file is empty or short, or others than its owner may read it.
        OSError: it can be neither read nor made.
    """
    with suppress(FileNotFoundError):
        return _load(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".pepper-")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_hex(32).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A hard link fails where the name exists, so the process that comes second keeps the first one's pepper.
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
    return _load(path)


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        pepper = file.read(4096).strip()
    if mode & 0o077:
        raise WeakPepper(f"the pepper file {path} may be read by others than its owner: chmod 600 it")
    try:
        return check_pepper(pepper)
    except WeakPepper as weak:
        raise WeakPepper(f"the pepper file {path}: {weak}") from None
