"""transformers itself inside an engine host, on the CPU with the tiny model: what the conformance suite does not ask.

`make test-engines`, or SWITCHYARD_TRANSFORMERS_PYTHON=... pytest tests/engines/test_transformers_engine.py
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.core.errors import BackendError, BadRequest, UnsupportedParameter
from backends.core.events import Embedding, Finish, Item
from backends.core.request import EmbeddingRequest, GenerationRequest, Message, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from tests import heavy, tiny_lora
from tests.engine_host import TOKEN, HostProcess, events, text, up
from tests.tiny_model import ANSWERS

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(400)]
QUESTION = "What is the capital of France?"
SEQ2SEQ = """
import sys, torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=3,
                  eos_token_id=2, pad_token_id=3)
T5ForConditionalGeneration(config).save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return heavy.python("transformers")


@pytest.fixture(scope="module")
def model(python: Path) -> Path:
    return heavy.tiny_model(python)


@pytest.fixture(scope="module")
def adapter(python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora.made_by(python, model, tmp_path_factory.mktemp("lora"))


def started(python: Path, model: Path | str, **options: Any) -> HostProcess:
    launch: dict[str, Any] = {"slots": 2, "queue": 8, "context": 512, "environment": heavy.OFFLINE}
    return HostProcess("transformers", str(model), python=str(python), options={"threads": 1, **options}, **launch)


@asynccontextmanager
async def running(python: Path, model: Path, **options: Any) -> AsyncIterator[EngineClient]:
    host = started(python, model, **options)
    client = EngineClient(host.socket, TOKEN, "e1")
    try:
        await up(client, 200, host)
        yield client
    finally:
        await client.aclose()
        host.end()


def chat(question: str, model: str = "m", n: int = 1, **sampling: Any) -> GenerationRequest:
    sampling = {"temperature": 0.0, "max_tokens": 80, **sampling}
    return GenerationRequest(model, (Message("user", (Text(question),)),), n=n, sampling=Sampling(**sampling))


async def test_requests_of_both_kinds_at_once(python: Path, model: Path) -> None:
    """The batch pauses for what it cannot do, and nobody's answer changes."""
    async with running(python, model, batching="continuous") as engine:
        assert engine.describe()["batching"] == "continuous"
        questions = [QUESTION, "Count to five.", "Hello", "Say it in Japanese."]
        asked = [chat(one) for one in questions] + [chat(one, repetition_penalty=1.0001, seed=1) for one in questions]
        got = await asyncio.gather(*(events(engine, one) for one in asked))
        assert [text(one) for one in got] == [ANSWERS[one] for one in questions] * 2
        sampled = await events(engine, chat(QUESTION, temperature=1.5, n=2, ignore_eos=True, max_tokens=9))
        assert isinstance(sampled[-1], Usage) and sampled[-1].output_tokens == 18


async def test_adapters_by_name(python: Path, model: Path, adapter: Path) -> None:
    async with running(python, model, lora={"wild": str(adapter)}) as engine:
        facts = engine.describe()
        assert facts["adapters"] == ["wild"]
        assert "adapters" in str(facts["batching"])
        plain, wild, again = [text(await events(engine, chat(QUESTION, name))) for name in ("m", "wild", "m")]
        assert plain == again == ANSWERS[QUESTION]
        assert wild != plain


async def test_a_merged_adapter_is_everyones(python: Path, model: Path, adapter: Path) -> None:
    async with running(python, model, lora={"wild": str(adapter)}) as engine:
        by_name = text(await events(engine, chat(QUESTION, "wild")))
    async with running(python, model, merged_lora=str(adapter), dtype="float32") as engine:
        assert engine.describe()["batching"] == "continuous"
        merged = text(await events(engine, chat(QUESTION)))
    assert merged != ANSWERS[QUESTION]
    assert merged[:3] == by_name[:3], "the same weights, but for rounding"


async def test_beams_come_whole_and_in_their_number(python: Path, model: Path) -> None:
    async with running(python, model, generation={"num_beams": 3, "repetition_penalty": 1.0}) as engine:
        assert "logprobs" not in engine.describe()["capabilities"]  # type: ignore[operator]
        got = await events(engine, chat(QUESTION, n=2))
        assert text(got) == ANSWERS[QUESTION]
        assert [event.choice for event in got if isinstance(event, Finish)] == [0, 1]
        with pytest.raises(BadRequest, match="at most 3"):
            await events(engine, chat(QUESTION, n=4))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
async def test_fewer_bits(python: Path, model: Path, bits: str) -> None:
    async with running(python, model, quantization=bits, batching="queue") as engine:
        got = await events(engine, chat(QUESTION))
        assert text(got)
        assert isinstance(got[-1], Usage)


WITHOUT_BITS = """
import sys
sys.modules["bitsandbytes"] = None
from backends.engines.transformers.loading import Loaded
from backends.engines.transformers.settings import TransformersOptions
try:
    Loaded(sys.argv[1], TransformersOptions(quantization="8bit"))
except Exception as error:
    print("SAID", type(error).__name__, error)
"""


def test_fewer_bits_without_bitsandbytes_are_refused_in_words(python: Path, model: Path) -> None:
    root = Path(__file__).parents[2]
    out = subprocess.run([python, "-c", WITHOUT_BITS, str(model)], capture_output=True, text=True, cwd=root, check=True).stdout
    assert "SAID EngineLoadFailed" in out and "8bit needs bitsandbytes: pip install" in out


async def test_a_model_with_an_encoder(python: Path, model: Path, tmp_path: Path) -> None:
    subprocess.run([python, "-c", SEQ2SEQ, str(model), str(tmp_path)], check=True, capture_output=True)
    async with running(python, tmp_path) as engine:
        assert "encoder" in str(engine.describe()["batching"])
        job = GenerationRequest(
            "m", prompts=(Prompt("Hello"),), sampling=Sampling(max_tokens=6, ignore_eos=True, temperature=0.0)
        )
        got = await events(engine, job)
        assert isinstance(got[-1], Usage) and got[-1].output_tokens == 6


async def test_a_token_that_is_none_is_refused_and_a_banned_one_never_comes(python: Path, model: Path) -> None:
    async with running(python, model) as engine:
        for token in (-1, 10**6):
            with pytest.raises(BadRequest) as refused:
                await events(engine, chat("Hello", logit_bias=((token, 1.0),)))
            assert refused.value.param == "logit_bias"
        first = text(await events(engine, chat("Hello", max_tokens=1)))
        banned = tuple((token, -100.0) for token in range(100, 509))
        assert text(await events(engine, chat("Hello", max_tokens=1, logit_bias=banned))) != first


async def test_forms_of_answers_are_refused(python: Path, model: Path) -> None:
    from backends.core.request import Output

    async with running(python, model, batching="queue") as engine:
        job = GenerationRequest("m", (Message("user", (Text("Hello"),)),), output=Output("json_object"))
        with pytest.raises(UnsupportedParameter):
            await events(engine, job)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "sentence_transformers"])
