"""A real llama.cpp server in a process of its own: `python -m tests.integration.llamacpp_server MODEL CONTEXT`.

Prints its address as one line, serves until its standard input closes.
"""

from __future__ import annotations

import sys

import xllamacpp


def main(model: str, context: int) -> None:
    """Serve the model on a free port of the loopback."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = 0
    params.n_ctx = context
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"listening {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
