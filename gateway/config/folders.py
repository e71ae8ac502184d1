"""The folders that the gateway keeps things in: private to its user, or refused.

`run_dir` may lie in the system's temporary folder, where others could have made a folder of that name first.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gateway.config.problems import ConfigError, Problem


def make_private(path: Path, key: str) -> None:
    """Make a folder with mode 0700, or check that an existing one is ours and that others cannot write to it.

    Args:
        path: the folder.
        key: the configuration key that it comes from, for the error.

    Raises:
        ConfigError: it cannot be made, is no folder, is a link, belongs to another user, or others may write to it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise _refused(key, f"the folder {path} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(key, f"{path} is no folder")
    if found.st_uid != os.geteuid():
        raise _refused(key, f"the folder {path} belongs to another user")
    if found.st_mode & 0o022:
        raise _refused(key, f"others may write to the folder {path}")


def _refused(key: str, problem: str) -> ConfigError:
    return ConfigError([Problem("folders", key, problem, f"name a folder of the gateway's own user, or chmod 700 it: {key}")])
