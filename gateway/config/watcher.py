"""Decides when a changed configuration file may be read: only after it was left alone for a while.

An editor or a config map writes in several steps; reading in between would see half a file. Pure: the caller looks at
the file and the clock, and reads when told to.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

STABLE_MS = 200


class Stamp(NamedTuple):
    """What tells two states of a file apart. A replaced file (rename, symlink swing) has another inode."""

    inode: int
    size: int
    modified_ns: int


def stamp_of(path: Path) -> Stamp | None:
    """The file's present stamp, None when it is absent or unreadable. Follows symbolic links, as config maps need."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


class Watcher:
    """Feed it the file's stamp now and then; it answers whether the file should be read now.

    Args:
        loaded: the stamp of the state that is in use.
    """

    def __init__(self, loaded: Stamp | None) -> None:
        self._loaded = loaded
        self._seen = loaded
        self._since_ms = 0

    def look(self, stamp: Stamp | None, now_ms: int) -> bool:
        """True once per change, when it has been stable for `STABLE_MS`. A vanished file is no change: it may be mid-rename."""
        if stamp is None:
            self._seen = None
            return False
        if stamp != self._seen:
            self._seen = stamp
            self._since_ms = now_ms
            return False
        if stamp == self._loaded or now_ms - self._since_ms < STABLE_MS:
            return False
        self._loaded = stamp
        return True
