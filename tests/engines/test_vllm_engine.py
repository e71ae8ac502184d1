"""vLLM itself inside an engine host, on the CPU with the tiny model: what the conformance suite does not ask.

`make test-engines`, or SWITCHYARD_VLLM_PYTHON=... pytest tests/engines/test_vllm_engine.py
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from backends.core.errors import BackendError, BadRequest, GatewayError
from backends.core.events import Embedding, Event, Failure, Finish, Item, ReasoningDelta, ToolCallDelta
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    Message,
    Output,
    Prompt,
    Sampling,
    Text,
    Tool,
    ToolChoice,
)
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from backends.engines.vllm.arguments import NAMES
from gateway.telemetry.families import VLLM_COUNTERS, VLLM_GAUGES
from tests import heavy, tiny_lora
from tests.engine_host import TOKEN, HostProcess, events, text, up
from tests.tiny_model import ANSWERS, TOOL_QUESTION, WEATHER_TOOL

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]
ARGUMENTS = {"enforce_eager": True, "dtype": "float32", "max_lora_rank": 8}
QUESTION = "What is the capital of France?"
#: Arguments that came with 0.33, which is read and not run.
NEWER = {"monokernel", "sleep_mode_backend", "watchdog_config"}


@pytest.fixture(scope="module")
def python() -> Path:
    return heavy.python("vllm")


@pytest.fixture(scope="module")
def model(python: Path) -> Path:
    return heavy.tiny_model(python)


@pytest.fixture(scope="module")
def host(python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    adapter = tiny_lora.made_by(python, model, tmp_path_factory.mktemp("lora"))
    process = started(python, model, tool_call_parser="hermes", lora={"wild": str(adapter)})
    yield process
    process.end()


def started(python: Path, model: Path | str, **options: Any) -> HostProcess:
    options.setdefault("arguments", ARGUMENTS)
    launch: dict[str, Any] = {"slots": 4, "queue": 4, "context": 512, "environment": heavy.VLLM_ON_CPU}
    return HostProcess("vllm", str(model), python=str(python), options=options, **launch)


@asynccontextmanager
async def running(python: Path, model: Path, **options: Any) -> AsyncIterator[EngineClient]:
    host = started(python, model, **options)
    client = EngineClient(host.socket, TOKEN, "e1")
    try:
        await up(client, 300, host)
        yield client
    finally:
        await client.aclose()
        host.end()


@pytest.fixture
async def engine(host: HostProcess) -> AsyncIterator[EngineClient]:
    client = EngineClient(host.socket, TOKEN, "e1")
    await up(client, 300, host)
    yield client
    await client.aclose()


def chat(question: str, model: str = "m", **more: Any) -> GenerationRequest:
    more.setdefault("sampling", Sampling(temperature=0.0, max_tokens=80))
    return GenerationRequest(model, (Message("user", (Text(question),)),), **more)


async def or_refusal(client: EngineClient, job: GenerationRequest) -> list[Event]:
    """The events of a job; a failure among them is raised."""
    got = await events(client, job)
    if isinstance(got[-1], Failure):
        raise BackendError.of(got[-1])
    return got


def tool() -> Tool:
    function = WEATHER_TOOL["function"]
    return Tool(function["name"], function["description"], msgspec.Raw(msgspec.json.encode(function["parameters"])))


def test_the_arguments_names_are_those_of_the_installed_version(python: Path) -> None:
    code = (
        "import dataclasses, json; from vllm.engine.arg_utils import AsyncEngineArgs as A;"
        "print('NAMES', json.dumps([f.name for f in dataclasses.fields(A) if f.name[0] != '_']))"
    )
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    [line] = [line for line in out.splitlines() if line.startswith("NAMES")]
    assert set(json.loads(line.removeprefix("NAMES"))) | NEWER == NAMES


async def test_it_says_what_it_was_taught_and_has_a_version(engine: EngineClient) -> None:
    got = await events(engine, chat(QUESTION))
    assert text(got) == ANSWERS[QUESTION]
    assert Finish("stop") in got
    assert str(engine.describe()["version"]).startswith("vllm 0.3")


async def test_characters_of_several_tokens_are_never_broken(engine: EngineClient) -> None:
    got = await events(engine, chat("Say it in Japanese.", top_logprobs=0))
    assert text(got) == ANSWERS["Say it in Japanese."]
    told = [one for event in got for one in getattr(event, "logprobs", ())]
    spelled = b"".join(one.bytes for one in told)
    assert ANSWERS["Say it in Japanese."].encode() in spelled


async def test_a_tool_call_by_vllms_parser(engine: EngineClient) -> None:
    got = await events(engine, chat(TOOL_QUESTION, tools=(tool(),)))
    calls = [event for event in got if isinstance(event, ToolCallDelta)]
    assert calls[0].name == "get_weather" and calls[0].id
    assert json.loads("".join(call.arguments for call in calls)) == {"city": "Paris"}
    assert Finish("tool_calls") in got
    assert "tool_call" not in text(got)


async def test_a_forced_call_has_its_form_whatever_the_question(engine: EngineClient) -> None:
    choice = ToolChoice("function", "get_weather")
    sampling = Sampling(temperature=0.0, max_tokens=200)
    got = await events(engine, chat("Hello", tools=(tool(),), tool_choice=choice, sampling=sampling))
    calls = [event for event in got if isinstance(event, ToolCallDelta)]
    assert calls and calls[0].name == "get_weather"
    if Finish("length") not in got:  # a city without end is the tiny model's, not the parser's
        assert set(json.loads("".join(call.arguments for call in calls))) == {"city"}


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (Output("regex", grammar="[0-9]{3}-[ab]{2}"), "[0-9]{3}-[ab]{2}"),
        (Output("grammar", grammar='root ::= "zebra" | "yak"', choices=("zebra", "yak")), "zebra|yak"),
        (Output("grammar", grammar='root ::= [x-z] "!"'), "[x-z]!"),
        (Output("json_schema", schema=msgspec.Raw(b'{"enum":["red","blue"]}')), '"(red|blue)"'),
    ],
)
async def test_an_answer_is_held_to_its_form(engine: EngineClient, output: Output, wanted: str) -> None:
    got = await events(engine, chat("Hello", output=output))
    assert re.fullmatch(wanted, text(got).strip()), text(got)
    assert Finish("stop") in got


def schema(value: object, asked_as: str = "") -> Output:
    return Output("json_schema", schema=msgspec.Raw(msgspec.json.encode(value)), asked_as=asked_as)


@pytest.mark.parametrize(
    ("output", "param"),
    [
        (Output("regex", grammar="[0-9", asked_as="guided_regex"), "guided_regex"),
        (Output("grammar", grammar='root ::= "a'), "grammar"),
        (schema({"type": "frob"}), "response_format"),
        (schema({"enum": []}, "guided_json"), "guided_json"),
        (schema({"not": {"type": "string"}}), "response_format"),
        (schema({"type": "string", "pattern": "^(?!b)b$"}), "response_format"),
    ],
)
async def test_a_form_that_cannot_be_kept_to_is_the_requests_fault(engine: EngineClient, output: Output, param: str) -> None:
    with pytest.raises(GatewayError) as refused:
        await or_refusal(engine, chat("Hello", output=output))
    assert (refused.value.status, refused.value.param) == (400, param)
    assert "[address]" not in refused.value.message and "[path]" not in refused.value.message
    assert text(await events(engine, chat(QUESTION))) == ANSWERS[QUESTION]


async def test_thoughts_by_vllms_parser(python: Path, model: Path) -> None:
    async with running(python, model, arguments={**ARGUMENTS, "reasoning_parser": "qwen3"}) as client:
        got = await events(client, chat("Think first."))
    thought = "".join(event.text for event in got if isinstance(event, ReasoningDelta))
    assert "The user wants me to think." in thought
    answer = "".join(event.text for event in got if type(event).__name__ == "TextDelta")
    assert "I thought about it." in answer
    assert "think>" not in answer
    assert isinstance(got[-1], Usage) and 0 <= got[-1].reasoning_tokens < got[-1].output_tokens


async def test_an_adapter_is_chosen_by_the_deployments_model(engine: EngineClient) -> None:
    plain, wild, again = [text(await events(engine, chat(QUESTION, name))) for name in ("m", "wild", "anything")]
    assert plain == again == ANSWERS[QUESTION]
    assert wild != plain
    assert engine.describe()["adapters"] == ["wild"]


async def test_what_vllm_refuses_is_the_requests_fault(engine: EngineClient) -> None:
    for param, sampling in (("top_p", Sampling(top_p=0.0)), ("logit_bias", Sampling(logit_bias=((99_999, 1.0),)))):
        with pytest.raises(GatewayError) as refused:
            await or_refusal(engine, chat("Hello", sampling=sampling))
        assert (refused.value.status, refused.value.param) == (400, param), repr(refused.value)
    assert text(await events(engine, chat(QUESTION))) == ANSWERS[QUESTION]


async def test_its_figures_are_told(engine: EngineClient) -> None:
    await events(engine, chat(QUESTION))
    figures = await engine.stats()
    own = figures["vllm"]
    assert isinstance(own, dict)
    assert own["generation_tokens_total"] > 0
    assert {name for name in (*VLLM_GAUGES, *VLLM_COUNTERS) if not name.startswith("spec_decode_")} <= own.keys()
    assert figures["kv_size"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arguments": {"tensor_paralel_size": 2}}, "tensor_parallel_size"),
        ({"arguments": {"dtype": "float3"}}, "float3"),
        ({"tool_call_parser": "no-such", "arguments": ARGUMENTS}, "hermes"),
        ({"lora": {"x": "/no/such/adapter"}}, "adapter_config.json"),
        # so far goes a CPU: vLLM itself refuses to sleep there
        ({"arguments": {**ARGUMENTS, "enable_sleep_mode": True}, "sleep_after_s": 1.0}, "Sleep mode is not supported"),
    ],
)
async def test_what_cannot_start_says_why(python: Path, model: Path, options: dict[str, Any], said: str) -> None:
    host = started(python, model, **options)
    try:
        status = await asyncio.to_thread(host.process.wait, 300)
        assert status == 3
        [line] = [line for line in host.stderr.read_text().splitlines() if '"engine_load_failed"' in line]
        assert said in json.loads(line)["reason"]
    finally:
        host.end()


def test_what_sleeping_calls_is_there(python: Path) -> None:
    code = (
        "import inspect; from vllm.v1.engine.async_llm import AsyncLLM as A;"
        "print('SLEEP', list(inspect.signature(A.sleep).parameters)[1], *(inspect.iscoroutinefunction(getattr(A, name))"
        " for name in ('sleep', 'wake_up', 'collective_rpc', 'reset_prefix_cache')))"
    )
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "SLEEP level True True True True" in out


async def test_a_full_cache_is_vllms_to_plan_and_every_answer_is_whole(python: Path, model: Path) -> None:
    """Four answers of which the cache holds about one: vLLM lets some wait, or computes them again."""
    arguments = {**ARGUMENTS, "num_gpu_blocks_override": 9, "enable_prefix_caching": False}
    endless = Sampling(temperature=0.0, max_tokens=400, ignore_eos=True)
    async with running(python, model, arguments=arguments) as client:
        answers = await asyncio.gather(*(events(client, chat(QUESTION, sampling=endless)) for _ in range(4)))
        for got in answers:
            assert Finish("length") in got
            assert isinstance(got[-1], Usage) and got[-1].output_tokens == 400
        stats = await client.stats()
        assert stats["running"] == stats["queued"] == 0
        assert 0 < stats["kv_size"] < 4 * 400  # type: ignore[operator]


async def test_embeddings_by_the_pooling_runner(python: Path, model: Path) -> None:
    async with running(python, model, embedding=True) as client:
        inputs = (Prompt("Hello"), Prompt("What is the capital of Italy?"), Prompt("Hello"))
        got = await events(client, EmbeddingRequest("m", inputs))
        items = [event.value for event in got if isinstance(event, Item)]
        assert all(isinstance(item, Embedding) for item in items)
        vectors = [struct.unpack(f"<{len(item.vector) // 4}f", item.vector) for item in items]
        assert {len(vector) for vector in vectors} == {128}
        assert all(math.isclose(sum(x * x for x in vector), 1.0, abs_tol=1e-3) for vector in vectors)
        same, other = (sum(a * b for a, b in zip(vectors[0], vectors[n], strict=True)) for n in (2, 1))
        assert same > 0.999 > other
        assert isinstance(got[-1], Usage) and got[-1].input_tokens > 3
        with pytest.raises(BadRequest):
            await events(client, chat("Hello"))


# chaos: the last tests of the module, as they end the module's host


async def test_when_vllms_core_dies_the_host_ends_and_nothing_is_left(host: HostProcess, engine: EngineClient) -> None:
    children = psutil.Process(host.process.pid).children(recursive=True)
    [core] = [
        child for child in children if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline())
    ] or children[:1]
    endless = Sampling(temperature=0.0, max_tokens=400, ignore_eos=True)
    with pytest.raises(BackendError):
        async with engine.open(chat(QUESTION, sampling=endless)) as stream:
            await anext(stream)
            core.kill()
            failed = [event async for batch in stream for event in batch if type(event).__name__ == "Failure"]
            raise BackendError.of(failed[0])
    assert await asyncio.to_thread(host.process.wait, 60) == 4
    assert not await gone(children)


async def test_a_killed_host_leaves_no_process_behind(host: HostProcess) -> None:
    host.restart()
    client = EngineClient(host.socket, TOKEN, "e1")
    await up(client, 300, host)
    assert text(await events(client, chat(QUESTION))) == ANSWERS[QUESTION]
    children = psutil.Process(host.process.pid).children(recursive=True)
    assert children
    host.process.kill()
    host.process.wait(10)
    await client.aclose()
    assert not await gone(children)


async def gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there after a while; zombies of ours count as gone."""
    for _ in range(300):
        left = [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return []
        await asyncio.sleep(0.1)
    return left
