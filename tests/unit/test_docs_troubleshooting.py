"""docs/troubleshooting.md has every error code of the program, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from gateway.domain.engines import FailureCode

ROOT = Path(__file__).resolve().parents[2]
_CODE = re.compile(r"[a-z]+(?:_[a-z]+)*")


def _texts(node: ast.AST) -> set[str]:
    """Codes that an expression may be: a text, or one of two."""
    branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    values = {one.value for one in branches if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return {text for text in values if _CODE.fullmatch(text)}


def _named(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("code", "default_code")


def _given(node: ast.AST) -> ast.expr | None:
    """The value of a `code=`, or of an assignment to `code` or `default_code`."""
    match node:
        case ast.keyword(arg="code" | "default_code", value=value):
            return value
        case ast.Assign(targets=targets, value=value) if any(map(_named, targets)):
            return value
        case ast.AnnAssign(target=target, value=value) if _named(target):
            return value
    return None


def _codes() -> Iterator[str]:
    for folder in ("gateway", "backends"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (value := _given(node)) is not None:
                    yield from _texts(value)


def test_every_code_is_explained_and_nothing_else() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    told = re.findall(r"^\| `([a-z_]+)` \|", page, re.M)
    assert len(told) == len(set(told)), "told twice"
    assert set(told) == {*_codes(), *get_args(FailureCode)} - {""}
