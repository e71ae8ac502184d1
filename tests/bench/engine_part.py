"""The llama.cpp pool beside llama.cpp's own server: alone, and through the whole gateway; same weights, threads, context.

    python -m tests.bench.engine_part [--threads 1] [--engine-rounds 3] [--tokens 64] [--server /path/to/llama-server]

All contenders run at once and take turns, so that what else the machine does falls on all. A ratio is the median over
rounds of ours to the server's in the same manner: whole answers to whole answers, streams to streams. Beside the rate
stands the rate per second of CPU time of the contender's whole process tree, which hardly minds a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench.accounting import cpu_between, cpu_times
from tests.bench.figures import Figure
from tests.bench.llamacpp_pool import (
    CONTEXT,
    PARALLEL,
    Generate,
    of_gateway,
    of_pool,
    of_server,
    prompt,
    start_server,
    until_healthy,
)
from tests.bench.memory import root_pid
from tests.bench.programs import KEY
from tests.bench.report import figures_table, number, table
from tests.bench.rounds import measuring
from tests.engine_host import running
from tests.gateway_process import GatewayProcess, declared_key
from tests.models import chat_gguf
from tests.servers import RedisServer

MODEL = "chat"
SLOTS = 8
#: Whom each of ours is compared with.
PEERS = {"pool": "server", "gateway": "server", "gateway, streamed": "server, streamed"}


@dataclass(frozen=True)
class Contender:
    """Who generates, and the roots of the process trees that this costs."""

    generate: Generate
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """Tokens per second of time and of CPU time."""

    per_s: float
    per_cpu_s: float


#: By number of parallel requests and contender.
Rounds = dict[int, dict[str, list[Round]]]


async def _last_event(http: httpx.AsyncClient, url: str, body: dict[str, object], headers: dict[str, str]) -> dict[str, object]:
    """The last event of a stream that is an object; every event is read."""
    last = ""
    async with http.stream("POST", url, json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                last = line
    found: dict[str, object] = json.loads(last[6:])
    return found


def of_streaming_server(http: httpx.AsyncClient, base: str) -> Generate:
    """llama.cpp's own server, an event per token."""

    async def generate(text: str, count: int) -> int:
        body = {
            "prompt": text,
            "n_predict": count,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        last = await _last_event(http, f"{base}/completion", body, {})
        return int(str(last["tokens_predicted"]))

    return generate


def of_streaming_gateway(http: httpx.AsyncClient, base: str, key: str) -> Generate:
    """The gateway, a chunk per token, and the usage it counted."""

    async def generate(text: str, count: int) -> int:
        body = {"model": MODEL, "prompt": text, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        last = await _last_event(http, f"{base}/completions", body, {"authorization": f"Bearer {key}"})
        usage = last["usage"]
        assert isinstance(usage, dict), last
        return int(usage["completion_tokens"])

    return generate


def configuration(gguf: str, threads: int, redis_url: str) -> dict[str, object]:
    """A gateway with one local engine, a key and its limits in Redis."""
    limits = [{"requests": 10**9, "per": "minute"}, {"tokens": 10**12, "per": "minute"}, {"concurrent": 1000}]
    engine = {"model": gguf, "slots": SLOTS, "context": CONTEXT, "queue": 64, "threads": threads,
              "options": {"prefix_cache": False}}  # fmt: skip
    return {
        "server": {"workers": 1},
        "redis": {"url": redis_url, "timeout_ms": 2000},
        "auth": {"pepper": "env:SWITCHYARD_BENCH_PEPPER"},
        "engines": {"pool": engine},
        "deployments": {"pool": {"engine": "pool", "model": MODEL}},
        "models": {MODEL: {"tiers": [["pool"]]}},
        "keys": {"declared": [declared_key("bench", KEY, limits=limits)]},
    }


async def one_round(contender: Contender, parallel: int, tokens: int, rng: random.Random) -> Round:
    """That many requests at once; every one makes exactly `tokens`."""
    before, began = cpu_times(contender.roots), time.perf_counter()
    made = await asyncio.gather(*(contender.generate(prompt(rng), tokens) for _ in range(parallel)))
    wall, after = time.perf_counter() - began, cpu_times(contender.roots)
    assert made == [tokens] * parallel, made
    return Round(sum(made) / wall, sum(made) / cpu_between(before, after))


async def measure(asked: argparse.Namespace, folder: Path) -> Rounds:
    """Start everybody, warm everybody, and let them take turns."""
    gguf = chat_gguf()
    redis = RedisServer(folder / "redis")
    async with AsyncExitStack() as stack:
        redis.start()
        stack.callback(redis.kill)
        options = {"threads": asked.threads, "prefix_cache": False, "step_log": None}
        host, client = await stack.enter_async_context(
            running("llamacpp", gguf, slots=SLOTS, context=CONTEXT, queue=64, options=options)
        )
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=300))
        server, server_url = start_server(asked, gguf)
        stack.callback(server.wait)
        stack.callback(server.kill)
        tree = configuration(gguf, asked.threads, redis.url)
        gateway = stack.enter_context(GatewayProcess(folder / "gateway", tree, {"SWITCHYARD_BENCH_PEPPER": "p" * 40}))
        await asyncio.to_thread(gateway.start)
        await until_healthy(http, server_url)
        api, own = gateway.url + "/v1", (root_pid(gateway),)
        contenders = {
            "pool": Contender(of_pool(client), (host.process.pid,)),
            "server": Contender(of_server(http, server_url), (server.pid,)),
            "server, streamed": Contender(of_streaming_server(http, server_url), (server.pid,)),
            "gateway": Contender(of_gateway(http, api, KEY, MODEL), own),
            "gateway, streamed": Contender(of_streaming_gateway(http, api, KEY), own),
        }
        try:
            return await take_turns(contenders, asked)
        except (httpx.HTTPError, AssertionError) as error:
            error.add_note(f"the gateway's log ends with:\n{gateway.tail()}")
            raise


