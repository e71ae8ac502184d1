"""docs/security.md: the attack list is whole, and what it calls tested has its tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = re.findall(r"^\| ([\d, ]+) \| [^|]+ \| (.+) \|$", (ROOT / "docs/security.md").read_text(), re.M)
TESTS = {path: path.read_text() for path in (ROOT / "tests/security").glob("*.py")}


def items(numbers: str) -> Iterator[int]:
    """The numbers of `30, 31`."""
    yield from (int(one) for one in re.findall(r"\d+", numbers))


def test_no_item_is_left_out() -> None:
    assert [number for numbers, _ in TABLE for number in items(numbers)] == list(range(1, 46))


def test_what_is_tested_has_its_heading_or_says_where() -> None:
    """`# 21. Slowness.` stands above the tests of item 21; item 17 holds for all of them."""
    headed = {n for text in TESTS.values() for found in re.findall(r"^# ([\d, ]+)\. ", text, re.M) for n in items(found)}
    headed |= {int(one) for text in TESTS.values() for one in re.findall(r"# item (\d+)$", text, re.M)}
    told = {number for numbers, end in TABLE if re.search(r"\btested\b", end) for number in items(numbers)}
    assert told - headed == set()
    assert {16, 35, 36} & told == set(), "these say why they do not apply"


def test_the_framings_are_as_many_as_it_says() -> None:
    text = TESTS[ROOT / "tests/security/test_connections.py"]
    (function,) = (
        one for one in ast.walk(ast.parse(text)) if getattr(one, "name", "") == "test_ambiguous_framing_ends_the_connection"
    )
    assert isinstance(function, ast.FunctionDef)
    call = function.decorator_list[0]
    assert isinstance(call, ast.Call) and isinstance(call.args[1], ast.List)
    (end,) = (end for numbers, end in TABLE if numbers == "22")
    assert f"tested: {len(call.args[1].elts)} framings" in end
