"""The example and the reference page say what the models say: no key undocumented, no default misquoted."""

import re
from pathlib import Path

import pytest

from backends import registry
from backends.engines.llamacpp.settings import LlamaOptions
from gateway.config.document import Document, read_document
from gateway.config.dynamic import Dynamic, EngineEntry
from gateway.config.entries import Limit
from gateway.config.loader import parse
from gateway.config.problems import KeyPath, dotted
from gateway.config.reference import Key, keys, page, variable
from gateway.config.static import Static
from tests.certificates import Authority

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "config.example.yaml"
KEYS = [*keys(Static), *keys(Dynamic), *keys(Limit, "teams.<name>.limits[].")]


def pattern(key: Key) -> re.Pattern[str]:
    text = re.escape(key.path).replace("<name>", r"[^.\[\]]+").replace(re.escape("[]"), r"\[\d+\]")
    return re.compile(text)


def places(document: Document, key: Key) -> list[KeyPath]:
    wanted = pattern(key)
    return [path for path in document.lines if wanted.fullmatch(dotted(path))]


@pytest.fixture
def document() -> Document:
    return read_document(EXAMPLE.read_bytes(), EXAMPLE.name)


def test_the_example_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "SWITCHYARD_KEY_PEPPER", "METRICS_TOKEN", "VENDOR_KEY"):
        monkeypatch.setenv(name, "redis://127.0.0.1:6379/0" if name == "REDIS_URL" else "x" * 32)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "chatml.jinja").write_text("{{ messages }}")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tokenizer.json").write_text('{"model": {}}')
    cert, key = Authority(tmp_path / "tls").sign("example")
    cert.rename(tmp_path / "tls" / "fullchain.pem")
    key.rename(tmp_path / "tls" / "privkey.pem")
    found = parse(EXAMPLE.read_bytes(), tmp_path / EXAMPLE.name)
    assert {"chat", "gpt-4o-mini", "embed"} == set(found.snapshot.models)
    assert found.static.server.workers == 4


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_is_in_the_example(document: Document, key: Key) -> None:
    assert places(document, key), f"{key.path} is missing in {EXAMPLE.name}"


@pytest.mark.parametrize("key", [key for key in KEYS if not re.match(r"keys\..*limits", key.path)], ids=lambda key: key.path)
def test_the_example_quotes_the_default(document: Document, key: Key) -> None:
    lines = EXAMPLE.read_text().splitlines()
    said = []
    for path in places(document, key):
        number = document.lines[path] - 1
        text = lines[number].partition("#")[2]
        while number > 0 and lines[number - 1].lstrip().startswith("#"):
            number -= 1
            text = lines[number].partition("#")[2] + text
        said.append(re.sub(r"\s+", " ", text))
    wanted = "required" if key.default == "required" else f"default {key.default}"
    assert any(wanted in text for text in said), f"{key.path}: no comment says {wanted!r}"


def test_the_page_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "configuration.md").read_text()
    assert committed == page(), "run: python -m gateway.config.reference > docs/configuration.md"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_has_a_meaning(key: Key) -> None:
    assert len(key.meaning) > 5 or key.meaning == "1 = none" or key.meaning == "0 = none"


def test_the_environment_reaches_every_static_key(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"text": "x.y", "integer": "9", "number": "9", "list of text": '["*"]'}
    special = {"listen": "127.0.0.1:9", "otlp_endpoint": "http://127.0.0.1:9", "sample": "0.9"}
    for key in keys(Static):
        value = special.get(key.path.rpartition(".")[2]) or values.get(key.kind) or key.kind.split(" ")[0]
        monkeypatch.setenv(variable(key.path), value)
    assert Static().model_dump().keys() == Static.model_fields.keys()
    changed = Static()
    assert (changed.server.max_head_kb, changed.redis.timeout_ms, changed.state_dir) == (9, 9, "x.y")
    assert changed.telemetry.metrics.listen == "127.0.0.1:9"
    assert changed.server.cors_origins == ("*",)


def test_the_engines_defaults_are_the_documented_ones() -> None:
    entry, options = EngineEntry(model="m"), LlamaOptions()
    for name in ("embedding", "threads", "batch", "gpu_layers"):
        assert getattr(entry, name) == getattr(options, name), name
    documented = next(key.meaning for key in KEYS if key.path == "engines.<name>.options")
    further = (
        set(LlamaOptions.__struct_fields__) - set(EngineEntry.model_fields) - {"log", "step_log", "shown"}
    )  # not for users
    assert further == set(re.findall(r"[a-z_]+", documented.split("llamacpp:")[1]))


def test_the_example_names_every_dialect() -> None:
    (line,) = [line for line in EXAMPLE.read_text().splitlines() if "wire language of a remote server" in line]
    assert set(re.findall(r"[a-z_]+", line.split("server:")[1].split(";")[0])) == set(registry.DIALECTS)
