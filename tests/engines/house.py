"""A gateway in front of real servers: deployments with quirks of theirs, a key without limits and two with some."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from tests.engines.peers import Peer, connections
from tests.gateway_process import GatewayProcess, declared_key

KEY, FEW, ONE = "sk-engines-0123456789abcdef", "sk-engines-few-0123456789abcdef", "sk-engines-one-0123456789abcdef"


@dataclass
class House:
    """A running gateway with the OpenAI SDK's clients of its keys."""

    gateway: GatewayProcess
    peer: Peer

    def client(self, key: str = KEY) -> openai.OpenAI:
        """The SDK with a key; it retries nothing."""
        return openai.OpenAI(base_url=self.gateway.url + "/v1", api_key=key, max_retries=0, timeout=60)

    def whole(self, model: str, question: str, **more: Any) -> Any:
        """A whole answer."""
        return self.client().chat.completions.create(model=model, messages=asking(question), temperature=0, **more)

    def streamed(self, model: str, question: str, **more: Any) -> list[Any]:
        """The chunks of an answer, the last with usage."""
        options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        return list(self.client().chat.completions.create(model=model, messages=asking(question), **options, **more))

    def refused(self, model: str, kind: type[openai.APIStatusError], **more: Any) -> openai.APIStatusError:
        """The error that a request is refused with; none of its words come from inside the house."""
        try:
            answer = self.client().chat.completions.create(model=model, **{"messages": asking("Hello"), **more})
        except kind as error:
            said = json.dumps(error.body)
            for hidden in ("127.0.0.1", str(self.peer.port), "Traceback", "/site-packages/", 'File \\"'):
                assert hidden not in said, said
            return error
        raise AssertionError(f"it was answered: {answer}")

    def settled(self, count: int, **having: object) -> list[Any]:
        """The ledger's rows with these values."""
        return self.gateway.rows(count, within_s=30, **having)


@contextmanager
def house(
    folder: Path, peer: Peer, deployments: Mapping[str, Mapping[str, object]], prices: Mapping[str, float] | None = None
) -> Iterator[House]:
    """A gateway whose models are named as its deployments."""
    price = dict(prices or {"input": 1.0, "output": 2.0})
    tree: dict[str, object] = {
        "deployments": {name: {"price": price, **entry} for name, entry in deployments.items()},
        "models": {name: {"tiers": [[name]], "default_output_tokens": 100} for name in deployments},
        "keys": {
            "declared": [
                declared_key("all", KEY),
                declared_key("few", FEW, limits=[{"requests": 1, "per": "hour"}]),
                declared_key("one", ONE, limits=[{"concurrent": 1}]),
            ]
        },
    }
    with GatewayProcess(folder, tree) as gateway:
        gateway.start(timeout_s=180)
        yield House(gateway, peer)


def asking(question: str) -> list[Any]:
    """One user message."""
    return [{"role": "user", "content": question}]


def text(chunks: list[Any]) -> str:
    """The text of a stream's first choice."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def finishes(chunks: list[Any]) -> list[str]:
    """Every finish reason of a stream."""
    return [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]


def until(true: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for something that must become true."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.05)


def check_answers(place: House, model: str, question: str, answer: str) -> None:
    """One known answer, whole and streamed: the same text, finish and usage, and a settled row for each."""
    since = time.time_ns() // 1000
    whole = place.whole(model, question)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (answer, "stop")
    assert whole.model == model and whole.usage.prompt_tokens > 0 and whole.usage.completion_tokens > 0
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = place.streamed(model, question)
    assert (text(chunks), finishes(chunks)) == (answer, ["stop"])
    assert sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].delta.content) > 1, "it came in one piece"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    rows = place.settled(2, since_us=since, model=model)
    assert {row["outcome"] for row in rows} == {"ok"}
    assert [(row["input_tokens"], row["output_tokens"]) for row in rows] == [
        (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    ] * 2
    assert rows[0]["cost_nusd"] == 1000 * whole.usage.prompt_tokens + 2000 * whole.usage.completion_tokens


def check_limits(place: House, model: str) -> None:
    """A key's limits hold in front of this server."""
    few = place.client(FEW)
    few.chat.completions.create(model=model, messages=asking("Hello"), max_tokens=2)
    try:
        few.chat.completions.create(model=model, messages=asking("Hello"), max_tokens=2)
    except openai.RateLimitError as error:
        assert error.code == "rate_limit_exceeded"
    else:
        raise AssertionError("the second request was answered")


def check_leaving(place: House, model: str, endless: str, busy: Callable[[], bool] | None = None) -> None:
    """Who leaves an endless answer frees the key's one place, the connection, and the server where it can tell."""
    since = time.time_ns() // 1000
    one = place.client(ONE)
    asked = {"model": model, "messages": asking(endless), "max_tokens": 900, "stream": True}
    stream = one.chat.completions.create(**asked)  # type: ignore[call-overload]
    for number, chunk in enumerate(stream):
        if number > 3 and chunk.choices:
            break
    assert busy is None or busy()
    stream.response.close()
    (row,) = place.settled(1, since_us=since, model=model, outcome="cancelled")
    assert 0 < row["output_tokens"] < 900
    until(lambda: connections(place.gateway, place.peer) == 0)
    if busy is not None:
        until(lambda: not busy())
    answer = one.chat.completions.create(model=model, messages=asking("Hello"), max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
