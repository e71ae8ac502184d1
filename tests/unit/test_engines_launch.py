"""How a host is started in the interpreter of another environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.engines.launch import EngineLaunch, command
from gateway.config.loader import parse
from gateway.config.problems import ConfigError

FILE = """
engines:
  big: {{kind: scripted, model: m, {more}}}
deployments:
  d: {{engine: big, model: m}}
models:
  chat: {{tiers: [[d]]}}
"""


def launch(**more: object) -> EngineLaunch:
    return EngineLaunch("e", "scripted", "m:C", "model", "/run/s", "T0KEN", **more)  # type: ignore[arg-type]


def test_without_an_interpreter_it_is_ours():
    argv, _ = command(launch())
    assert argv[:2] == [sys.executable, "-m"]


def test_another_interpreter_sees_our_package_and_nothing_beside_it(tmp_path: Path):
    argv, _ = command(launch(python=sys.executable))
    assert argv[0] == sys.executable
    # the host reads its launch from standard input: an empty one is a bad launch, said by our own code
    ended = subprocess.run(argv, input=b"", capture_output=True, cwd=tmp_path, timeout=60, check=False)
    assert ended.returncode == 2
    assert b"bad_launch" in ended.stderr


def test_the_configuration_names_interpreter_and_environment(tmp_path: Path):
    text = FILE.format(more=f"python: {sys.executable}, environment: {{CUDA_VISIBLE_DEVICES: '0,1'}}")
    spec = parse(text.encode(), tmp_path / "c.yaml").snapshot.engines["big"]
    assert spec.python == sys.executable
    assert spec.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize(
    ("more", "key", "word"),
    [("python: no/such/python", "engines.big.python", "interpreter"), ("environment: {'A=B': x}", "environment", "variable")],
)
def test_what_cannot_be_started_is_told_with_its_key(tmp_path: Path, more: str, key: str, word: str):
    with pytest.raises(ConfigError) as caught:
        parse(FILE.format(more=more).encode(), tmp_path / "c.yaml")
    assert key in str(caught.value)
    assert word in str(caught.value)
