"""`switchyard quota` on real counters: those of a Redis, and those that a SQLite ledger keeps for its gateway."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.domain.principal import LimitSpec
from gateway.ledger.embedded import EmbeddedLedger
from gateway.limits.embedded_store import EmbeddedStore
from gateway.limits.redis_store import RedisStore
from gateway.limits.rules import Demand, rules_for
from tests.rows import row
from tests.servers import RedisServer

CONFIG = """
deployments:
  far: {dialect: openai_compatible, base_url: http://127.0.0.1:9/v1, model: m}
models:
  chat: {tiers: [[far]], aliases: [gpt-4o-mini], limits: [{requests: 9, per: minute}]}
gateway: {limits: [{requests: 50, per: minute}]}
teams:
  of-file: {limits: [{tokens: 100, per: hour}]}
"""
Shell = Callable[..., str]


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    (tmp_path / "config.yaml").write_text(CONFIG)

    def type_(*words: str, status: int = 0) -> str:
        found = main([*words, "--config", str(tmp_path / "config.yaml")])
        out, error = capsys.readouterr()
        assert found == status, error
        return error if status else out

    return type_


def wall_us() -> int:
    return time.time_ns() // 1000


def specs(key: str) -> tuple[LimitSpec, ...]:
    return (
        LimitSpec(f"key:{key}", "nusd", 5_000_000_000, period="month", zone="UTC"),
        LimitSpec("team:of-file", "tokens", 100, 3_600_000),
        LimitSpec("model:chat", "requests", 9, 60_000),
        LimitSpec("gateway", "requests", 50, 60_000),
    )


def shown(shell: Shell, *words: str) -> list[Any]:
    return json.loads(shell("quota", "show", *words, "--json"))


def used(shell: Shell, *words: str) -> dict[str, tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(shell("quota", "show", *words, "--csv")))
    return {f"{one['scope']}:{one['name']}": (one["used"], one["left"]) for one in rows}


def check(shell: Shell, key: str) -> None:
    assert used(shell) == {
        "gateway:gateway": ("1", "49"), "team:of-file": ("30", "70"), "model:chat": ("1", "8"),
    }  # fmt: skip
    mine = used(shell, "--key", key)
    assert mine[f"key:{key}"] == ("0.00009", "4.99991") and mine["team:of-file"] == ("30", "70")
    assert [one["source"] for one in shown(shell, "--key", key)] == ["database", "file", "file"]
    assert set(used(shell, "--model", "gpt-4o-mini")) == {"model:chat"}
    assert set(used(shell, "--gateway")) == {"gateway:gateway"}
    assert "left" in shell("quota", "show", "--team", "of-file").lower()
    assert shell("quota", "show", "--team", "nobody") == "there are no limits\n"


def make_key(shell: Shell) -> str:
    words = ["keys", "new", "--name", "k", "--team", "of-file", "--limit", "usd=5/month", "--json"]
    return str(json.loads(shell(*words))["id"])


async def test_what_is_left_without_redis(shell: Shell, tmp_path: Path) -> None:
    key = await asyncio.to_thread(make_key, shell)
    ledger = EmbeddedLedger(tmp_path / "var" / "gateway.db")
    ledger.start(wall_us())
    store = EmbeddedStore(wall_us, ledger)
    demand = Demand(10, 20)
    rules = rules_for(specs(key), demand, wall_us())
    costly = tuple(r if r.unit != "nusd" else type(r)(r.name, r.kind, r.unit, r.limit, r.window_ms, 90_000) for r in rules)
    await store.admit("r1", costly, row("r1"), 15_000)
    await asyncio.to_thread(check, shell, key)
    ledger.close()


@pytest.mark.redis
async def test_what_is_left_in_redis(
    shell: Shell, tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SY_PEPPER", "p" * 40)
    more = f"redis: {{url: {own_redis.url}}}\nauth: {{pepper: 'env:SY_PEPPER'}}\n"
    (tmp_path / "config.yaml").write_text(CONFIG + more)
    key = await asyncio.to_thread(make_key, shell)
    async with RedisStore(own_redis.url, wall_us, worker="w", timeout_ms=5000) as store:
        while not store.link.up:
            await asyncio.sleep(0.01)
        rules = rules_for(specs(key), Demand(10, 20), store.now_us())
        costly = tuple(r if r.unit != "nusd" else type(r)(r.name, r.kind, r.unit, r.limit, r.window_ms, 90_000) for r in rules)
        await store.admit("r1", costly, row("r1"), 15_000)
        await asyncio.to_thread(check, shell, key)
        store.void("r1")
    own_redis.kill()
    assert "Limits" in await asyncio.to_thread(lambda: shell("quota", "show", status=1))


def test_limits_are_set_for_whoever_has_them(shell: Shell) -> None:
    key = make_key(shell)
    shell("teams", "new", "red")
    shell("orgs", "new", "acme")
    shell("users", "new", "ann")
    for words in (
        ["--key", key],
        ["--team", "red"],
        ["--org", "acme"],
        ["--user", "ann"],
        ["--model", "gpt-4o-mini"],
        ["--gateway"],
    ):
        shell("quota", "set", *words, "--limit", "requests=3/day", "--limit", "concurrent=2")
    found = {(one["scope"], one["name"]) for one in shown(shell) if one["source"] == "database"}
    owners = [("gateway", "gateway"), ("organisation", "acme"), ("team", "red"), ("user", "ann"), ("model", "chat")]
    assert found == set(owners)
    assert [one["limit"] for one in shown(shell, "--model", "chat")] == [
        {"requests": 9, "per": "minute"}, {"requests": 3, "per": "day"}, {"concurrent": 2},
    ]  # fmt: skip
    assert {"requests": 3, "per": "day"} in [one["limit"] for one in shown(shell, "--key", key) if one["scope"] == "key"]
    shell("quota", "set", "--model", "chat", "--limit", "")
    assert [one["source"] for one in shown(shell, "--model", "chat")] == ["file"]
    for words, told in [
        (["--team", "of-file", "--limit", "requests=3/day"], "configuration file"),
        (["--team", "nobody", "--limit", "requests=3/day"], "nobody"),
        (["--model", "nothing", "--limit", "requests=3/day"], "--model"),
        (["--key", "nothing", "--limit", "requests=3/day"], "no key"),
        (["--gateway", "--limit", "requests=-3/day"], "--limit requests=-3/day"),
        (["--gateway", "--limit", "requests=3/fortnight"], "per"),
        (["--model", "chat", "--limit", "requests=3/day@chat"], "of that model anyway"),
        (["--gateway", "--limit", "requests=3/day", "--limit", "requests=4/day"], "limits: two"),
    ]:
        assert told in shell("quota", "set", *words, status=1)
