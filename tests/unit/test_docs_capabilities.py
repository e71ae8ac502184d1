"""docs/capabilities.md is what the code says."""

from pathlib import Path

from backends import registry
from backends.dialects.server_quirks import QUIRKS
from backends.engines import kinds
from gateway.capabilities import page
from gateway.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_page_is_fresh(capsys):
    committed = (ROOT / "docs" / "capabilities.md").read_text()
    assert committed == page(), "run: switchyard capabilities > docs/capabilities.md"
    assert main(["capabilities"]) == 0
    assert capsys.readouterr().out == committed


def test_every_dialect_engine_and_family_is_there():
    text = page()
    for name in (*registry.DIALECTS, *QUIRKS, *kinds.ENGINES, *registry.TOOL_FAMILIES, *registry.THINK_FAMILIES):
        assert f"`{name}`" in text
