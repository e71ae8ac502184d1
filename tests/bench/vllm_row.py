"""vLLM inside the gateway against vLLM's own server: same model, same arguments, as streams; a part of `make bench-engines`.

    SWITCHYARD_VLLM_PYTHON=... python -m tests.bench.vllm_row [--rounds 3] [--tokens 64] [--parallel 1,4,8,16]

Both run at once, on the CPU with the tiny model, and take turns. So small a model makes the most of what is around it:
this compares the two ways to vLLM, not vLLM with anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import psutil

from tests import heavy
from tests.bench.engines import PARALLEL, SLOTS, Contender, compare, of_http, unseen
from tests.bench.memory import root_pid
from tests.bench.programs import KEY
from tests.engines import peers
from tests.gateway_process import GatewayProcess, declared_key

CONTEXT = 1024


def configuration(python: str, model: str) -> dict[str, object]:
    """A gateway whose engine is started as `peers.vllm` starts the server."""
    engine = {
        "kind": "vllm", "python": python, "model": model, "slots": SLOTS, "context": CONTEXT, "environment": heavy.VLLM_ON_CPU,
        "options": {"arguments": {"enforce_eager": True}},
    }  # fmt: skip
    return {
        "server": {"workers": 1},
        "engines": {"big": engine},
        "deployments": {"big": {"engine": "big", "model": "tiny"}},
        "models": {"chat": {"tiers": [["big"]]}},
        "keys": {"declared": [declared_key("bench", KEY)]},
    }


async def main(asked: argparse.Namespace, python: str) -> None:
    """Start both, and compare."""
    model = str(heavy.tiny_model(Path(python)))
    with tempfile.TemporaryDirectory(prefix="sy-vllm-") as folder:
        async with AsyncExitStack() as stack:
            peer = stack.enter_context(peers.vllm(Path(folder) / "server", "--max-num-seqs", str(SLOTS)))
            gateway = stack.enter_context(GatewayProcess(Path(folder) / "gateway", configuration(python, model)))
            await asyncio.to_thread(gateway.start, timeout_s=300)
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=600))
            [listening] = {
                one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr[1] == peer.port
            }
            assert listening is not None
            theirs = of_http(http, f"{peer.url}/v1/completions", {"model": peer.model}, "max_tokens", '"text":')
            ours = of_http(http, f"{gateway.url}/v1/completions", {"model": "chat"}, "max_tokens", '"text":', KEY)
            print(f"vLLM on the CPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
            who = {"server": Contender(theirs, (listening,)), "gateway": Contender(ours, (root_pid(gateway),))}
            await compare(who, asked, {"unseen prompts": unseen})  # a long common beginning is over the tiny model's context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--parallel", type=lambda text: tuple(map(int, text.split(","))), default=PARALLEL)
    return parser.parse_args()


if __name__ == "__main__":
    named = os.environ.get("SWITCHYARD_VLLM_PYTHON", "")
    asked = arguments()
    if named:
        asyncio.run(main(asked, named))
    else:
        print("vLLM's row is left out: SWITCHYARD_VLLM_PYTHON names no environment that has it", file=sys.stderr)
