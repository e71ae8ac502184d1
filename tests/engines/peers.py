"""Real model servers of other projects, started from environments of their own, on the tiny model where they load one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests import heavy
from tests.gateway_process import GatewayProcess
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_START_S = 300.0


@dataclass
class Peer:
    """A server that is ready. `model` is what it calls its model."""

    port: int
    model: str
    log: Path
    folder: Path

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def _running(peer: Peer, command: Sequence[str], ready: str, environment: Mapping[str, str]) -> Iterator[Peer]:
    """The server's process, in a group of its own that ends with the block.

    Raises:
        AssertionError: it ended, or did not become ready in time; the text has the end of its log.
    """
    peer.folder.mkdir(parents=True, exist_ok=True)
    with peer.log.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **_QUIET, **environment}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(peer.url + ready):
            tail = peer.log.read_text(errors="replace")[-1500:]
            assert process.poll() is None, f"it ended with {process.returncode}:\n{tail}"
            assert time.monotonic() < deadline, f"it is not ready after {_START_S} s:\n{tail}"
            time.sleep(0.5)
        yield peer
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its children too, which may have gone into groups of their own."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    for one in (*children, process):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(10)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


@contextlib.contextmanager
def vllm(folder: Path, *options: str) -> Iterator[Peer]:
    """vLLM's OpenAI server on the CPU. Its console script looks for a package of another name, so the module is run."""
    python = heavy.python("vllm")
    peer = Peer(free_port(), "tiny", folder / "vllm.log", folder)
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(heavy.tiny_model(python))),
        *("--served-model-name", peer.model, "--host", "127.0.0.1", "--port", str(peer.port)),
        *("--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8", *options),
    ]
    with _running(peer, command, "/health", heavy.VLLM_ON_CPU) as running:
        yield running


@contextlib.contextmanager
def transformers(folder: Path) -> Iterator[Peer]:
    """`transformers serve` on the CPU; it calls a model by its folder."""
    python = heavy.python("transformers")
    model = str(heavy.tiny_model(python))
    peer = Peer(free_port(), model, folder / "transformers.log", folder)
    program = python.parent / "transformers"
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(peer.port), "--device", "cpu", model]
    with _running(peer, command, "/health", {"OMP_NUM_THREADS": "2"}) as running:
        yield running


@contextlib.contextmanager
def triton(folder: Path) -> Iterator[Peer]:
    """Triton with the models of `triton_server.py`."""
    python = heavy.python("triton")
    peer = Peer(free_port(), "ensemble", folder / "triton.log", folder)
    ports = [str(peer.port), str(free_port()), str(free_port())]
    command = [str(python), str(Path(__file__).with_name("triton_server.py")), *ports, str(folder)]
    with _running(peer, command, "/v2/models/tensorrt_llm_bls/ready", {}) as running:
        yield running


def connections(gateway: GatewayProcess, peer: Peer) -> int:
    """How many connections the gateway's processes hold to a server."""
    found = 0
    for process in gateway.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            open_ones = process.net_connections("tcp")
            found += sum(1 for one in open_ones if one.raddr and one.raddr.port == peer.port and one.status == "ESTABLISHED")
    return found
