"""vLLM and transformers as rerankers: the same tiny model must score as it does in llama.cpp."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.core.errors import BadRequest, ContextTooLong
from backends.core.events import Item, Score
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Prompt, RerankRequest
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from tests import heavy
from tests.engine_host import TOKEN, HostProcess, events, running, up
from tests.tiny_reranker import CONTEXT, write_folder, write_gguf

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(400)]

QUERY = "what is the capital of france"
DOCUMENTS = ("cats sleep all day", "paris is the capital of france", "the rhine is a river", "[SEP] a [CLS] day", "")
FORM = "[CLS] {query} [SEP] {document} [SEP]"


def job(*documents: str) -> RerankRequest:
    return RerankRequest("m", QUERY, documents or DOCUMENTS)


async def scores(engine: EngineClient, asked: RerankRequest) -> list[float]:
    """In the order of the documents."""
    found = {one.value.index: one.value.relevance for one in await events(engine, asked)
             if isinstance(one, Item) and isinstance(one.value, Score)}  # fmt: skip
    return [found[index] for index in range(len(asked.documents))]


def launched(kind: str, folder: Path, **options: Any) -> HostProcess:
    python = heavy.python(kind)
    own: dict[str, Any] = {"arguments": {"enforce_eager": True, "dtype": "float32"}} if kind == "vllm" else {"threads": 1}
    environment = heavy.VLLM_ON_CPU if kind == "vllm" else heavy.OFFLINE
    return HostProcess(
        kind, str(folder), slots=2, queue=2, context=CONTEXT, python=str(python), environment=environment,
        options={"rerank": True, **own, **options},
    )  # fmt: skip


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = launched(request.param, write_folder(tmp_path_factory.mktemp("model")))
    yield process
    process.end()


@pytest.fixture
async def engine(host: HostProcess) -> AsyncIterator[EngineClient]:
    client = EngineClient(host.socket, TOKEN, "e1")
    await up(client, 240, host)
    yield client
    await client.aclose()


async def test_it_scores_as_llamacpp_does(engine: EngineClient, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "reranker.gguf")
    async with running("llamacpp", str(gguf), slots=2, context=CONTEXT, options={"rerank": True}) as (_, other):
        # of spelled control tokens the two read the letters in different ways, and neither takes them for the token
        plain = job(*DOCUMENTS[:3], "")
        assert await scores(engine, plain) == pytest.approx(await scores(other, plain), abs=5e-3)
        assert (await events(engine, plain))[-1] == (await events(other, plain))[-1]


async def test_more_documents_than_slots_each_with_its_own_score(engine: EngineClient) -> None:
    many = await scores(engine, job(*DOCUMENTS * 9))
    alone = [(await scores(engine, job(one)))[0] for one in DOCUMENTS]
    assert many == pytest.approx(alone * 9, abs=1e-4)
    usage = (await events(engine, job()))[-1]
    assert isinstance(usage, Usage) and await engine.prompt_tokens(job()) == usage.input_tokens


async def test_what_it_refuses(engine: EngineClient) -> None:
    with pytest.raises(ContextTooLong) as long:
        await events(engine, job("day", "day " * CONTEXT))
    assert long.value.param == "documents"
    others: tuple[Job, ...] = (EmbeddingRequest("m", (Prompt("x"),)), GenerationRequest("m", prompts=(Prompt("x"),)))
    for other in others:
        with pytest.raises(BadRequest):
            await events(engine, other)
    assert engine.describe()["capabilities"] == ["rerank"]


@pytest.mark.parametrize("kind", ["transformers"])
async def test_a_form_of_ones_own(kind: str, tmp_path: Path) -> None:
    """A spelled mark stays text, in either way; with one kind of tokens the tiny model does not tell the two apart."""
    folder = write_folder(tmp_path / "model")
    found = []
    for options in ({}, {"rerank_template": FORM}):
        host = launched(kind, folder, **options)
        client = EngineClient(host.socket, TOKEN, "e1")
        try:
            await up(client, 240, host)
            found.append(await scores(client, job()))
        finally:
            await client.aclose()
            host.end()
    assert found[0] == pytest.approx(found[1], abs=1e-4)
