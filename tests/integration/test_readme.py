"""README, done as it is written: the first configuration serves, and the first key is good."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.gateway_process import ROOT, GatewayProcess, http_client
from tests.models import chat_gguf

pytestmark = pytest.mark.llamacpp


def documented(name: str) -> str:
    found = re.search(rf"<!-- tested: {name} -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found, f"README.md has no block {name}"
    return found[1]


def shell(commands: str, folder: Path) -> str:
    """Run commands in a folder where `.venv/bin/switchyard` is this checkout's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_first_configuration_serves_the_first_key(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / ".venv/bin").mkdir(parents=True)
    command = checkout / ".venv/bin/switchyard"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway "$@"\n')
    command.chmod(0o755)
    (checkout / "models").mkdir()
    (checkout / "models/SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(chat_gguf())
    first = documented("first-configuration")
    assert first.rstrip().endswith("switchyard serve --config config.yaml")
    said = shell(first.rstrip().rpartition("\n")[0], checkout)
    assert "config.yaml: sound" in said
    # the same, on ports of its own
    with GatewayProcess(checkout, yaml.safe_load((checkout / "config.yaml").read_text())) as gateway:
        gateway.start(timeout_s=120)
        secret = re.search(r"^secret +(\S+)$", shell(documented("first-key"), checkout), re.M)
        assert secret
        async with http_client(secret[1]) as http:
            body = {"model": "chat", "max_tokens": 4, "messages": [{"role": "user", "content": "Say hello."}]}
            answer = await http.post(gateway.url + "/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            me = (await http.get(gateway.url + "/v1/me")).json()
    assert me["team"] == "research"