async def test_embeddings(python: Path, model: Path, pooling: str) -> None:
    async with running(python, model, embedding=True, pooling=pooling) as engine:
        inputs = (Prompt("Hello"), Prompt("What is the capital of Italy?"), Prompt("Hello"))
        got = await events(engine, EmbeddingRequest("m", inputs))
        items = [event.value for event in got if isinstance(event, Item)]
        assert all(isinstance(item, Embedding) for item in items)
        vectors = [struct.unpack(f"<{len(item.vector) // 4}f", item.vector) for item in items]
        assert {len(vector) for vector in vectors} == {engine.describe()["embedding_width"]}
        assert all(math.isclose(sum(x * x for x in vector), 1.0, abs_tol=1e-3) for vector in vectors)
        same, other = (sum(a * b for a, b in zip(vectors[0], vectors[n], strict=True)) for n in (2, 1))
        assert same > 0.999 and other < 0.9999
        with pytest.raises((BackendError, BadRequest)):
            await events(engine, chat("Hello"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"generation": {"num_beems": 2}}, "num_beams"),
        ({"device": "cuda:7"}, "options.device"),
        ({"merged_lora": "/no/such/adapter"}, "adapter_config.json"),
        ({"lora": {"x": "/no/such/adapter"}}, "lora.x"),
        ({"tokenizer": "/no/such/tokenizer"}, "cannot be loaded"),
        ({"batching": "continuous", "generation": {"num_beams": 2}}, "beams are not batched"),
    ],
)
async def test_what_cannot_start_says_why(python: Path, model: Path, options: dict[str, Any], said: str) -> None:
    host = started(python, model, **options)
    try:
        assert await asyncio.to_thread(host.process.wait, 200) == 3
        [line] = [line for line in host.stderr.read_text().splitlines() if '"engine_load_failed"' in line]
        assert said in json.loads(line)["reason"]
    finally:
        host.end()


async def test_a_killed_host_fails_its_requests_and_starts_again(python: Path, model: Path) -> None:
    host = started(python, model)
    client = EngineClient(host.socket, TOKEN, "e1")
    try:
        await up(client, 200, host)
        with pytest.raises(BackendError):
            async with client.open(chat(QUESTION, ignore_eos=True, max_tokens=400)) as stream:
                await anext(stream)
                host.process.kill()
                failed = [event async for batch in stream for event in batch if type(event).__name__ == "Failure"]
                raise BackendError.of(failed[0])
        host.process.wait(10)
        host.restart()
        await up(client, 200, host)
        assert text(await events(client, chat(QUESTION))) == ANSWERS[QUESTION]
    finally:
        await client.aclose()
        host.end()
