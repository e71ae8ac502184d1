"""A real Triton server with TensorRT-LLM's tensors behind a whole gateway, by the dialect `triton`."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.engines import peers
from tests.engines.house import House, asking, check_answers, check_leaving, check_limits, finishes, house, text
from tests.tiny_model import WEATHER_TOOL

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]
#: The form of a stream's text, by deployment: what is new, all so far, and a server that repeats the prompt.
MODELS = ["deltas", "cumulative", "echoing"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("triton")
    with peers.triton(folder) as peer:
        far = {"dialect": "triton", "base_url": peer.url}
        deployments = {
            "deltas": {**far, "model": "ensemble"},
            "cumulative": {**far, "model": "tensorrt_llm_bls", "options": {"accumulate_tokens": True}},
            "echoing": {**far, "model": "ensemble", "options": {"exclude_input_in_output": False}},
            "llama3": {**far, "model": "ensemble", "template": "builtin:llama3"},
            "misnamed": {**far, "model": "another"},
            "without": {**far, "model": "ensemble", "options": {"tensors": {"seed": "", "stop_words": ""}}},
            "unknown-input": {**far, "model": "ensemble", "options": {"tensors": {"stop_words": "no_such_input"}}},
        }
        with house(folder / "gateway", peer, deployments) as running:
            yield running


@pytest.mark.parametrize("model", MODELS)
def test_answers(place: House, model: str) -> None:
    check_answers(place, model, "Hello there, Grüße 🌍!", "You said: Hello there, Grüße 🌍!")


@pytest.mark.parametrize("model", MODELS)
def test_stop_strings_and_length(place: House, model: str) -> None:
    whole = place.whole(model, "one two three four", stop=["three"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("You said: one two ", "stop")
    chunks = place.streamed(model, "one two three four", stop=["three", "never"])
    assert (text(chunks), finishes(chunks)) == ("You said: one two ", ["stop"])
    short = place.whole(model, "one two three four", max_tokens=3)
    assert (short.choices[0].message.content.strip(), short.choices[0].finish_reason) == ("You said: one", "length")
    assert short.usage.completion_tokens == 3
    chunks = place.streamed(model, "one two three four", max_tokens=3)
    assert (text(chunks).strip(), finishes(chunks)) == ("You said: one", ["length"])


def test_another_template_and_completions(place: House) -> None:
    assert place.whole("llama3", "Hi Bob").choices[0].message.content == "You said: Hi Bob"
    answer = place.client().completions.create(model="deltas", prompt="Hi Bob", max_tokens=20, seed=3, top_p=1, temperature=0.5)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("You said: Hi Bob", "stop")
    chunks = list(place.client().completions.create(model="deltas", prompt="Hi Bob", max_tokens=20, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "You said: Hi Bob"


@pytest.mark.parametrize("model", ["deltas", "cumulative"])
def test_errors_of_the_model_before_and_in_its_stream(place: House, model: str) -> None:
    """The server's message is a traceback with its paths: none of it reaches the client."""
    for stream in (False, True):
        refused = place.refused(model, openai.InternalServerError, messages=asking("refuse"), stream=stream)
        assert refused.status_code in (502, 503)
    chunks = []
    with pytest.raises(openai.APIError) as error:
        for chunk in place.client().chat.completions.create(model=model, messages=asking("break it"), stream=True):
            chunks.append(chunk)
    assert text(chunks).strip() == "You said:"
    assert not finishes(chunks)
    assert "Traceback" not in str(error.value.body) and "site-packages" not in str(error.value.body)


def test_errors_of_the_configuration(place: House) -> None:
    assert place.refused("misnamed", openai.NotFoundError).code == "model_not_found"
    # Triton takes an input of a list's form that the model does not declare for a wrong parameter
    assert place.refused("unknown-input", openai.InternalServerError, stop=["x"]).status_code in (502, 503)
    assert place.refused("without", openai.BadRequestError, seed=1).param == "seed"
    assert place.whole("without", "Hi").choices[0].message.content == "You said: Hi"


@pytest.mark.parametrize(
    ("param", "asked"),
    [("tools", {"tools": [WEATHER_TOOL]}), ("logit_bias", {"logit_bias": {"5": 1}}), ("logprobs", {"logprobs": True})],
)
def test_what_it_lacks_is_refused_by_name(place: House, param: str, asked: dict[str, object]) -> None:
    assert place.refused("deltas", openai.BadRequestError, **asked).param == param


def test_limits(place: House) -> None:
    check_limits(place, "deltas")


@pytest.mark.parametrize("model", ["deltas", "cumulative"])
def test_leaving(place: House, model: str) -> None:
    """Triton's frontend takes the closed connection for a cancellation; pytriton does not tell its model of it."""
    check_leaving(place, model, "Sing without end")
