"""A gateway with everything that figures can tell of, and a load that makes each of them move.

Two workers over TLS, Redis, PostgreSQL, a llama.cpp engine, bounded and failing deployments, teams and keys with limits.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg

from gateway.telemetry.families import VLLM_COUNTERS, VLLM_GAUGES
from tests.certificates import Authority
from tests.gateway_process import ROOT, declared_key
from tests.models import chat_gguf
from tests.servers import PostgresServer, RedisServer
from tests.tls_gateway import TlsGateway
from tests.upstream import in_thread, upstream_server

PLAIN, FEW, NEAR, SHADOW = (f"sk-loaded-{name}-0123456789abcdef" for name in ("plain", "few", "near", "shadow"))
MODELS = ["fast", "slow", "falls-back", "cut", "narrow", "local", "as-vllm"]
#: An engine that tells figures under vLLM's names; that vLLM itself tells them is held by tests/engines/test_vllm_engine.py.
AS_VLLM = {"kind": "scripted", "model": "none", "slots": 2, "options": {"figures": [*VLLM_GAUGES, *VLLM_COUNTERS]}}


@dataclass
class Loaded:
    """The house, and the keys that the load uses."""

    gateway: TlsGateway
    redis: RedisServer
    postgres: PostgresServer
    keys: list[str]

    def sql(self, text: str, since_s: float) -> tuple[list[str], list[tuple[object, ...]]]:
        """Columns and rows of a dashboard's SQL, with Grafana's macros as its documentation has them."""
        import re

        text = re.sub(r"\$__unixEpochGroupAlias\((.+?), \$__interval\)", r'floor((\1)/10)*10 AS "time"', text)
        text = text.replace("$__unixEpochFrom()", str(int(since_s))).replace("$__unixEpochTo()", str(int(time.time()) + 1))
        with psycopg.connect(host="127.0.0.1", port=self.postgres.port, user="switchyard", dbname="postgres") as database:
            found = database.execute(text)  # type: ignore[arg-type]
            return [column.name for column in found.description or []], found.fetchall()


def _tree(upstream: str, redis: RedisServer, postgres: PostgresServer, cert: Path, key: Path) -> dict[str, object]:
    far = {"dialect": "openai_compatible", "base_url": upstream}
    return {
        "server": {"workers": 2, "tls_cert_file": str(cert), "tls_key_file": str(key)},
        "redis": {"url": redis.url, "timeout_ms": 2000},
        "ledger": {"url": postgres.url},
        "auth": {"pepper": "env:SY_PEPPER"},
        "engines": {
            "tiny": {"kind": "llamacpp", "model": chat_gguf(), "slots": 2, "context": 256, "threads": 1},
            "as-vllm": AS_VLLM,
        },
        "deployments": {
            "fast": {**far, "model": "words-20-d5-t10", "price": {"input": 2.5, "output": 10}},
            "slow": {**far, "model": "words-10-d100-t300", "price": {"input": 0.5, "output": 1}},
            "ill": {**far, "model": "words-3-status-500"},
            "cut": {**far, "model": "words-6-cut"},
            "narrow": {**far, "model": "words-10-d30", "max_in_flight": 2},
            "tiny": {"engine": "tiny", "model": "SmolLM2-135M-Instruct"},
            "as-vllm": {"engine": "as-vllm", "model": "none"},
        },
        "models": {
            "fast": {"tiers": [["fast"]]},
            "slow": {"tiers": [["slow"]]},
            "falls-back": {"tiers": [["ill"], ["fast"]]},
            "cut": {"tiers": [["cut"]]},
            "narrow": {"tiers": [["narrow"]]},
            "local": {"tiers": [["tiny"]], "default_output_tokens": 12},
            "as-vllm": {"tiers": [["as-vllm"]]},
        },
        "teams": {"declared": {"limits": [{"requests": 5000, "per": "calendar_day"}, {"concurrent": 50}]}},
        "keys": {
            "declared": [
                declared_key("plain", PLAIN, user="ann", team="declared"),
                declared_key("few", FEW, limits=[{"requests": 2, "per": "hour"}]),
                declared_key("near", NEAR, limits=[{"tokens": 10_000_000, "per": "hour"}, {"requests": 40, "per": "hour"}]),
                declared_key("shadow", SHADOW, limits=[{"requests": 1, "per": "hour", "shadow": True}]),
            ]
        },
    }


@contextmanager
def loaded_gateway(folder: Path) -> Iterator[Loaded]:
    """All of it, started; ended at the exit."""
    with ExitStack() as stack:
        authority = Authority(folder / "tls")
        cert, key = authority.sign("gateway")
        redis = RedisServer(folder / "redis").start()
        stack.callback(redis.kill)
        postgres = PostgresServer()
        stack.callback(postgres.remove)
        postgres.start()
        upstream = stack.enter_context(in_thread(upstream_server))
        env = {"SY_PEPPER": "p" * 40}
        gateway = TlsGateway(folder / "gateway", _tree(upstream.url, redis, postgres, cert, key), env)
        gateway.trust = ssl.create_default_context(cafile=str(authority.file))
        stack.enter_context(gateway)
        gateway.start(timeout_s=120)
        keys = [PLAIN]
        for team, limits in (
            ("research", ["tokens=20000/hour", "usd=5/month"]),
            ("sales", ["requests=60/hour", "usd=0.05/calendar_day"]),
        ):
            _command(gateway, env, "teams", "new", team, *(word for limit in limits for word in ("--limit", limit)))
            for name in ("one", "two"):
                minted = _command(gateway, env, "keys", "new", "--name", f"{team} {name}", "--team", team, "--user", name)
                keys.append(str(minted["secret"]))
        time.sleep(1.5)  # every worker learns of new keys within a second
        yield Loaded(gateway, redis, postgres, keys)


def _command(gateway: TlsGateway, env: dict[str, str], *words: str) -> dict[str, object]:
    import os

    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words, "--config", str(gateway.file), "--json"],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


async def load(house: Loaded, seconds: float, seed: int = 1, callers: int = 8) -> int:
    """Ask for so long; how many requests were made. Each caller is one client after another's end."""
    dice = random.Random(seed)
    until = time.monotonic() + seconds
    made = 0
    async with httpx.AsyncClient(timeout=30, verify=house.gateway.trust) as http:

        async def caller() -> None:
            nonlocal made
            while time.monotonic() < until:
                made += 1
                await _one(http, house, dice)
                await asyncio.sleep(dice.random() * 0.2)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
    return made


async def _one(http: httpx.AsyncClient, house: Loaded, dice: random.Random) -> None:
    model = dice.choices([*MODELS, f"unknown-{dice.random()}"], [8, 2, 3, 1, 6, 2, 2, 1])[0]
    key = dice.choices([*house.keys, FEW, NEAR, SHADOW, "sk-unknown"], [*[6] * len(house.keys), 1, 3, 1, 1])[0]
    body = {"model": model, "stream": dice.random() < 0.8, "messages": [{"role": "user", "content": "Say some words."}]}
    leaves = dice.random() < 0.05
    with suppress(httpx.HTTPError):
        async with http.stream(
            "POST", house.gateway.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        ) as answer:
            async for _ in answer.aiter_raw():
                if leaves:
                    return
