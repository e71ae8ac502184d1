"""Other programs' configurations: what becomes of them is a sound configuration, and what has no equivalent is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cli import main
from gateway.config.importing.litellm import import_litellm
from gateway.config.importing.llama_swap import import_llama_swap
from gateway.config.importing.mbase import import_mbase
from gateway.config.importing.result import Imported, NotImportable
from gateway.config.loader import parse
from gateway.config.snapshot import Snapshot

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=20,
)


def snapshot(made: Imported) -> Snapshot:
    return parse(made.text().encode(), Path("/etc/switchyard.yaml")).snapshot


def mbase(*entries: dict[str, Any]) -> Imported:
    return import_mbase(json.dumps(entries).encode())


def test_mbase_says_all_that_the_description_said():
    made = mbase(
        {
            "model_path": "/m/qwen.gguf",
            "processor_count": 8,
            "context_length": 4096,
            "thread_count": 6,
            "batch_thread_count": 6,
            "batch_length": 512,
            "gpu_layers": 80,
            "samplers": {
                "top_k": 40,
                "top_p": 1.0,
                "min_p": 0.3,
                "temp": 0.8,
                "repetition": {"penalty_n": 64, "penalty_repeat": 1.2},
            },
        }
    )
    found = snapshot(made)
    engine = found.engines["qwen"]
    assert (engine.kind, engine.model, engine.slots, engine.context) == ("llamacpp", "/m/qwen.gguf", 8, 4096)
    assert engine.options == {"threads": 6, "batch": 512, "gpu_layers": 80}
    defaults = found.models["qwen"].defaults
    assert (defaults.top_k, defaults.top_p, defaults.min_p, defaults.temperature) == (40, 1.0, 0.3, 0.8)
    assert (defaults.repeat_last_n, defaults.repetition_penalty) == (64, 1.2)
    assert not any("no equivalent" in note for note in made.notes)


def test_mbase_defaults_are_stated_where_ours_differ():
    found = snapshot(mbase({"model_path": "a.gguf"}))
    engine = found.engines["a"]
    assert (engine.slots, engine.context, engine.options) == (4, 2048, {"threads": 8, "batch": 512, "gpu_layers": 80})
    assert found.models["a"].defaults.temperature == 0.0, "greedy"


def test_mbase_tells_what_it_cannot_say_and_keeps_names_apart():
    same = {"model_path": "dir one/my model.gguf", "thread_count": 8, "batch_thread_count": 2, "flash": True}
    made = mbase(same, {**same, "model_path": "dir two/my model.gguf", "processor_count": 4000})
    assert set(snapshot(made).engines) == {"my-model", "my-model-2"}
    told = "\n".join(made.notes)
    assert "'flash'" in told and "batch_thread_count" in told and "processor_count" in told


def test_mirostat_of_mbase_is_version_2():
    for samplers in ({"mirostat_v2": {"tau": 4.0, "eta": 0.2}}, {"mirostat_v2.tau": 4.0, "mirostat_v2_eta": 0.2}):
        defaults = snapshot(mbase({"model_path": "a.gguf", "samplers": samplers})).models["a"].defaults
        assert (defaults.mirostat, defaults.mirostat_tau, defaults.mirostat_eta) == (2, 4.0, 0.2)


LITELLM = b"""
model_list:
  - model_name: gpt
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_KEY, rpm: 5, input_cost_per_token: 0.0000025, weight: 3}
  - model_name: gpt
    litellm_params: {model: hosted_vllm/q, api_base: "http://h:8000/v1", api_key: sk-literal-secret, timeout: 30}
  - {model_name: claude, litellm_params: {model: anthropic/claude-x, api_key: os.environ/OPENAI_KEY, max_parallel_requests: 4}}
  - {model_name: bed, litellm_params: {model: bedrock/x}}
  - {model_name: near, litellm_params: {model: ollama_chat/llama3}}
router_settings: {fallbacks: [{gpt: [claude, bed]}], routing_strategy: simple-shuffle, model_group_alias: {gpt-4: gpt}}
litellm_settings: {drop_params: true, cache: true}
general_settings: {master_key: sk-1234}
"""


def test_litellm_becomes_deployments_tiers_and_prices(monkeypatch):
    monkeypatch.setenv("OPENAI_KEY", "k")
    monkeypatch.setenv("GPT_HOSTED_VLLM_KEY", "k")
    made = import_litellm(LITELLM)
    found = snapshot(made)
    tiers = [[one.id for one in tier] for tier in found.models["gpt-4"].tiers]
    assert tiers == [["gpt", "gpt-hosted_vllm"], ["claude"]]
    first, second = found.models["gpt"].tiers[0]
    assert (first.dialect, first.quirks, first.params, first.price.input) == ("openai_compatible", "openai", "drop", 2_500_000)
    assert (second.quirks, second.base_url, second.timeouts.total_s) == ("vllm", "http://h:8000/v1", 30.0)
    assert found.models["gpt"].weights == {"gpt": 3}
    assert found.deployments["claude"].max_in_flight == 4
    assert found.deployments["near"].dialect == "ollama"
    told = "\n".join(made.notes)
    for word in ("bedrock", "rpm", "cache", "GPT_HOSTED_VLLM_KEY", "general_settings"):
        assert word in told
    assert "sk-literal-secret" not in made.text() and "sk-1234" not in made.text()


SWAP = b"""
macros: {ls: "/opt/bin/llama-server --port ${PORT}", ctx: 8192}
globalTTL: 60
models:
  a/b:
    cmd: |
      # a comment
      ${ls} -m /m/x.gguf --ctx-size ${ctx} -np 4 -ngl 99 --temp=0.7 -fa on --jinja --lora /m/tone.gguf --no-mmap
    aliases: [gpt-4o, {id: gpt-mini}]
    env: ["CUDA_VISIBLE_DEVICES=0"]
    concurrencyLimit: 6
  forever: {cmd: "llama-server --model y.gguf --chat-template llama3 --embedding", ttl: 0}
  docker: {cmd: "docker run vllm", proxy: "http://127.0.0.1:9000", useModelName: org/m}
  fetched: {cmd: "llama-server -hf org/repo"}
