"""A real llama.cpp server in a process of its own: `python -m tests.integration.llamacpp_server MODEL CONTEXT [rerank]`.

Prints its address as one line, serves until its standard input closes. `serving` runs one for a test.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest


@contextmanager
def serving(model: str, context: int, work: str = "") -> Iterator[str]:
    """The address of a server that is ready; skips the test where there is none."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    command = [sys.executable, "-m", "tests.integration.llamacpp_server", model, str(context), *([work] if work else [])]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            address = next((line.split()[1] for line in server.stdout if line.startswith("listening ")), "")
            assert address, "the server did not start"
            deadline = time.monotonic() + 60
            while httpx.get(address + "/health").status_code != 200:
                assert time.monotonic() < deadline, "the server did not become ready"
                time.sleep(0.1)
            yield address
        finally:
            server.stdin.close()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def main(model: str, context: int, work: str = "") -> None:
    """Serve the model on a free port of the loopback."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = 0
    params.n_ctx = context
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.warmup = False
    if work == "rerank":
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    server = xllamacpp.Server(params)
    print(f"listening {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
