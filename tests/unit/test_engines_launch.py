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


VLLM = """
engines:
  big: {{kind: vllm, model: {model}, {more}}}
deployments:
  d: {{engine: big, model: m}}
models:
  chat: {{tiers: [[d]]}}
"""


def vllm(tmp_path: Path, more: str = "slots: 8", model: str = "weights"):
    return parse(VLLM.format(more=more, model=model).encode(), tmp_path / "c.yaml").snapshot.engines["big"]


@pytest.mark.parametrize(
    ("more", "key", "mend"),
    [
        (
            "options: {arguments: {tensor_paralel_size: 2}}",
            "engines.big.options.arguments.tensor_paralel_size",
            "tensor_parallel_size",
        ),
        ("options: {arguments: {max_num_seqs: 2}}", "engines.big.options.arguments.max_num_seqs", "slots"),
        ("options: {tensor_parallel_size: 2}", "engines.big.options", "arguments"),
        ("context: 4096, options: {arguments: {max_model_len: 8192}}", "arguments.max_model_len", "one of the two"),
        ("options: {sleep_after_s: 60}", "engines.big.options.sleep_after_s", "enable_sleep_mode"),
        ("tools: hermes, options: {tool_call_parser: hermes}", "engines.big.tools", "one of the two"),
    ],
)
def test_vllms_arguments_are_checked_without_vllm(tmp_path: Path, more: str, key: str, mend: str):
    with pytest.raises(ConfigError) as caught:
        vllm(tmp_path, more)
    text = str(caught.value)
    assert key in text and mend in text and str(tmp_path / "c.yaml") in text


def test_the_context_may_have_vllms_own_name(tmp_path: Path):
    assert vllm(tmp_path, "options: {arguments: {max_model_len: 8192}}").context == 8192
    assert vllm(tmp_path, "context: 8192, options: {arguments: {max_model_len: 8192}}").context == 8192


def test_a_model_is_a_path_or_a_hubs_name(tmp_path: Path):
    assert vllm(tmp_path, model="Qwen/Qwen3-8B").model == "Qwen/Qwen3-8B"
    (tmp_path / "Qwen/Qwen3-8B").mkdir(parents=True)
    assert vllm(tmp_path, model="Qwen/Qwen3-8B").model == str(tmp_path / "Qwen/Qwen3-8B")
    assert vllm(tmp_path, model="models/deep/one").model == str(tmp_path / "models/deep/one")
