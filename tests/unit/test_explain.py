"""`switchyard check --explain`: the routes as a tree, and nothing secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import main

FILE = """
deployments:
  near: {dialect: openai_compatible, quirks: vllm, base_url: http://10.0.0.1:8000/v1, model: m, max_in_flight: 4}
  other: {dialect: openai_compatible, base_url: http://10.0.0.2:8000/v1, model: m, verify_tls: false}
  far:
    {dialect: openai_compatible, base_url: https://api.example.com/v1, model: big, credential: env:FAR_KEY,
     price: {input: 2.5, output: 10}}
  idle: {dialect: ollama, base_url: http://10.0.0.3:11434, model: m}
models:
  chat:
    {tiers: [[near, other], [far]], policy: weighted, weights: {near: 3}, aliases: [gpt-4o],
     limits: [{tokens: 9, per: minute}]}
  small: {tiers: [[near]]}
teams:
  research: {models: [chat]}
  sales: {models: [small]}
gateway: {limits: [{requests: 100, per: second}]}
"""

TREE = """\
chat (also gpt-4o; output cap 1024 tokens where none is stated)
├─ asked by keys without a team that no model list narrows; team research
├─ limit 9 tokens/minute, whoever asks
├─ tier 1, tried first, by weight
│  ├─ near: weight 3; openai_compatible/vllm at http://10.0.0.1:8000/v1, without a credential; model m; at most 4 at once; \
unsupported parameters: reject; first token within 120 s
│  └─ other: weight 1; openai_compatible at http://10.0.0.2:8000/v1, without a credential; its certificate is NOT checked; \
model m; no bound; unsupported parameters: reject; first token within 120 s
└─ tier 2, tried when tier 1 has failed
   └─ far: openai_compatible at https://api.example.com/v1; model big; no bound; unsupported parameters: reject; \
first token within 120 s; 2.5/10 USD per million tokens in/out
small (output cap 1024 tokens where none is stated)
├─ asked by keys without a team that no model list narrows; team sales
└─ tier 1, tried first
   └─ near: openai_compatible/vllm at http://10.0.0.1:8000/v1, without a credential; model m; at most 4 at once; \
unsupported parameters: reject; first token within 120 s
no model leads to
└─ idle: ollama at http://10.0.0.3:11434, without a credential; model m; no bound; unsupported parameters: reject; \
first token within 120 s
limits of every request
└─ 100 requests/second
"""


def test_the_routes_are_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-far-canary")
    file = tmp_path / "config.yaml"
    file.write_text(FILE)
    assert main(["check", "--explain", str(file)]) == 0
    told = capsys.readouterr().out
    assert told.partition("\n\n")[2] == TREE
    assert "canary" not in told
