"""Every command of ours that README and docs print is one: its words are what the command line takes."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What stands for a value in a printed command.
_PLACES = {"USD": "1", "WHEN": "1h"}
_OURS = re.compile(r"(?:^|[\s/])switchyard (?=[a-z])(.*)")


def blocks(text: str) -> Iterator[str]:
    """The lines of a page's shell blocks, continued ones joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        yield from block.replace("\\\n", " ").splitlines()


def alternatives(line: str) -> Iterator[list[str]]:
    """The words of each command of a line: `keys list | revoke ID` is two of them, `… > file` is cut."""
    line = re.split(r"\s#|\s[<>]\s|&&|  ", line.strip())[0].replace("…", "--help")
    if not (found := _OURS.search(line)):
        return
    first, *others = found[1].split(" | ")
    words = shlex.split(first)
    yield [_PLACES.get(word, word) for word in words]
    for other in others:
        yield [_PLACES.get(word, word) for word in (words[0], *shlex.split(other))]


PRINTED = [
    pytest.param(words, id=f"{page.name}: {shlex.join(words)}")
    for page in PAGES
    for line in blocks(page.read_text())
    if not re.match(
        r"\s*(cp|useradd|git|install|systemctl|cat|psql|docker compose run|runuser|pg_|createdb|dropdb|chown)\b", line
    )
    for words in alternatives(line)
]
#: Such as `switchyard keys new` in a sentence.
MENTIONED = sorted({
    (page.name, *found.split()[:2])
    for page in PAGES
    for found in re.findall(r"`switchyard ([a-z]+(?: [a-z]+)?)", page.read_text())
})  # fmt: skip


def said(words: list[str]) -> str:
    """What the command line says against these words; "" when it takes them."""
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser().parse_args(words)
        except SystemExit as end:
            return "" if end.code == 0 else out.getvalue()
    return ""


def test_there_are_commands_to_hold() -> None:
    assert len(PRINTED) > 20 and len(MENTIONED) > 20


@pytest.mark.parametrize("words", PRINTED)
def test_a_printed_command_is_one(words: list[str]) -> None:
    assert said(words) == ""


@pytest.mark.parametrize("mention", MENTIONED, ids=" ".join)
def test_a_mentioned_command_is_one(mention: tuple[str, ...]) -> None:
    page, *words = mention
    assert said([*words, "--help"]) == "", page


def test_a_wrong_one_would_be_told() -> None:
    assert "invalid choice" in said(["mint", "--help"])
    assert "--scopes" in said(["keys", "new", "--name", "x", "--scopes", "admin"])
    assert list(alternatives("switchyard keys list | revoke ID   # both")) == [["keys", "list"], ["keys", "revoke", "ID"]]
