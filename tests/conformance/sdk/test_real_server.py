"""OpenAI's Python SDK and langchain-openai on llama.cpp's own server, by both of its wires: what a scripted upstream cannot
show (logprobs, several choices and prompts, the legacy route with echo, best_of and suffix).

The model is `tests.tiny_infill`: a text goes on with its last letter, for ever.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.integration.llamacpp_server import serving
from tests.tiny_infill import CONTEXT, GAP, write_gguf

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

KEY = "sk-real-0123456789abcdef"
MODELS = ("native", "openai")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not importlib.util.find_spec("gguf"):
        pytest.skip("the package gguf is not installed")
    folder = tmp_path_factory.mktemp("real")
    with serving(str(write_gguf(folder / "tiny.gguf")), 2 * CONTEXT) as far:
        plain = folder / "plain.jinja"
        plain.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        tree: dict[str, object] = {
            "deployments": {
                "native": {"dialect": "llamacpp", "base_url": far, "model": "m", "template": str(plain)},
                "openai": {"dialect": "openai_compatible", "quirks": "llamacpp", "base_url": far + "/v1", "model": "m"},
            },
            "models": {name: {"tiers": [[name]], "context": CONTEXT, "default_output_tokens": 8} for name in MODELS},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        with GatewayProcess(folder / "gateway", tree) as gateway:
            gateway.start(timeout_s=90)
            yield gateway.url + "/v1"


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
def test_legacy_completions(sdk: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "max_tokens": 4, "temperature": 0}
    answer = sdk.completions.create(prompt="q", n=2, best_of=2, echo=True, **asked)
    told = [(one.index, one.text, one.finish_reason) for one in answer.choices]
    assert told == [(0, "qqqqq", "length"), (1, "qqqqq", "length")]
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    two = sdk.completions.create(prompt=["q", "z"], **asked)
    assert [one.text for one in two.choices] == ["qqqq", "zzzz"]
    chunks = list(sdk.completions.create(prompt=["q", "z"], n=2, stream=True, stream_options={"include_usage": True}, **asked))
    texts = {index: "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index) for index in range(4)}
    assert texts == {0: "qqqq", 1: "qqqq", 2: "zzzz", 3: "zzzz"}
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 16
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(prompt="q", best_of=3, **asked)
    assert refused.value.param == "best_of"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_legacy_logprobs(sdk: openai.OpenAI, model: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": "q", "max_tokens": 3, "temperature": 0, "logprobs": 2}
    if stream:
        parts = [c for chunk in sdk.completions.create(stream=True, **asked) for c in chunk.choices if c.logprobs]
    else:
        parts = list(sdk.completions.create(**asked).choices)
    tokens = [token for part in parts for token in part.logprobs.tokens]
    assert tokens == ["q", "q", "q"]
    assert [offset for part in parts for offset in part.logprobs.text_offset] == [0, 1, 2]
    assert all(value > -0.01 for part in parts for value in part.logprobs.token_logprobs)
    assert all(1 <= len(top) <= 2 and "q" in top for part in parts for top in part.logprobs.top_logprobs)


@pytest.mark.parametrize("model", MODELS)
def test_chat_logprobs_and_several_choices(sdk: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "q"}],
        "max_tokens": 3,
        "temperature": 0,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
    }
    answer = sdk.chat.completions.create(**asked)
    said = [choice.message.content for choice in answer.choices]
    assert len(said) == 2 and said[0] == said[1] and len(said[0] or "") >= 1
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 3
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    chunks = list(sdk.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    for index in (0, 1):
        of_choice = [one for chunk in chunks for one in chunk.choices if one.index == index]
        assert "".join(one.delta.content or "" for one in of_choice) == said[0]
        told = [token for one in of_choice if one.logprobs for token in one.logprobs.content or ()]
        assert len(told) == 3
        assert [one.finish_reason for one in of_choice if one.finish_reason] == ["length"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 6


@pytest.mark.parametrize("model", MODELS)
def test_logprobs_without_alternatives(sdk: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "max_tokens": 3, "temperature": 0}
    said = [{"role": "user", "content": "q"}]
    for more in ({}, {"top_logprobs": 0}):
        choice = sdk.chat.completions.create(messages=said, logprobs=True, **more, **asked).choices[0]  # type: ignore[arg-type]
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert [one.top_logprobs for one in choice.logprobs.content] == [[], [], []]
    old = sdk.completions.create(prompt="q", logprobs=0, **asked).choices[0]
    assert old.logprobs is not None and old.logprobs.tokens == ["q", "q", "q"]


def test_a_suffix(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="native", prompt="return ", suffix="\n", max_tokens=20, temperature=0)
    assert answer.choices[0].text == GAP
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model="openai", prompt="return ", suffix="\n", max_tokens=20)
    assert refused.value.param == "suffix"


@pytest.mark.parametrize("model", MODELS)
def test_langchain(url: str, model: str) -> None:
    messages = pytest.importorskip("langchain_core.messages", reason="langchain-openai is not installed")
    library = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    given = {
        "model": model,
        "base_url": url,
        "api_key": KEY,
        "max_retries": 0,
        "timeout": 60,
        "max_tokens": 3,
        "temperature": 0,
    }
    chat = library.ChatOpenAI(logprobs=True, top_logprobs=1, **given)
    answer = chat.invoke("q")
    assert len(answer.response_metadata["logprobs"]["content"]) == 3
    whole = None
    for piece in chat.stream("q"):
        whole = piece if whole is None else whole + piece
    assert whole is not None and whole.text == answer.text
    two = library.ChatOpenAI(n=2, **given).generate([[messages.HumanMessage("q")]])
    assert [one.text for one in two.generations[0]] == [answer.text] * 2
    old = library.OpenAI(**given)
    assert old.invoke("q") == "qqq"
    assert "".join(old.stream("q")) == "qqq"
