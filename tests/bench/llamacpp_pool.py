"""Aggregate tokens per second of our llama.cpp pool against llama.cpp's own server: same weights, same threads.

    python -m tests.bench.llamacpp_pool [--threads 2] [--rounds 5] [--server /path/to/llama-server]
                                        [--gateway http://127.0.0.1:8080/v1 --key sk-... --model chat]

The two take turns, so that what else the machine does falls on both; each round's ratio is taken by itself and the
median told. Ours is asked through its host's socket, as a worker asks (`Usage` is counted, every token an event);
the server over HTTP without streaming, which spares it the cost of events. Without `--server` the server is the one
inside the package xllamacpp, which is built without this machine's own instructions: a build of the same llama.cpp
is the fair opponent. With `--gateway` a third contender is a running gateway over its HTTP surface, unary.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import httpx
import psutil

from backends.core.request import GenerationRequest, Prompt, Sampling
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from tests.engine_host import events, running
from tests.models import chat_gguf

WORDS = ("river", "stone", "cloud", "window", "paper", "green", "seven", "morning", "table", "bridge", "winter", "music")
PARALLEL = (1, 4, 8)
CONTEXT = 512
XLLAMACPP = """
import sys, time, xllamacpp as x
p = x.CommonParams()
slots = int(sys.argv[5])
p.model.path, p.n_parallel, p.n_ctx, p.port = sys.argv[1], slots, int(sys.argv[4]) * slots, int(sys.argv[3])
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[2])
s = x.Server(p)
sys.stdin.read()
"""

Generate = Callable[[str, int], Awaitable[int]]


def prompt(rng: random.Random) -> str:
    """About 32 tokens that no cache has seen."""
    return " ".join(rng.choice(WORDS) for _ in range(30))


def of_pool(client: EngineClient) -> Generate:
    async def generate(text: str, count: int) -> int:
        sampling = Sampling(max_tokens=count, temperature=0.0, ignore_eos=True)
        got = await events(client, GenerationRequest("chat", prompts=(Prompt(text),), sampling=sampling))
        assert isinstance(got[-1], Usage)
        return got[-1].output_tokens

    return generate


def of_server(http: httpx.AsyncClient, base: str) -> Generate:
    async def generate(text: str, count: int) -> int:
        body = {"prompt": text, "n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        answer = await http.post(f"{base}/completion", json=body)
        answer.raise_for_status()
        return int(answer.json()["tokens_predicted"])

    return generate


def of_gateway(http: httpx.AsyncClient, base: str, key: str, model: str) -> Generate:
    async def generate(text: str, count: int) -> int:
        body = {"model": model, "prompt": text, "max_tokens": count, "temperature": 0, "ignore_eos": True}
        answer = await http.post(f"{base}/completions", json=body, headers={"authorization": f"Bearer {key}"})
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])

    return generate


class Contender(NamedTuple):
    """Who generates, and the process that computes."""

    generate: Generate
    process: psutil.Process


class Round(NamedTuple):
    """Tokens per second, and per second of the computing process' CPU time: the latter hardly minds a busy machine."""

    wall: float
    cpu: float


async def measure(one: Contender, parallel: int, tokens: int, rng: random.Random) -> Round:
    """That many requests at once."""
    cpu = sum(one.process.cpu_times()[:2])
    began = time.perf_counter()
    made = await asyncio.gather(*(one.generate(prompt(rng), tokens) for _ in range(parallel)))
    wall = time.perf_counter() - began
    assert made == [tokens] * parallel, made
    return Round(sum(made) / wall, sum(made) / (sum(one.process.cpu_times()[:2]) - cpu))


def line(parallel: int, rounds: dict[str, list[Round]]) -> str:
    """One row of the report."""
    parts = [f"{parallel} parallel:"]
    for name, got in rounds.items():
        wall, cpu = ([getattr(one, kind) for one in got] for kind in Round._fields)
        part = f"{name} {statistics.median(wall):.1f} tok/s, {statistics.median(cpu):.1f} per CPU-s"
        if name != "server":
            ratios = {
                kind: statistics.median(getattr(a, kind) / getattr(b, kind) for a, b in zip(got, rounds["server"], strict=True))
                for kind in Round._fields
            }
            part += f" (x{ratios['wall']:.2f}, x{ratios['cpu']:.2f})"
        parts.append(part)
    return "  ".join(parts)


def start_server(
    args: argparse.Namespace, gguf: str, slots: int = 8, context: int = CONTEXT
) -> tuple[subprocess.Popen[bytes], str]:
    """llama.cpp's own server in a child process, and its address. `context`: tokens of one slot."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(args.threads)
    if args.server:
        argv = [
            args.server,
            "-m",
            gguf,
            "--port",
            str(port),
            "-np",
            str(slots),
            "-c",
            str(context * slots),
            "-t",
            threads,
            "-tb",
            threads,
        ]
        argv += ["--no-ui"]
    else:
        argv = [sys.executable, "-c", XLLAMACPP, gguf, threads, str(port), str(context), str(slots)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet), f"http://127.0.0.1:{port}"


async def until_healthy(http: httpx.AsyncClient, base: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await http.get(f"{base}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def main(args: argparse.Namespace) -> None:
    gguf = chat_gguf()
    options: dict[str, Any] = {"threads": args.threads, "prefix_cache": False}
    async with AsyncExitStack() as stack:
        host, client = await stack.enter_async_context(
            running("llamacpp", gguf, slots=8, context=CONTEXT, queue=64, options=options)
        )
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=300))
        server, base = start_server(args, gguf)
        stack.callback(server.wait)
        stack.callback(server.kill)
        await until_healthy(http, base)
        contenders = {
            "pool": Contender(of_pool(client), psutil.Process(host.process.pid)),
            "server": Contender(of_server(http, base), psutil.Process(server.pid)),
        }
        if args.gateway:
            engine = psutil.Process(args.gateway_engine_pid)
            contenders["gateway"] = Contender(of_gateway(http, args.gateway, args.key, args.model), engine)
        rng = random.Random(1)
        for one in contenders.values():
            await measure(one, 8, 16, rng)
        print(f"threads {args.threads}, {args.tokens} tokens each, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}")
        for parallel in PARALLEL:
            rounds: dict[str, list[Round]] = {name: [] for name in contenders}
            for turn in range(args.rounds):
                for name in list(contenders) if turn % 2 else list(reversed(contenders)):
                    rounds[name].append(await measure(contenders[name], parallel, args.tokens, rng))
            print(line(parallel, rounds), flush=True)
        steps = host.lines("step")
        model_s, step_s = (sum(step[name] for step in steps) for name in ("model_s", "step_s"))
        between = [b["t"] - a["t"] - b["step_s"] for a, b in itertools.pairwise(steps)]
        gap_us = statistics.median(gap for gap in between if gap < 0.05) * 1e6
        print(f"of the pool's step time {model_s / step_s:.2%} in llama_decode; between two steps {gap_us:.0f} us (median)")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--server", default="", help="a llama-server binary")
    parser.add_argument("--gateway", default="", help="base URL of a running gateway, with /v1")
    parser.add_argument("--gateway-engine-pid", type=int, default=os.getpid(), help="the gateway's engine host")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="chat")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
