"""The llama.cpp pool, alone and through the whole gateway, against llama.cpp's own server, as streams: `make bench-engines`.

    python -m tests.bench.engines --server /path/to/llama-server [--rounds 3] [--tokens 64] [--parts long] [--who pool]

Same weights, threads, slots and context; all run at once and take turns, and every round's ratio is taken by itself.
Two workloads: prompts that nobody has seen, and prompts with a long beginning in common, which both sides may keep.
Told are tokens per second (of time, and of CPU time of the contender's whole process tree: that hardly minds a busy
machine), the time to the first token and between two tokens. The part `long` tells how much a stream's tokens are held up
while others' prompts of some 4,000 tokens are read, for each of `--who`. Without `--server` the server is the one inside
xllamacpp, built without this machine's own instructions: no fair opponent.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from backends.core.events import TextDelta
from backends.core.request import GenerationRequest, Prompt, Sampling
from backends.engines.client import EngineClient
from tests.bench.accounting import cpu_between, cpu_times
from tests.bench.llamacpp_pool import WORDS, prompt, start_server, until_healthy
from tests.bench.memory import root_pid
from tests.bench.programs import KEY
from tests.bench.report import number, table
from tests.bench.rounds import measuring
from tests.engine_host import running
from tests.gateway_process import GatewayProcess, declared_key
from tests.models import chat_gguf
from tests.servers import RedisServer

SLOTS, CONTEXT = 16, 2048
PARALLEL = (1, 4, 8, 16)
#: Tokens of the beginning that prompts of the second workload share, about; and of all long prompts together.
SHARED, LONG = 400, 4000

#: Streams an answer of so many tokens to a prompt; yields the instant of each event with text.
Stream = Callable[[str, int], AsyncIterator[float]]


@dataclass(frozen=True)
class Contender:
    """Who answers, and the roots of the process trees that this costs."""

    stream: Stream
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """`first_s`, `between_s`: of all streams of the round. `per_s`, `per_cpu_s`: tokens."""

    per_s: float
    per_cpu_s: float
    first_s: tuple[float, ...]
    between_s: tuple[float, ...]


def of_pool(client: EngineClient) -> Stream:
    """The engine's host over its socket, as a worker asks."""

    async def stream(text: str, tokens: int) -> AsyncIterator[float]:
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        async with client.open(GenerationRequest("chat", prompts=(Prompt(text),), sampling=sampling)) as batches:
            async for batch in batches:
                now = time.perf_counter()
                for event in batch:
                    if isinstance(event, TextDelta):
                        yield now

    return stream


def of_http(http: httpx.AsyncClient, url: str, body: dict[str, object], cap: str, mark: str, key: str = "") -> Stream:
    """A server over HTTP with SSE. `cap`: the name of its output cap. `mark`: what an event with text contains."""

    async def stream(text: str, tokens: int) -> AsyncIterator[float]:
        whole = {**body, "prompt": text, cap: tokens, "temperature": 0.0, "ignore_eos": True, "stream": True}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with http.stream("POST", url, json=whole, headers=headers) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and mark in line and f'{mark}""' not in line:
                    yield time.perf_counter()

    return stream


async def one(stream: Stream, text: str, tokens: int) -> tuple[float, list[float]]:
    """Seconds to the first event and between events."""
    began = time.perf_counter()
    seen = [at async for at in stream(text, tokens)]
    assert seen, "an answer without text"
    return seen[0] - began, [after - before for before, after in itertools.pairwise(seen)]


async def one_round(contender: Contender, prompts: Sequence[str], tokens: int) -> Round:
    """All prompts at once."""
    before, began = cpu_times(contender.roots), time.perf_counter()
    found = await asyncio.gather(*(one(contender.stream, text, tokens) for text in prompts))
    wall, after = time.perf_counter() - began, cpu_times(contender.roots)
    made = len(prompts) * tokens  # ignore_eos: each makes exactly so many; some share an event where text is held back
    gaps = tuple(gap for _, between in found for gap in between)
    return Round(made / wall, made / cpu_between(before, after), tuple(first for first, _ in found), gaps)


def unseen(rng: random.Random, count: int) -> list[str]:
    """Prompts that share nothing worth keeping."""
    return [prompt(rng) for _ in range(count)]


def alike(rng: random.Random, count: int) -> list[str]:
    """Prompts with a long beginning in common that nobody has seen before."""
    beginning = " ".join(rng.choice(WORDS) for _ in range(SHARED))
    return [f"{beginning} {prompt(rng)}" for _ in range(count)]


WORKLOADS = {"unseen": ("unseen prompts", unseen), "shared": ("a shared beginning", alike)}
WHO = ("server", "pool", "gateway")
PARTS = (*WORKLOADS, "long")


def configuration(gguf: str, threads: int, redis_url: str) -> dict[str, object]:
    """A gateway with one local engine, a key and its limits in Redis."""
    limits = [{"requests": 10**9, "per": "minute"}, {"tokens": 10**12, "per": "minute"}, {"concurrent": 1000}]
    return {
        "server": {"workers": 1},
        "redis": {"url": redis_url, "timeout_ms": 2000},
        "auth": {"pepper": "env:SWITCHYARD_BENCH_PEPPER"},
        "engines": {"pool": {"model": gguf, "slots": SLOTS, "context": CONTEXT, "threads": threads}},
        "deployments": {"pool": {"engine": "pool", "model": "chat"}},
        "models": {"chat": {"tiers": [["pool"]]}},
        "keys": {"declared": [declared_key("bench", KEY, limits=limits)]},
    }


