"""Teams, organisations, users, a key's life and usage from the shell, on a SQLite file."""

import asyncio
import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.ledger.rows import connect, store_rows
from tests.rows import row

SOUND = """
deployments:
  far: {dialect: openai_compatible, base_url: http://127.0.0.1:9/v1, model: m}
models:
  chat: {tiers: [[far]], aliases: [gpt-4o-mini]}
teams:
  of-file: {limits: [{tokens: 5, per: hour}]}
"""


class Shell:
    """Types commands and reads what is printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "config.yaml"
        self.file.write_text(SOUND)
        self._capsys = capsys

    def type(self, *words: str) -> str:
        assert main([*words, "--config", str(self.file)]) == 0, self._capsys.readouterr().err
        return self._capsys.readouterr().out

    def json(self, *words: str) -> Any:
        return json.loads(self.type(*words, "--json"))

    def refused(self, *words: str) -> str:
        assert main([*words, "--config", str(self.file)]) == 1
        return self._capsys.readouterr().err


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, capsys)


def test_owners_are_made_listed_changed_and_deleted(shell: Shell) -> None:
    shell.type("orgs", "new", "acme", "--limit", "usd=5/month", "--timezone", "Europe/Berlin")
    options = ["--organisation", "acme", "--models", "gpt-4o-mini", "--limit", "tokens=10/minute", "--limit", "concurrent=2"]
    shell.type("teams", "new", "red", *options)
    found = {one["name"]: one for one in shell.json("teams", "list")}
    assert (found["red"]["organisation"], found["red"]["models"]) == ("acme", "chat")
    assert found["red"]["limits"] == "10 tokens/minute, 2 concurrent"
    assert (found["of-file"]["source"], found["of-file"]["limits"]) == ("file", "5 tokens/hour")
    assert "acme" in shell.type("orgs", "list") and "5 usd/month" in shell.type("orgs", "list")
    shell.type("teams", "change", "red", "--limit", "requests=1/day@chat", "--models", "")
    (red,) = [one for one in shell.json("teams", "list") if one["name"] == "red"]
    assert (red["limits"], red["models"], red["organisation"]) == ("1 requests/day of chat", "all", "acme")
    assert "teams" in shell.refused("orgs", "delete", "acme")
    shell.type("teams", "delete", "red")
    shell.type("orgs", "delete", "acme")
    assert shell.json("orgs", "list") == []
    assert shell.type("users", "list") == "there are no users\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["teams", "new", "of-file"], "configuration file"),
        (["teams", "change", "of-file", "--limit", "concurrent=1"], "configuration file"),
        (["teams", "delete", "of-file"], "configuration file"),
        (["teams", "delete", "nowhere"], "nowhere"),
        (["teams", "new", "n", "--organisation", "nowhere"], "organisation: "),
        (["teams", "new", "n", "--timezone", "Mars/Olympus"], "--timezone"),
        (["teams", "new", "n", "--limit", "lots"], "--limit lots"),
        (["teams", "new", "n", "--limit", "tokens=-5/minute"], "--limit"),
        (["teams", "new", "n", "--limit", "tokens=0/minute"], "tokens"),
        (["teams", "new", "n", "--limit", "tokens=5/fortnight"], "per"),
        (["teams", "new", "n", "--limit", "tokens=5"], "tokens=5: every limit but concurrent needs"),
        (["teams", "new", "n", "--limit", "token=5/minute"], "token: no such key; did you mean 'tokens'?"),
        (["teams", "new", "n", "--limit", "tokens=5/minute@nothing"], "nothing"),
        (["teams", "new", "n", "--models", "nothing"], "nothing"),
        (["users", "new", " "], "name: "),
        (["keys", "new", "--name", "n", "--scope", "team-admin"], "scopes: "),
        (["keys", "suspend", "nobody"], "nobody"),
        (["keys", "rotate", "nobody", "--grace", "soon"], "--grace"),
        (["usage", "--by", "nonsense"], "by: "),
        (["usage", "--since", "yesterday"], "since: "),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_told_and_leaves_nothing(shell: Shell, words: list[str], told: str) -> None:
    assert told in shell.refused(*words)
    assert [one["name"] for one in shell.json("teams", "list")] == ["of-file"]
    assert shell.json("keys", "list") == []


def test_a_keys_life(shell: Shell) -> None:
    shell.type("teams", "new", "red")
    made = shell.json("keys", "new", "--name", "ann", "--team", "red", "--limit", "usd=5/month", "--scope", "viewer")
    (one,) = shell.json("keys", "list")
    assert (one["limits"], one["scopes"], one["state"]) == ("5 usd/month", "viewer", "active")
    id = made["id"]
    shell.type("keys", "suspend", id)
    assert shell.json("keys", "list")[0]["state"] == "suspended"
    shell.type("keys", "resume", id)
    rotated = shell.json("keys", "rotate", id, "--grace", "1h")
    assert rotated["id"] == id and rotated["secret"] != made["secret"] and rotated["grace_s"] == 3600
    shell.type("keys", "change", id, "--name", "bob", "--user", "bob", "--limit", "", "--models", "chat", "--expires", "30d")
    (one,) = shell.json("keys", "list")
    assert (one["name"], one["user"], one["limits"], one["models"], one["team"]) == ("bob", "bob", "default", "chat", "red")
    shell.type("keys", "change", id, "--expires", "never", "--models", "")
    assert (shell.json("keys", "list")[0]["expires"], shell.json("keys", "list")[0]["models"]) == ("-", "all")
    shell.type("keys", "change", id, "--usage-on-finish", "yes", "--default-model", "chat")
    assert "no model" in shell.refused("keys", "change", id, "--default-model", "chatt")
    old = ("--usage-on-finish", "--default-model", "chat")
    assert shell.json("keys", "new", "--name", "old", *old)["id"]
    assert "no model" in shell.refused("keys", "new", "--name", "old", "--default-model", "chatt")
    assert "keys" in shell.refused("teams", "delete", "red")
    shell.type("keys", "revoke", id)
    assert "revoked" in shell.refused("keys", "change", id, "--name", "x")
    shell.type("teams", "delete", "red")


def test_the_audit_trail_is_shown(shell: Shell) -> None:
    assert shell.type("audit") == "nothing was changed yet\n"
    shell.type("teams", "new", "red", "--limit", "concurrent=2")
    shell.type("teams", "change", "red", "--limit", "")
    shell.type("users", "new", "ann")
    found = shell.json("audit", "--noun", "team")
    assert [(one["action"], one["name"], one["actor"]) for one in found] == [("change", "red", "cli"), ("create", "red", "cli")]
    assert found[0]["changes"] == {"limits": []}
    assert [one["noun"] for one in shell.json("audit", "--limit", "1")] == ["user"]
    rows = list(csv.DictReader(io.StringIO(shell.type("audit", "--csv"))))
    assert [row["noun"] for row in rows] == ["user", "team", "team"]
    assert shell.json("audit", "--since", "2199-01-01") == []
    assert "--limit" in shell.refused("audit", "--limit", "0")
    assert "since" in shell.refused("audit", "--since", "yesterday")


def test_prices_are_set_listed_and_deleted(shell: Shell) -> None:
    assert shell.type("prices", "list") == "nothing costs anything\n"
    shell.type("prices", "set", "gpt-4o-mini", "--input", "2.5", "--output", "10", "--from", "2026-01-01")
    later = shell.json(
        "prices", "set", "chat", "--input", "3", "--cached-input", "0.3", "--output", "12", "--from", "2199-01-01"
    )
    found = shell.json("prices", "list", "--model", "chat")
    assert [(one["model"], one["input"], one["cached_input"], one["now"]) for one in found] == [
        ("chat", "2.5", "2.5", True), ("chat", "3", "0.3", False),
    ]  # fmt: skip
    table = list(csv.DictReader(io.StringIO(shell.type("prices", "list", "--csv"))))
    assert [row["valid_from"] for row in table] == ["2026-01-01T00:00:00Z", "2199-01-01T00:00:00Z"]
    shell.type("prices", "delete", later["id"])
    assert len(shell.json("prices", "list")) == 1
    for words, told in [
        (["set", "nothing", "--input", "1", "--output", "1"], "model: "),
        (["set", "chat", "--input", "-1", "--output", "1"], "input: "),
        (["set", "chat", "--input", "1", "--output", "1", "--from", "soon"], "valid_from: "),
        (["set", "chat", "--input", "1", "--output", "1", "--deployment", "near"], "deployment: "),
        (["set", "chat", "--input", "1", "--output", "1", "--from", "2026-01-01"], "valid_from"),
        (["delete", "file:far:0"], "configuration file"),
        (["delete", "nothing"], "no price"),
        (["list", "--model", "nothing"], "--model"),
    ]:
        assert told in shell.refused("prices", *words)
    assert len(shell.json("prices", "list")) == 1


def test_usage_equals_the_ledger(shell: Shell) -> None:
    shell.json("keys", "list")
    now_us = time.time_ns() // 1000
    rows = [
        row(f"r{n}", admitted_us=now_us - n * 10**9, team_id=("red", "=cmd")[n % 2], output_tokens=n, cost_nusd=n * 7 + 1)
        for n in range(20)
    ]

    async def store() -> None:
        engine = connect(f"sqlite+aiosqlite:///{shell.file.parent / 'var' / 'gateway.db'}")
        await store_rows(engine, rows)
        await engine.dispose()

    asyncio.run(store())
    found = shell.json("usage", "--by", "team")
    assert sum(one["cost_nusd"] for one in found) == sum(one.cost_nusd for one in rows)
    assert sum(one["requests"] for one in found) == 20
    assert [one["team"] for one in shell.json("usage", "--by", "team", "--team", "red")] == ["red"]
    table = list(csv.DictReader(io.StringIO(shell.type("usage", "--by", "team,model", "--csv"))))
    assert sum(int(one["output_tokens"]) for one in table) == sum(one.output_tokens for one in rows)
    assert {one["team"] for one in table} == {"red", "'=cmd"}, "a spreadsheet must not take a name for a formula"
    assert "OUTPUT_TOKENS" in shell.type("usage", "--by", "day")
    assert shell.type("usage", "--until", "2001-01-01") == "nothing was used in this time\n"
