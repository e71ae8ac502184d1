"""A Redis that may forget charges is refused, by `switchyard check` and at a start; one that is away is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from gateway.cli import main
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.redis


def configuration(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SY_PEPPER", "p" * 40)
    listen = f"127.0.0.1:{free_port()}"
    (folder / "config.yaml").write_text(
        f"server: {{listen: '{listen}'}}\nredis: {{url: {url}}}\nauth: {{pepper: 'env:SY_PEPPER'}}\n"
        "deployments: {d: {dialect: openai_compatible, base_url: 'http://127.0.0.1:9/v1', model: m}}\n"
        "models: {m: {tiers: [[d]]}}\n"
    )
    return str(folder / "config.yaml")


def test_a_redis_that_may_evict_is_refused(
    tmp_path: Path,
    make_redis: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = make_redis("--appendonly", "yes")
    file = configuration(tmp_path, server.url, monkeypatch)
    assert main(["check", file]) == 0
    assert capsys.readouterr().err == ""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory-policy", "volatile-lru")
    for words in (["check", file], ["serve", "--config", file]):
        assert main(words) == 1
        said = capsys.readouterr()
        assert "redis.url" in said.err and "noeviction" in said.err and server.url not in said.err
    assert main(["check", file, "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert not shown["sound"] and shown["problems"][0]["key"] == "redis.url"


def test_what_is_unwise_or_away_is_told_and_no_error(
    tmp_path: Path,
    make_redis: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = make_redis()
    file = configuration(tmp_path, server.url, monkeypatch)
    assert main(["check", file]) == 0
    assert "appendonly" in capsys.readouterr().err
    server.kill()
    assert main(["check", file]) == 0
    assert "does not answer" in capsys.readouterr().err
