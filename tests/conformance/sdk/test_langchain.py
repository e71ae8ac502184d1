"""langchain-openai against four dialects: messages, streams, tools, structured outputs, vectors, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.conformance.sdk.house import DIALECTS, FEW, KEY, WITH_VECTORS, Place
from tests.speakers import ARGUMENTS, INPUT_TOKENS, VECTOR, WORDS

langchain_openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402

pytestmark = pytest.mark.timeout(120)
TEXT = "".join(WORDS)
Chat = Callable[..., Any]


class City(BaseModel):
    """A city."""

    city: str
    people: int


@tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@pytest.fixture
def chat(clients_place: Place) -> Chat:
    def make(model: str, key: str = KEY, **more: Any) -> Any:
        given = {"base_url": clients_place.base_url, "api_key": key, "max_retries": 0, "timeout": 20, **more}
        return langchain_openai.ChatOpenAI(model=model, **given)

    return make


@pytest.mark.parametrize("dialect", DIALECTS)
def test_messages_whole_and_streamed(chat: Chat, dialect: str) -> None:
    said = [SystemMessage("Be brief."), HumanMessage("say something")]
    answer = chat(f"{dialect}-words").invoke(said)
    assert answer.text == TEXT
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] == 4
    pieces: list[AIMessageChunk] = list(chat(f"{dialect}-words", stream_usage=True).stream(said))
    assert "".join(piece.text for piece in pieces) == TEXT
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    assert (whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]) == (INPUT_TOKENS, 4)


async def test_async_and_batches(chat: Chat) -> None:
    """All dialects in one loop: langchain keeps one asynchronous client for the whole process."""
    for dialect in DIALECTS:
        model = chat(f"{dialect}-words")
        assert [one.text for one in await model.abatch(["a", "b", "c"])] == [TEXT] * 3
        assert "".join([piece.text async for piece in model.astream("say")]) == TEXT


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tools(chat: Chat, dialect: str) -> None:
    model = chat(f"{dialect}-words").bind_tools([add])
    asked = HumanMessage("add one and two")
    answer = model.invoke([asked])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("add", ARGUMENTS)
    streamed = None
    for piece in model.stream([asked]):
        streamed = piece if streamed is None else streamed + piece
    assert [(one["name"], one["args"]) for one in streamed.tool_calls] == [("add", ARGUMENTS)]
    result = ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])
    assert model.invoke([asked, answer, result]).text == TEXT


@pytest.mark.parametrize("dialect", DIALECTS)
def test_structured_outputs(chat: Chat, dialect: str) -> None:
    model = chat(f"{dialect}-json").with_structured_output(City, method="json_schema")
    assert model.invoke("Paris?") == City(city="Paris", people=2100000)


@pytest.mark.parametrize("dialect", WITH_VECTORS)
def test_embeddings(clients_place: Place, dialect: str) -> None:
    # with its check of the context's length it would fetch OpenAI's tokenizer from the network
    given = {"base_url": clients_place.base_url, "api_key": KEY, "check_embedding_ctx_length": False}
    model = langchain_openai.OpenAIEmbeddings(model=f"{dialect}-words", **given)
    assert model.embed_query("one") == pytest.approx(VECTOR)
    assert [pytest.approx(VECTOR)] * 2 == model.embed_documents(["one", "two"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_classes_of_errors(chat: Chat, dialect: str) -> None:
    for kind, script in ((openai.BadRequestError, "fail-400"), (openai.InternalServerError, "fail-500")):
        with pytest.raises(kind):
            chat(f"{dialect}-{script}").invoke("say")
    with pytest.raises(openai.APIError):
        list(chat(f"{dialect}-cut").stream("say"))


def test_keys_and_retries(chat: Chat) -> None:
    with pytest.raises(openai.AuthenticationError):
        chat("openai-words", key="sk-wrong").invoke("say")
    patient = chat("openai-words", key=FEW, max_retries=3)
    assert [patient.invoke("say").text for _ in range(2)] == [TEXT] * 2
