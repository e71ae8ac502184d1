"""What the doctor asks of a server beside jobs, over HTTP: what it tells of itself, and its tokenizer."""

from __future__ import annotations

import json

import httpx
import pytest
import respx

from gateway.domain.route import Deployment
from gateway.inspection import inspect

BASE = "http://upstream.test"
TEXT = "The quick brown fox: naïve café, 42 + 1 = 43. \u4e16\u754c"
PROPS = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4, "model_path": "/models/q.gguf", "build_info": "b9"}


def llamacpp(mock: respx.MockRouter, back: str = TEXT) -> None:
    mock.get(f"{BASE}/props").respond(json=PROPS)
    mock.get(f"{BASE}/slots").respond(501, json={"error": {"message": "no slots", "code": 501}})
    mock.post(f"{BASE}/tokenize").respond(json={"tokens": [1, 2, 3]})
    mock.post(f"{BASE}/detokenize").respond(json={"content": back})


@respx.mock
async def test_a_llamacpp_server(respx_mock: respx.MockRouter) -> None:
    llamacpp(respx_mock)
    place = Deployment("d", "m", "llamacpp", base_url=BASE, max_in_flight=4)
    assert await inspect(place, 5) == ("q.gguf, 4096 tokens, 4 slots, b9", [])
    sent = next(call.request for call in respx_mock.calls if call.request.url.path == "/detokenize")
    assert json.loads(sent.content) == {"tokens": [1, 2, 3]}


@respx.mock
async def test_what_it_does_not_keep_is_told(respx_mock: respx.MockRouter) -> None:
    llamacpp(respx_mock, back="another text")
    _, findings = await inspect(Deployment("d", "m", "llamacpp", base_url=BASE, max_in_flight=9), 5)
    assert findings[0] == "max_in_flight: 9, but it computes 4 requests at once"
    assert findings[1].startswith("tokenizer: ")


@respx.mock
async def test_tgi_and_tei(respx_mock: respx.MockRouter) -> None:
    info = {"model_id": "org/m", "version": "3.0", "max_total_tokens": 2048, "max_concurrent_requests": 128}
    respx_mock.get(f"{BASE}/info").respond(json=info)
    respx_mock.post(f"{BASE}/tokenize").respond(json=[{"id": 5, "text": "a", "start": 0, "stop": 1}])
    assert await inspect(Deployment("d", "m", "tgi", base_url=BASE), 5) == ("org/m, 2048 tokens, 128 slots, 3.0", [])
    respx_mock.get(f"{BASE}/info").respond(json={"model_id": "e", "max_input_length": 512, "max_client_batch_size": 8})
    told, findings = await inspect(Deployment("d", "m", "tei", base_url=BASE), 5)
    assert told == "e, 512 tokens"
    assert findings == ["max_client_batch_size: 32, but it takes 8"]


@pytest.mark.parametrize("answer", [httpx.Response(404), httpx.Response(200, text="<html>"), httpx.ConnectError("no")])
@respx.mock
async def test_a_server_that_tells_nothing_is_no_finding(
    answer: httpx.Response | Exception, respx_mock: respx.MockRouter
) -> None:
    respx_mock.route().mock(**({"side_effect": answer} if isinstance(answer, Exception) else {"return_value": answer}))
    assert await inspect(Deployment("d", "m", "tgi", base_url=BASE), 5) == ("-", [])


async def test_other_dialects_are_not_asked() -> None:
    assert await inspect(Deployment("d", "m", "ffm", base_url=BASE), 5) == ("-", [])
