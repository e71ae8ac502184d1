"""The Lua scripts, composed: a prologue that sets the clock, what they share, and the script's own body.

In production the clock is the server's (`TIME`): no worker's clock can mint quota. The test that compares the scripts
with `reference.py` composes them with `ORACLE_CLOCK`, which takes the instant as one more, last argument.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

SERVER_CLOCK = "local t = redis.call('TIME')\nlocal now = tonumber(t[1]) * 1000000 + tonumber(t[2])\n"
ORACLE_CLOCK = "local now = tonumber(ARGV[#ARGV])\n"

_FOLDER = Path(__file__).parent
#: A constant of counters.lua is put in where it is named: as a local, each function that uses it would capture it anew
#: at each call of a script, and those calls are most of what Redis does.
_CONSTANT = re.compile(r"^local ([A-Z][A-Z_]+) = ([\w'-]+).*\n", re.MULTILINE)
_CAPITALS = re.compile(r"\b[A-Z][A-Z_]+\b")


class Script(msgspec.Struct, frozen=True):
    """A script's text and the SHA-1 by which Redis calls it."""

    text: bytes
    sha: bytes


class Scripts(msgspec.Struct, frozen=True):
    """All scripts over one clock."""

    admit: Script
    settle: Script
    renew: Script
    sweep: Script
    peek: Script

    @property
    def all(self) -> tuple[Script, ...]:
        """In the order in which they are loaded."""
        return (self.admit, self.settle, self.renew, self.sweep, self.peek)


def compose(clock: str = SERVER_CLOCK) -> Scripts:
    """The scripts over a clock, read from the files beside this one."""
    return Scripts(
        admit=_script(clock, "counters", "admit"),
        settle=_script(clock, "counters", "settle"),
        renew=_script(clock, "counters", "renew"),
        sweep=_script(clock, "counters", "sweep", "settle"),
        peek=_script(clock, "counters", "peek"),
    )


def _script(clock: str, *parts: str) -> Script:
    text = clock + "\n".join((_FOLDER / f"{part}.lua").read_text("utf-8") for part in parts)
    constants = dict(_CONSTANT.findall(text))
    text = _CAPITALS.sub(lambda name: constants.get(name[0], name[0]), _CONSTANT.sub("", text))
    data = text.encode()
    return Script(data, hashlib.sha1(data, usedforsecurity=False).hexdigest().encode())