apiKeys: [sk-theirs]
groups: {g: {swap: true}}
"""


def test_llama_swap_becomes_lazy_engines_and_remote_deployments():
    made = import_llama_swap(SWAP)
    found = snapshot(made)
    engine = found.engines["a-b"]
    assert (engine.model, engine.slots, engine.context) == ("/m/x.gguf", 4, 2048)
    assert (engine.keep.eager, engine.keep.idle_unload_s) == (False, 60)
    assert engine.environment == {"CUDA_VISIBLE_DEVICES": "0"}
    assert engine.options == {"gpu_layers": 99, "mmap": False, "lora": {"tone": "/m/tone.gguf"}}
    assert found.models["gpt-mini"].name == "a/b"
    assert found.deployments["a-b"].model == "tone", "their adapter is always on"
    assert found.deployments["a-b"].max_in_flight == 6
    assert found.models["a/b"].defaults.temperature == 0.7
    assert found.engines["forever"].keep.idle_unload_s == 0
    assert found.engines["forever"].options["embedding"] is True
    assert (found.deployments["docker"].base_url, found.deployments["docker"].model) == ("http://127.0.0.1:9000/v1", "org/m")
    assert "fetched" not in found.models
    told = "\n".join(made.notes)
    for word in ("-fa on", "-hf org/repo", "docker", "apiKeys", "groups", "engine_memory_mb"):
        assert word in told
    assert "sk-theirs" not in made.text()


@pytest.mark.parametrize("command", ["--reranking", "--embedding --pooling rank", "--embeddings --rerank"])
def test_rerankers_stay_rerankers(command):
    found = snapshot(import_llama_swap(f'models: {{r: {{cmd: "llama-server -m r.gguf {command}"}}}}'.encode()))
    assert found.engines["r"].options == {"rerank": True}
    entry = "{model_name: r, litellm_params: {model: openai/r, api_base: 'http://h/v1'}, model_info: {mode: rerank}}"
    assert snapshot(import_litellm(f"model_list: [{entry}]".encode())).deployments["r"].adds == {"rerank"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("mbase", "{}"),
        ("mbase", "[1]"),
        ("mbase", "nonsense"),
        ("litellm", "a: 1"),
        ("litellm", "- 1"),
        ("llama-swap", "{a: ["),
    ],
)
def test_what_is_no_such_file_is_refused_in_words(kind, text, tmp_path, capsys):
    file = tmp_path / "theirs"
    file.write_text(text)
    assert main(["import", kind, str(file)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("switchyard: ")


def test_the_command_writes_yaml_and_tells_the_rest(tmp_path, capsys):
    file = tmp_path / "description.json"
    file.write_text('[{"model_path": "m.gguf", "odd\\nkey": 1}]')
    assert main(["import", "mbase", str(file)]) == 0
    told = capsys.readouterr()
    assert parse(told.out.encode(), tmp_path / "c.yaml").snapshot.engines["m"].model == str(tmp_path / "m.gguf")
    assert "no equivalent" in told.err and "no equivalent" in told.out


@settings(deadline=None)
@given(JSON, st.sampled_from(["model_path", "model_list", "models"]))
def test_whatever_stands_in_a_file_nothing_breaks(value, key):
    entry = value if isinstance(value, dict) else {"cmd": value, "litellm_params": value}
    for reads, whole in (
        (import_mbase, [{**entry, "model_path": "a"}]),
        (
            import_litellm,
            {"model_list": [entry, {"model_name": "m", "litellm_params": {"model": "openai/x", **entry}}], key: value},
        ),
        (import_llama_swap, {"models": {"m": entry, "n": {**entry, "cmd": "llama-server -m a " + str(value)}}, key: value}),
    ):
        try:
            made = reads(json.dumps(whole).encode())
        except NotImportable:
            continue
        assert isinstance(made.text(), str)


def test_litellms_wildcards_and_nameless_entries_are_told_and_left_out():
    made = import_litellm(
        b"""
model_list:
  - model_name: "*"
    litellm_params: {model: "openai/*", api_key: os.environ/KEY}
  - model_name: all-of-it
    litellm_params: {model: "openai/*"}
  - litellm_params: {model: openai/nameless}
  - model_name: one
    litellm_params: {model: openai/gpt-x}
"""
    )
    assert list(snapshot(made).models) == ["one"]
    assert [note.partition(":")[0] for note in made.notes] == [f"model_list[{number}]" for number in range(3)]


def test_a_port_within_a_macro_of_llama_swap_is_one():
    made = import_llama_swap(
        b"""
macros: {server: "/opt/llama-server --port ${PORT}", all: "${server} --ctx-size ${ctx}", ctx: 4096}
models:
  a: {cmd: "${all} -m /m/a.gguf"}
  b: {cmd: "ssh box start --port ${PORT}"}
"""
    )
    assert not any("not known" in note for note in made.notes), made.notes
    found = snapshot(made)
    assert found.engines["a"].context == 1024
    assert made.tree["deployments"]["b"]["base_url"] == "http://localhost:5801/v1"