async def contenders(stack: AsyncExitStack, asked: argparse.Namespace, folder: Path) -> dict[str, Contender]:
    """Everybody, started and warm."""
    gguf = chat_gguf()
    redis = RedisServer(folder / "redis")
    redis.start()
    stack.callback(redis.kill)
    options = {"threads": asked.threads, "step_log": None}  # the journal of tests is no part of what is compared
    host, client = await stack.enter_async_context(
        running("llamacpp", gguf, slots=SLOTS, context=CONTEXT, queue=64, options=options)
    )
    http = await stack.enter_async_context(httpx.AsyncClient(timeout=600, limits=httpx.Limits(keepalive_expiry=2)))
    server, url = start_server(asked, gguf, SLOTS, CONTEXT)
    stack.callback(server.wait)
    stack.callback(server.kill)
    tree = configuration(gguf, asked.threads, redis.url)
    gateway = stack.enter_context(GatewayProcess(folder / "gateway", tree, {"SWITCHYARD_BENCH_PEPPER": "p" * 40}))
    await asyncio.to_thread(gateway.start)
    await until_healthy(http, url)
    theirs = of_http(http, f"{url}/completion", {"cache_prompt": True}, "n_predict", '"content":')
    ours = of_http(http, f"{gateway.url}/v1/completions", {"model": "chat"}, "max_tokens", '"text":', KEY)
    return {
        "server": Contender(theirs, (server.pid,)),
        "pool": Contender(of_pool(client), (host.process.pid,)),
        "gateway": Contender(ours, (root_pid(gateway),)),
    }


Workloads = Mapping[str, Callable[[random.Random, int], list[str]]]


async def compare(who: dict[str, Contender], asked: argparse.Namespace, workloads: Workloads) -> None:
    """Each workload at every number of parallel streams, in turns."""
    rng = random.Random(1)
    for contender in who.values():
        await one_round(contender, unseen(rng, SLOTS), 8)
    for name, prompts in workloads.items():
        rows = []
        for parallel in asked.parallel:
            rounds: dict[str, list[Round]] = {one: [] for one in who}
            for turn in range(asked.rounds):
                with measuring():
                    for one_name in list(who) if turn % 2 == 0 else list(reversed(who)):
                        rounds[one_name].append(await one_round(who[one_name], prompts(rng, parallel), asked.tokens))
            rows += [_row(parallel, one_name, got, rounds["server"]) for one_name, got in rounds.items()]
        head = ["streams", "who", "tokens/s", "x server", "tokens/CPU-s", "x server", "first token ms p50", "p99",
                "between tokens ms p50", "p99"]  # fmt: skip
        print(f"\n{name}, {asked.tokens} tokens each, median of {asked.rounds} rounds\n\n{table(head, rows)}", flush=True)


def _row(parallel: int, who: str, got: list[Round], server: list[Round]) -> list[str]:
    def against(field: str) -> str:
        ratios = [getattr(a, field) / getattr(b, field) for a, b in zip(got, server, strict=True)]
        return number(statistics.median(ratios), 2)

    firsts = sorted(one for round in got for one in round.first_s)
    gaps = sorted(one for round in got for one in round.between_s)
    return [
        str(parallel),
        who,
        number(statistics.median(one.per_s for one in got)),
        against("per_s"),
        number(statistics.median(one.per_cpu_s for one in got)),
        against("per_cpu_s"),
        *(number(1000 * part(values, q)) for values in (firsts, gaps) for q in (0.5, 0.99)),
    ]


def part(values: Sequence[float], q: float) -> float:
    """A quantile of sorted values, the nearest one above."""
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


async def beside_long_prompts(who: dict[str, Contender]) -> None:
    """How much the gaps of a running stream grow while long prompts are read beside it."""
    rng = random.Random(2)
    rows = []
    for name, contender in who.items():
        _, calm = await one(contender.stream, prompt(rng), 200)
        watched = asyncio.create_task(one(contender.stream, prompt(rng), 400))
        await asyncio.sleep(1.0)
        each = CONTEXT - 300
        texts = [" ".join(rng.choice(WORDS) for _ in range(each)) for _ in range(max(1, round(LONG / each)))]
        await asyncio.gather(*(one(contender.stream, text, 4) for text in texts))
        _, disturbed = await watched
        before, after = part(sorted(calm), 0.99), part(sorted(disturbed), 0.99)
        rows.append([name, number(1000 * before), number(1000 * after), number(after / before, 2)])
    head = ["who", "between tokens p99 ms, undisturbed", "beside long prompts", "ratio (bar 3)"]
    print(f"\nA stream beside {LONG} prompt tokens\n\n{table(head, rows)}", flush=True)


async def measure(asked: argparse.Namespace) -> None:
    """Start everybody and measure, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder:
        async with AsyncExitStack() as stack:
            who = await contenders(stack, asked, Path(folder))
            print(f"threads {asked.threads}, slots {SLOTS}, context {CONTEXT}, load {os.getloadavg()[0]:.1f}")
            await compare(who, asked, dict(WORKLOADS[part] for part in asked.parts if part in WORKLOADS))
            if "long" in asked.parts:
                await beside_long_prompts({name: who[name] for name in asked.who})


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of every contender")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--server", default="", help="a llama-server binary")
    parser.add_argument("--parallel", type=lambda text: tuple(map(int, text.split(","))), default=PARALLEL, metavar="N,N")
    parser.add_argument("--who", type=lambda text: tuple(text.split(",")), default=WHO, help=f"of {', '.join(WHO)}")
    parser.add_argument("--parts", type=lambda text: tuple(text.split(",")), default=PARTS, help=f"of {', '.join(PARTS)}")
    asked = parser.parse_args(words)
    if unknown := (set(asked.parts) - set(PARTS)) | (set(asked.who) - set(WHO)):
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    asyncio.run(measure(asked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
