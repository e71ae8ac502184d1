"""References to secrets: `env:NAME` and `file:PATH`, resolved at load, so that no secret stands in a configuration file."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: Bytes of a secret file: far above any real key.
MAX_SECRET_BYTES = 64 * 1024


class BadReference(Exception):
    """A reference that leads nowhere; `mend` says what to do. Neither text holds a secret."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.mend = mend


def is_reference(text: str) -> bool:
    """Whether a text is a reference rather than a value."""
    return text.startswith(("env:", "file:"))


def resolve_reference(text: str, base: Path) -> str:
    """The secret that a reference stands for, stripped of surrounding white space.

    Args:
        text: `env:NAME` or `file:PATH`; a relative path is taken from `base`.
        base: the folder of the configuration file.

    Raises:
        BadReference: not a reference, or the variable or file is missing or empty.
    """
    kind, _, rest = text.partition(":")
    if kind == "env":
        return _from_environment(rest)
    if kind == "file":
        return _from_file(rest, base)
    raise BadReference("a secret is written here as it is", "write env:NAME or file:PATH and keep the secret there")


def _from_environment(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadReference("env: needs the name of a variable", "write env:NAME, for instance env:VENDOR_KEY")
    value = os.environ.get(name, "").strip()
    if not value:
        raise BadReference(f"the environment variable {name} is not set or empty", f"set {name} before the start")
    return value


def _from_file(text: str, base: Path) -> str:
    path = base / text
    try:
        with path.open("rb") as source:
            data = source.read(MAX_SECRET_BYTES + 1)
        value = data.decode("utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not readable as text"
        raise BadReference(f"the file {path} cannot be read: {reason}", "create it, readable for the gateway's user") from error
    if not value:
        raise BadReference(f"the file {path} is empty", "write the secret into it")
    if len(data) > MAX_SECRET_BYTES:
        raise BadReference(f"the file {path} has more than {MAX_SECRET_BYTES} bytes", "name the file of the secret alone")
    return value
