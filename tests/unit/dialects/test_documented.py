"""docs/dialects.md names every dialect and every option."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import registry

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "dialects.md").read_text()


@pytest.mark.parametrize("name", sorted(registry.DIALECTS))
def test_a_dialect_and_its_options_are_documented(name: str) -> None:
    assert f"\n| `{name}` | " in PAGE
    for option in registry.options(name):
        assert f"\n| `{name}` | `{option}` | " in PAGE
