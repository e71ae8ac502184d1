"""What the installers of the Node SDK and of the heavy environments do where something cannot be had."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.bootstrap import engines, node
from deploy.bootstrap.places import Places
from deploy.bootstrap.steps import Stamps, StepFailed, Steps

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests/conformance/sdk/node", tmp_path / "tests/conformance/sdk/node")
    return tmp_path


def test_the_lock_file_names_no_registry():
    text = (ROOT / "tests/conformance/sdk/node/package-lock.json").read_text()
    assert "integrity" in text and "resolved" not in text and "://" not in text


def test_without_node_the_reason_is_told_once(checkout, monkeypatch, capsys):
    monkeypatch.setattr(node, "own_node", lambda: None)
    places = Places(checkout)
    steps, stamps = Steps(places.build / "log"), Stamps(places.build / "stamps")

    def pip(*_: str) -> None:
        raise StepFailed("no wheel for this machine\nand a long log")

    assert node.wanted(stamps, places)
    node.install(steps, stamps, places, pip)
    assert (places.build / "node/missing").read_text() == "no wheel for this machine"
    assert "its tests will be skipped (no wheel for this machine)" in capsys.readouterr().out
    assert not node.wanted(stamps, places)
    (checkout / "tests/conformance/sdk/node/package-lock.json").write_text("{}")
    assert node.wanted(stamps, places)


def test_an_engine_that_cannot_be_installed_is_skipped_with_its_reason(tmp_path, monkeypatch, capsys):
    for name in engines.RECIPES:
        monkeypatch.delenv(f"SWITCHYARD_{name.upper()}_PYTHON", raising=False)
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(engines.shutil, "disk_usage", lambda _: Usage(10e9, 9e9, 1e9))
    assert engines.Engines(tmp_path).pythons(["vllm"]) == {}
    assert "vllm: SKIPPED, its install takes 6 GB and 1.0 GB are free" in capsys.readouterr().out
    monkeypatch.setattr(engines.platform, "machine", lambda: "aarch64")
    assert engines.Engines(tmp_path).pythons(["vllm", "triton"]) == {}
    assert capsys.readouterr().out.count("SKIPPED, there are wheels of it for Linux on x86_64 only") == 2


def test_an_environment_that_is_named_is_taken(tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setenv("SWITCHYARD_VLLM_PYTHON", sys.executable)
    assert engines.Engines(tmp_path).pythons(["vllm"]) == {"SWITCHYARD_VLLM_PYTHON": sys.executable}
    assert f"vllm: SWITCHYARD_VLLM_PYTHON names {sys.executable}" in capsys.readouterr().out
    assert engines.main(["nonsense"]) == 2
