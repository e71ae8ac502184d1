"""CPU microseconds of parsing a request and of encoding a chunk. Run: `python -m tests.bench.bench_protocols`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from backends.core.events import Finish, Started, TextDelta
from backends.core.usage import Usage
from gateway.protocols.contract import Identity
from gateway.protocols.registry import CHAT, EMBEDDINGS

IDENTITY = Identity("chatcmpl-0198c0de-aaaa-7bbb-8ccc-00000000abcd", 1_700_000_000, "chat")


def measure(name: str, work: Callable[[], object], each: int = 1, rounds: int = 5, calls: int = 2000) -> None:
    """Print the best of some rounds, in microseconds of CPU per unit of work."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time_ns()
        for _ in range(calls):
            work()
        best = min(best, (time.process_time_ns() - began) / calls / each / 1000)
    print(f"{name:48} {best:8.2f} µs")


def main() -> None:
    """Print one line per case."""
    small = json.dumps(
        {"model": "chat", "stream": True, "max_tokens": 64, "temperature": 0.7,
         "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]}
    ).encode()  # fmt: skip
    big = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "Some words, again. " * 2100}]}).encode()
    long = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "word " * 40}] * 100}).encode()
    measure(f"parse chat, {len(small)} B", lambda: CHAT.parse(small))
    measure(f"parse chat, {len(big)} B", lambda: CHAT.parse(big), calls=500)
    measure(f"parse chat, {len(long)} B in 100 messages", lambda: CHAT.parse(long), calls=500)
    measure("parse embeddings", lambda: EMBEDDINGS.parse(b'{"model":"embed","input":"hello","encoding_format":"base64"}'))
    call = CHAT.parse(small)
    deltas = [TextDelta(" token") for _ in range(128)]

    def stream(batches: list[list[TextDelta]]) -> None:
        encoder = CHAT.encoder(call, IDENTITY)
        encoder.feed([Started("m")])
        for batch in batches:
            encoder.feed(batch)
        encoder.feed([Finish("stop"), Usage(1, 128)])
        encoder.close()

    singles, eights = [[one] for one in deltas], [deltas[at : at + 8] for at in range(0, 128, 8)]
    measure("encode chat stream, per chunk, 1 a batch", lambda: stream(singles), each=128, calls=100)
    measure("encode chat stream, per chunk, 8 a batch", lambda: stream(eights), each=128, calls=100)
    whole = CHAT.parse(small.replace(b"true", b"false"))

    def unary() -> None:
        encoder = CHAT.encoder(whole, IDENTITY)
        encoder.feed([Started("m"), TextDelta("Hello there, how are you?"), Finish("stop"), Usage(1, 8)])
        encoder.close()

    measure("encode chat whole", unary)


if __name__ == "__main__":
    main()
