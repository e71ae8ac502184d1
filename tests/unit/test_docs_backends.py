"""docs/backends.md and docs/scaling.md: each block is a sound configuration, and nothing that can be configured is missing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from backends.dialects.server_quirks import QUIRKS
from backends.engines.kinds import ENGINES
from backends.registry import DIALECTS
from gateway.config.loader import load

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.findall(r"```yaml\n(.*?)```", "".join((DOCS / name).read_text() for name in ("backends.md", "scaling.md")), re.S)
#: What a block refers to; any other name is a secret.
ENVIRONMENT = {"REDIS_URL": "redis://10.0.0.31:6379/0", "LEDGER_URL": "postgresql+asyncpg://switchyard@10.0.0.51/switchyard"}
#: What no user runs: the tests' own.
NOT_SHOWN = {"scripted"}


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_each_block_is_a_sound_configuration(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"env:([A-Z_]+)", block):
        monkeypatch.setenv(name, ENVIRONMENT.get(name, "a-secret-of-more-than-thirty-two-characters"))
    file = tmp_path / "config.yaml"
    file.write_text(block.replace("/opt/vllm/bin/python", sys.executable))  # an interpreter that is there
    snapshot = load(file).snapshot
    served = {one.id for route in snapshot.models.values() for tier in route.tiers for one in tier}
    assert served == set(snapshot.deployments), "a deployment that no model leads to"


def test_every_dialect_every_server_and_every_engine_is_shown() -> None:
    trees = [yaml.safe_load(block) for block in BLOCKS]
    deployments = [one for tree in trees for one in tree["deployments"].values()]
    assert {one["dialect"] for one in deployments if "dialect" in one} == set(DIALECTS)
    assert {one["quirks"] for one in deployments if "quirks" in one} == set(QUIRKS)
    assert {one["kind"] for tree in trees for one in tree.get("engines", {}).values()} == set(ENGINES) - NOT_SHOWN