async def take_turns(contenders: dict[str, Contender], asked: argparse.Namespace) -> Rounds:
    """All rounds; every other one runs backwards."""
    rng = random.Random(1)
    for contender in contenders.values():
        await one_round(contender, SLOTS, 16, rng)
    rounds: Rounds = {}
    for parallel in PARALLEL:
        print(f"pool: {parallel} parallel …", file=sys.stderr, flush=True)
        rounds[parallel] = {name: [] for name in contenders}
        for turn in range(asked.engine_rounds):
            with measuring():  # a turn long: on a busy machine all of it takes minutes, and others measure too
                for name in list(contenders) if turn % 2 == 0 else list(reversed(contenders)):
                    rounds[parallel][name].append(await one_round(contenders[name], parallel, asked.tokens, rng))
    return rounds


def compared(rounds: Rounds, parallel: int, name: str) -> tuple[float, float]:
    """Median over rounds of ours to the peer's, by time and by CPU time."""
    pairs = list(zip(rounds[parallel][name], rounds[parallel][PEERS[name]], strict=True))
    return (
        statistics.median(ours.per_s / theirs.per_s for ours, theirs in pairs),
        statistics.median(ours.per_cpu_s / theirs.per_cpu_s for ours, theirs in pairs),
    )


def figures(rounds: Rounds) -> list[Figure]:
    """The figures of the pool at the most parallel requests."""
    bars = {"pool": (0.95, 1.05), "gateway": (0.85, 1.0), "gateway, streamed": (0.85, 1.0)}
    most = max(rounds)
    found = []
    for name, (bar, target) in bars.items():
        by_time, by_cpu = compared(rounds, most, name)
        what = "llama.cpp pool" if name == "pool" else f"llama.cpp pool through the {name}"
        found.append(
            Figure(
                name=f"{what}, tokens/s at {most} parallel",
                unit="x llama.cpp's server",
                value=by_time,
                bar=bar,
                target=target,
                better="more",
                note=f"per CPU second {by_cpu:.2f}",
            )
        )
    return found


def rounds_table(rounds: Rounds) -> str:
    """One row per contender: tokens per second at each number of parallel requests, and the ratios."""
    names = list(next(iter(rounds.values())))
    rows = []
    for name in names:
        row = [name]
        for parallel in rounds:
            row.append(number(statistics.median(one.per_s for one in rounds[parallel][name])))
            row.append(" / ".join(number(r, 2) for r in compared(rounds, parallel, name)) if name in PEERS else "-")
        rows.append(row)
    head = [h for parallel in rounds for h in (f"tokens/s at {parallel}", "x server: time / CPU")]
    return table(["contender", *head], rows)


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that `make bench` shares."""
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of every contender's engine")
    parser.add_argument("--engine-rounds", type=int, default=3, help="rounds of the pool's comparison (3)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (64)")
    parser.add_argument("--server", default="", help="a llama-server binary instead of the one inside xllamacpp")
    return parser


def run(asked: argparse.Namespace) -> Rounds:
    """Measure in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder:
        return asyncio.run(measure(asked, Path(folder)))


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables."""
    formatter = argparse.RawDescriptionHelpFormatter
    asked = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=formatter)).parse_args(words)
    rounds = run(asked)
    print(f"\n{rounds_table(rounds)}\n\n{figures_table(figures(rounds))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
