"""The pool beside httpx on recorded and mutated responses: the same answer, the same refusal, or a rule of ours.

Where httpx accepts, the pool gives the same status, headers and body, unless `stricter` names the rule by which it
refuses; where httpx refuses, the pool refuses. Every case is reproducible by its file, mutation and seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

from backends.core.contracts import UpstreamRequest
from backends.core.errors import BackendError, UpstreamProtocol
from backends.remote.origin import Origin
from backends.remote.pool import HttpPool
from backends.remote.transport import Timeouts
from tests.integration.remote.mutations import NAMES, RECORDED, Case, case, stricter
from tests.raw_upstream import Peer, RawUpstream, raw_upstream

Seen = tuple[int, dict[str, str], bytes]
FILES = sorted(RECORDED.glob("*.http"))
REQUEST = UpstreamRequest("POST", "/x", {"content-type": "application/json"}, b"{}")
#: Mutations that a file is tried with; together with its original they make 275 responses, each mutation several times.
PER_FILE = 4


def cases(number: int) -> list[Case]:
    """The original and the mutations of file `number`: all names in turn, so that each comes up."""
    path = FILES[number]
    names = [NAMES[1 + (number * PER_FILE + i) % (len(NAMES) - 1)] for i in range(PER_FILE)]
    return [case(path, "as it was", 0), *(case(path, name, number) for name in names)]


async def by_httpx(client: httpx.AsyncClient, url: str) -> Seen | None:
    """What httpx reads, None when it refuses."""
    try:
        async with client.stream("POST", url + "/x", content=b"{}") as response:
            body = b"".join([piece async for piece in response.aiter_raw()])
    except (httpx.TransportError, httpx.InvalidURL, UnicodeError):
        return None
    headers: dict[str, str] = {}
    for name, value in response.headers.raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return response.status_code, headers, body


async def by_pool(url: str) -> Seen | BackendError:
    """What the pool reads, or its error."""
    pool = HttpPool(Origin.parse(url))
    try:
        async with pool.send(REQUEST, Timeouts(idle_s=5, total_s=8)) as response:
            body = b"".join([piece async for piece in response.chunks])
            return response.status, dict(response.headers), body
    except BackendError as error:
        return error
    finally:
        await pool.aclose()


async def compare(client: httpx.AsyncClient, upstream: RawUpstream, one: Case) -> str:
    """Serve a case to both and hold the two against each other; what came of it."""
    theirs, ours = await by_httpx(client, upstream.url), await by_pool(upstream.url)
    told = f"{one.name}: {one.raw[:600]!r} step {one.step}: httpx {theirs}, pool {ours!r} {getattr(ours, 'detail', '')}"
    rule = stricter(one)
    if rule is not None:
        assert isinstance(ours, UpstreamProtocol), f"{rule} was taken: {told}"
        return "stricter" if theirs is not None else "both refuse"
    if theirs is None:
        assert isinstance(ours, BackendError), f"httpx refuses: {told}"
        return "both refuse"
    assert ours == theirs, f"httpx reads something else: {told}"
    return "same"


@pytest.mark.parametrize("number", range(len(FILES)), ids=[path.stem for path in FILES])
async def test_same_as_httpx(number: int) -> None:
    serving: list[Case] = []

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(serving[-1].raw, serving[-1].step)

    client = httpx.AsyncClient(trust_env=False, timeout=8, headers={"accept-encoding": "identity"})
    async with asyncio.timeout(60), raw_upstream(handler) as upstream, client:
        for one in cases(number):
            serving.append(one)
            verdict = await compare(client, upstream, one)
            assert verdict == "same" or one.name != "as it was"


def test_there_are_enough_cases_of_each_kind() -> None:
    everything = [one for number in range(len(FILES)) for one in cases(number)]
    assert len(everything) >= 200
    counted = Counter(one.name for one in everything)
    assert set(counted) == set(NAMES)
    assert min(counted.values()) >= 5
    assert 20 <= sum(stricter(one) is not None for one in everything) <= len(everything) // 3
