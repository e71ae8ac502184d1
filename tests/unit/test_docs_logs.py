"""docs/logs.md names every event that the program writes, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/logs.md").read_text()
SOURCE = "\n".join(path.read_text() for room in ("gateway", "backends") for path in sorted((ROOT / room).rglob("*.py")))
#: `sink.event("name"`, an engine host's `log("name"`, and a library-like record whose whole message is a name.
_WRITTEN = re.compile(r'(?:\.event\(|\b_?log\(|\blog\.(?:info|warning|error)\()\s*"([a-z]+(?:_[a-z]+)*)"')


def named() -> set[str]:
    """The events of the page: those of its table of events, and of the sentence on engine hosts."""
    _, _, events = PAGE.partition("## Events of the gateway")
    first_cells = " ".join(line.split("|")[1] for line in events.splitlines() if line.startswith("| `"))
    return set(re.findall(r"`([a-z_]+)`", first_cells + events.partition("Engine hosts write")[2])) - {"engine"}


def test_every_event_is_named() -> None:
    written = {name for name in _WRITTEN.findall(SOURCE) if name != "request"}
    assert len(written) > 40
    assert written - named() == set()


def test_no_event_is_named_that_nobody_writes() -> None:
    assert {name for name in named() if f'"{name}"' not in SOURCE} == set()
