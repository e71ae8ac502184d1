"""The lock file is in step with pyproject.toml, and the check finds when it is not."""

from __future__ import annotations

import pytest

from deploy.lockfile import LOCK, ROOT, Pin, pins, problems

PROJECT = """
[project]
name = "x"
dependencies = ["starlette>=1.0.1", "redis[hiredis]>=5"]
[project.optional-dependencies]
llamacpp = []
postgres = []
tokenizers = ["Tokenizers>=0.20"]
otel = []
"""
HASH = "    --hash=sha256:" + "a" * 64
GOOD = f"starlette==1.10.0 \\\n{HASH}\n"
GOOD += f"redis[hiredis]==6.0 \\\n{HASH} \\\n{HASH}\ntokenizers==0.21 ; python_version > '3' \\\n{HASH}\n"


def test_the_lock_is_in_step() -> None:
    found = problems((ROOT / "pyproject.toml").read_text(), LOCK.read_text())
    assert found == [], "see deploy/lockfile.py for how the lock is made anew"
    assert len(pins(LOCK.read_text())) > 40


def test_a_good_lock_has_no_problems() -> None:
    assert problems(PROJECT, GOOD) == []
    assert pins(GOOD)[1] == Pin("redis", "6.0", 2)


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        (GOOD.replace("1.10.0", "1.0.0"), "starlette>=1.0.1 is wanted, the lock has 1.0.0"),
        (GOOD.replace("tokenizers==", "others=="), "Tokenizers is not in the lock"),
        (GOOD.replace(f"starlette==1.10.0 \\\n{HASH}", "starlette==1.10.0"), "starlette==1.10.0 has no hash"),
        ("# https://packages.example/simple\n" + GOOD, "the lock names an address"),
    ],
)
def test_what_is_not_in_step_is_told(lock: str, words: str) -> None:
    assert words in problems(PROJECT, lock)


@pytest.mark.parametrize("line", ["--index-url x", "-e .", "x @ file:///x", "x>=1", "git+ssh://x"])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="no pin"):
        pins(GOOD + line + "\n")
