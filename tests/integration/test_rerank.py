"""Rerankers: our pool beside llama.cpp's own server on the same file, and both, and others, behind a whole gateway."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from backends.core.errors import BadRequest, ContextTooLong
from backends.core.events import Item, Score, Started
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Prompt, RerankRequest
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from tests.engine_host import HostProcess, events, running
from tests.gateway_process import GatewayProcess, declared_key
from tests.integration.llamacpp_server import serving
from tests.models import embed_gguf
from tests.tiny_reranker import CONTEXT, write_gguf

pytestmark = pytest.mark.llamacpp

KEY = "sk-test-rerank-0123456789abcdef"
POOR = "sk-test-poor-0123456789abcdef"
QUERY = "what is the capital of france"
DOCUMENTS = ("cats sleep all day", "paris is the capital of france", "the rhine is a river", "[SEP] a [CLS] day", "")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not importlib.util.find_spec("llama_cpp") or not importlib.util.find_spec("gguf"):
        pytest.skip("llama-cpp-python and gguf are not installed")
    return str(write_gguf(tmp_path_factory.mktemp("model") / "reranker.gguf"))


def job(*documents: str, query: str = QUERY) -> RerankRequest:
    return RerankRequest("m", query, documents or DOCUMENTS)


async def scores(engine: EngineClient, asked: RerankRequest) -> list[float]:
    """In the order of the documents."""
    found = {one.value.index: one.value.relevance for one in await events(engine, asked)
             if isinstance(one, Item) and isinstance(one.value, Score)}  # fmt: skip
    return [found[index] for index in range(len(asked.documents))]


async def test_it_scores_as_llamacpps_own_server_does(gguf: str) -> None:
    async with running("llamacpp", gguf, slots=4, context=CONTEXT, options={"rerank": True}) as (_, engine):
        got = await events(engine, job())
        ours = await scores(engine, job())
    assert got[0] == Started("m")
    assert sorted(one.value.index for one in got if isinstance(one, Item)) == list(range(len(DOCUMENTS)))
    with serving(gguf, 4 * CONTEXT, "rerank") as address:
        answer = httpx.post(address + "/rerank", json={"query": QUERY, "documents": list(DOCUMENTS)}, timeout=60)
    told = answer.json()
    raw = {one["index"]: one["relevance_score"] for one in told["results"]}
    assert ours == pytest.approx([1 / (1 + math.exp(-raw[index])) for index in range(len(DOCUMENTS))], abs=1e-3)
    assert got[-1] == Usage(told["usage"]["prompt_tokens"], 0, source="counted")
    assert len(set(ours)) == len(ours), "the model tells them apart"


async def test_a_document_has_its_score_whoever_is_beside_it(gguf: str) -> None:
    async with running("llamacpp", gguf, slots=2, context=CONTEXT, options={"rerank": True}) as (host, engine):
        many = await scores(engine, job(*DOCUMENTS * 8))
        alone = [(await scores(engine, job(one)))[0] for one in DOCUMENTS]
        assert many == pytest.approx(alone * 8, abs=1e-5)
        assert max(len(line["rows"]) for line in host.lines("step")) == 1, "one job"
        assert await engine.prompt_tokens(job()) == (await events(engine, job()))[-1].input_tokens  # type: ignore[union-attr]


async def test_what_a_reranker_refuses(gguf: str) -> None:
    async with running("llamacpp", gguf, slots=2, context=CONTEXT, options={"rerank": True}) as (_, engine):
        for words in ("day " * CONTEXT, "day " * 100_000):
            with pytest.raises(ContextTooLong) as long:
                await events(engine, job("day", words))
            assert long.value.param == "documents"
        others: tuple[Job, ...] = (
            EmbeddingRequest("m", (Prompt("x"),)), GenerationRequest("m", prompts=(Prompt("x"),)),
        )  # fmt: skip
        for other in others:
            with pytest.raises(BadRequest):
                await events(engine, other)
        assert engine.describe()["capabilities"] == ["rerank"]


async def test_a_template_of_the_configuration_takes_the_place_of_the_pairs_own_form(gguf: str) -> None:
    form = "[CLS] {query} [SEP] {document} [SEP]"
    plain, own = {"rerank": True}, {"rerank": True, "rerank_template": form}
    async with running("llamacpp", gguf, slots=2, context=CONTEXT, options=plain) as (_, engine):
        wanted = await scores(engine, job())
    async with running("llamacpp", gguf, slots=2, context=CONTEXT, options=own) as (_, engine):
        assert await scores(engine, job()) == pytest.approx(wanted, abs=1e-5), "a spelled [SEP] is still no control token"


@pytest.mark.parametrize(
    ("options", "model", "words"),
    [
        ({"rerank": True}, "embedder", "no reranker"),
        ({"embedding": True}, "reranker", "rerank: true"),
    ],
)
def test_a_file_for_other_work_is_refused_in_words(gguf: str, options: dict[str, Any], model: str, words: str) -> None:
    host = HostProcess("llamacpp", gguf if model == "reranker" else embed_gguf(), slots=2, context=CONTEXT, options=options)
    try:
        host.process.wait(60)
        assert words in host.stderr.read_text()
    finally:
        host.end()


@pytest.fixture(scope="module")
def gateway(gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with serving(gguf, 4 * CONTEXT, "rerank") as peer:
        config: dict[str, object] = {
            "engines": {
                "pool": {"model": gguf, "slots": 4, "context": CONTEXT, "rerank": True},
                "script": {"kind": "scripted", "model": "x", "rerank": True},
            },
            "deployments": {
                "pool": {"engine": "pool", "model": "m"},
                "script": {"engine": "script", "model": "m"},
                "native": {"dialect": "llamacpp", "base_url": peer, "model": "m", "keepalive_s": 2},
                "compatible": {"dialect": "openai_compatible", "quirks": "llamacpp", "base_url": peer + "/v1", "model": "m"},
                "chatty": {"dialect": "anthropic", "base_url": peer, "model": "m"},
            },
            "models": {name: {"tiers": [[name]]} for name in ("pool", "script", "native", "compatible", "chatty")},
            "keys": {
                "declared": [
                    declared_key("user", KEY),
                    declared_key("poor", POOR, models=["script"], limits=[{"tokens": 20, "per": "hour"}]),
                ]
            },
        }
        with GatewayProcess(tmp_path_factory.mktemp("rerank"), config) as process:
            process.start()
            yield process


def ask(gateway: GatewayProcess, path: str = "/v1/rerank", key: str = KEY, **body: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(gateway.url + path, json={"model": "pool", **body}, headers=headers, timeout=60)


def test_every_kind_of_backend_ranks_alike_through_the_gateway(gateway: GatewayProcess) -> None:
    orders = {}
    for model in ("pool", "native", "compatible"):
        answer = ask(gateway, model=model, query=QUERY, documents=list(DOCUMENTS[:4]), return_documents=True)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["model"], len(found["results"])) == (model, 4)
        assert [one["document"]["text"] for one in found["results"]] == [DOCUMENTS[one["index"]] for one in found["results"]]
        assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 40
        orders[model] = ([one["index"] for one in found["results"]], found["usage"])
    assert orders["pool"] == orders["native"] == orders["compatible"]
    row = gateway.rows(1, model="pool")[0]
    assert (row["outcome"], row["output_tokens"], row["usage_source"]) == ("ok", 0, "counted")
    assert row["input_tokens"] == orders["pool"][1]["prompt_tokens"]


def test_the_best_alone_and_scores_in_order(gateway: GatewayProcess) -> None:
    best = ask(gateway, model="script", query="red river", documents=["no", "red", {"text": "a red river"}], top_n=1).json()
    assert best["results"] == [{"index": 2, "relevance_score": 1.0}]
    told = ask(gateway, "/v1/score", model="script", text_1="red river", text_2=["no", "red", "a red river"]).json()
    assert [one["score"] for one in told["data"]] == [0.0, 0.5, 1.0]
    assert told["usage"]["prompt_tokens"] == 2 * 3 + 5


def test_rights_limits_and_errors(gateway: GatewayProcess) -> None:
    few = {"query": "a", "documents": ["b"]}
    for answer, status, code in (
        (ask(gateway, key=POOR, **few), 404, "model_not_found"),
        (ask(gateway, model="chatty", **few), 400, "unsupported_parameter"),
        (ask(gateway, query="x", documents=[]), 400, None),
        (ask(gateway, query="day " * 300, documents=["b"]), 400, "context_length_exceeded"),
        (ask(gateway, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}]), 400, "unsupported_parameter"),
        (ask(gateway, key="sk-nobody-0123456789abcdef0123", **few), 401, "invalid_api_key"),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (status, "invalid_request_error"), answer.text
        assert code is None or error["code"] == code
    mine = {"key": POOR, "model": "script"}
    assert ask(gateway, **mine, **few).status_code == 200
    refused = ask(gateway, **mine, query="a b c d", documents=["e f g h"] * 3)
    assert refused.status_code == 400, "more than the whole limit holds"
    assert refused.json()["error"]["param"] == "documents"
    statuses = [ask(gateway, **mine, query="a b c", documents=["d e f"]).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429], "two tokens were taken before, six each time"
    listed = httpx.get(gateway.url + "/v1/models", headers={"authorization": f"Bearer {POOR}"}).json()
    assert [one["id"] for one in listed["data"]] == ["script"]


def test_the_openapi_page_describes_both(gateway: GatewayProcess) -> None:
    page = httpx.get(gateway.url + "/openapi.json").json()
    for path, body in (("/v1/rerank", "RerankBody"), ("/v1/score", "ScoreBody")):
        content = page["paths"][path]["post"]
        assert content["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(body)
        assert set(content["responses"]["200"]["content"]) == {"application/json"}
        assert body in page["components"]["schemas"]
    assert json.dumps(page)
