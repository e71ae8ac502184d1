"""Making the host's socket: 0600, in a directory of this user alone."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from backends.engines.options import EngineLoadFailed

BACKLOG = 256


def listen(path: str) -> socket.socket:
    """A listening 0600 socket in a 0700 directory; a dead predecessor's socket file is replaced.

    Raises:
        EngineLoadFailed: the directory is another user's or open to others, or the path is taken by another file.
    """
    directory = Path(path).parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = directory.stat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise EngineLoadFailed(f"the socket's directory {directory} must be this user's alone (mode 0700)")
    if os.path.lexists(path):
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            raise EngineLoadFailed(f"{path} exists and is not a socket")
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener
