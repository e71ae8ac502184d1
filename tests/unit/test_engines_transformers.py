"""The transformers engine without transformers: options, requests to generation arguments, tokens to events."""

from __future__ import annotations

from typing import Any

import pytest

from backends.core.events import EventGrammar, Finish, Started, TextDelta
from backends.core.request import GenerationRequest, Message, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.engines import kinds
from backends.engines.engine_thread import load_engine
from backends.engines.launch import EngineLaunch
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.transformers.answers import Answer, Ends
from backends.engines.transformers.batching import pages
from backends.engines.transformers.sampling import CAPABILITIES, batchable, batched_arguments, generation_arguments
from backends.engines.transformers.settings import SUPPORTED, TransformersOptions
from backends.engines.transformers.work import failure


def chat(n: int = 1, top_logprobs: int | None = None, **sampling: Any) -> GenerationRequest:
    message = Message("user", (Text("hi"),))
    return GenerationRequest("m", (message,), n=n, top_logprobs=top_logprobs, sampling=Sampling(**sampling))


def arguments(job: GenerationRequest, of_model: Any = None, stated: Any = None) -> dict[str, object]:
    return generation_arguments(job, room=20, ends=[2, 5], pad=3, of_model=of_model or {}, stated=stated or {})


# options


def test_options_are_read_strictly() -> None:
    options = read_options({"quantization": "4bit", "generation": {"num_beams": 4}, "dtype": "bfloat16"}, TransformersOptions)
    assert options.beams == 4
    with pytest.raises(EngineLoadFailed, match="unknown engine option 'num_beams'"):
        read_options({"num_beams": 4}, TransformersOptions)
    with pytest.raises(EngineLoadFailed, match="quantization"):
        read_options({"quantization": "2bit"}, TransformersOptions)


@pytest.mark.parametrize(("version", "fits"), [("5.19.0", True), ("5.23.0", True), ("5.24.0", False), ("4.57.1", False)])
def test_versions_are_pinned(version: str, fits: bool) -> None:
    assert (SUPPORTED.problem(version) is None) is fits


def test_without_transformers_it_does_not_start_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from backends.engines import versions

    monkeypatch.setattr(versions, "installed", lambda _: None)
    launch = EngineLaunch("odd", "transformers", kinds.ENGINES["transformers"], "m", "/s", "t")
    with pytest.raises(EngineLoadFailed, match=r"transformers is not installed.*switchyard\[transformers\]"):
        load_engine(launch)


def test_the_registry_knows_it_without_importing_it() -> None:
    can = kinds.engine_capabilities("transformers", {})
    assert {"chat", "typical_p", "repetition_penalty", "logit_bias", "logprobs", "needs_output_cap"} <= can
    assert not {"mirostat", "grammar", "response_format.json_schema"} & can
    assert "embeddings" in kinds.engine_capabilities("transformers", {"embedding": True})


# requests


def test_a_request_that_states_nothing_is_greedy_and_all_tokens_may_be() -> None:
    given = arguments(chat())
    assert given["do_sample"] is False
    assert not {"temperature", "top_p", "top_k"} & set(given), "transformers warns of them without sampling"
    assert (given["max_new_tokens"], given["eos_token_id"], given["pad_token_id"]) == (20, [2, 5], 3)


def test_a_stated_temperature_samples_from_everything() -> None:
    given = arguments(chat(temperature=0.7))
    assert (given["do_sample"], given["temperature"], given["top_k"], given["top_p"]) == (True, 0.7, 0, 1.0)


def test_request_before_options_before_model() -> None:
    given = arguments(chat(top_p=0.5), {"do_sample": True, "top_p": 0.9, "top_k": 20}, {"repetition_penalty": 1.2, "top_k": 30})
    assert (given["top_p"], given["top_k"], given["repetition_penalty"], given["do_sample"]) == (0.5, 30, 1.2, True)


def test_temperature_nought_is_greedy_whatever_the_model_says() -> None:
    assert arguments(chat(temperature=0.0), {"do_sample": True, "temperature": 0.6})["do_sample"] is False


def test_ends_and_limits() -> None:
    given = arguments(chat(max_tokens=50, min_tokens=4, ignore_eos=True))
    assert (given["max_new_tokens"], given["min_new_tokens"], given["eos_token_id"]) == (20, 4, [-1])
    assert arguments(chat(max_tokens=7))["max_new_tokens"] == 7


def test_beams_return_choices_and_rows_do_not() -> None:
    assert arguments(chat(n=3), stated={"num_beams": 4})["num_return_sequences"] == 3
    assert "num_return_sequences" not in arguments(chat(n=3))


def test_the_batch_says_all_by_the_size_of_the_vocabulary() -> None:
    """There a top_k of 0 would be raised to 1, and sampling would be greedy without a word."""
    assert batched_arguments(arguments(chat(temperature=1.5)), 32_000) == {"temperature": 1.5, "top_k": 32_000, "top_p": 1.0}
    assert batched_arguments(arguments(chat(temperature=1.0, top_k=9)), 100)["top_k"] == 9
    assert batched_arguments(arguments(chat(temperature=1.0, top_k=900)), 100)["top_k"] == 100
    assert batched_arguments(arguments(chat()), 32_000) == {"temperature": 1.0, "top_k": 1, "top_p": 1.0}


@pytest.mark.parametrize(
    "sampling",
    [
        {"seed": 1},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"logit_bias": ((1, 2.0),)},
        {"min_tokens": 2},
    ],
)
def test_what_the_batch_cannot_do_goes_alone(sampling: dict[str, Any]) -> None:
    assert not batchable(chat(**sampling), {}, {})


def test_what_the_batch_can_do_goes_in_it() -> None:
    assert batchable(chat(n=2, temperature=0.7, top_p=0.9, top_k=5, max_tokens=9, stop=("x",), ignore_eos=True), {}, {})
    assert not batchable(chat(top_logprobs=0), {}, {})
    assert not batchable(chat(), {}, {"repetition_penalty": 1.3})
    assert not batchable(chat(), {"repetition_penalty": 1.3}, {})


def test_every_parameter_that_is_declared_has_its_place() -> None:
    """Either a field of the generation's configuration, or a duty of ours (`solo.py`, `ChoiceText`)."""
    ours = {"stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "max_tokens", "ignore_eos"}
    for name in set(Sampling.__struct_fields__) & CAPABILITIES - ours:
        assert arguments(chat(**{name: 0.5})) != arguments(chat()), name


@pytest.mark.parametrize(("tokens", "count"), [(None, 36), (1000, 20)])
def test_pages_of_the_cache(tokens: int | None, count: int) -> None:
    assert pages(tokens, slots=4, context=512, page_tokens=64) == count


# tokens

ENDS = Ends([2], [2, 9], lambda token: bytes([token + 96]))


def fed(answer: Answer, *tokens: tuple[int, int]) -> list[Any]:
    grammar = EventGrammar()
    got = [event for choice, token in tokens for event in grammar.feed(answer.token(choice, token))]
    grammar.close()
    return got


def test_tokens_become_text_until_the_end() -> None:
    answer = Answer(chat(), [5], 100, ENDS)
    assert fed(answer, (0, 1), (0, 9), (0, 3), (0, 2), (0, 1)) == [
        Started("m"),
        TextDelta("a"),
        TextDelta("c"),
        Finish("stop"),
        Usage(5, 3, source="counted"),
    ]


def test_ends_are_ignored_when_asked() -> None:
    answer = Answer(chat(ignore_eos=True, max_tokens=2), [5], 100, ENDS)
    assert fed(answer, (0, 2), (0, 1))[-2:] == [Finish("length"), Usage(5, 2, source="counted")]


def test_the_context_is_a_limit_of_its_own() -> None:
    answer = Answer(chat(), [98], 100, ENDS)
    assert Finish("length") in fed(answer, (0, 1), (0, 1))


def test_prompts_and_choices_are_numbered() -> None:
    job = GenerationRequest("m", prompts=(Prompt("a"), Prompt("b")), n=2, sampling=Sampling(max_tokens=1))
    answer = Answer(job, [1, 2], 100, ENDS)
    got = fed(answer, (3, 1), (0, 2), (2, 1), (1, 1))
    assert [event.choice for event in got if isinstance(event, Finish)] == [3, 0, 2, 1]
    assert got[-1] == Usage(3, 3, source="counted")


def test_a_choice_that_the_model_ended() -> None:
    answer = Answer(chat(), [1], 100, ENDS)
    assert answer.end(0) == [Started("m"), Finish("stop"), Usage(1, 0, source="counted")]
    assert answer.end(0) == []


def test_memory_that_is_short_may_be_there_again() -> None:
    assert failure(RuntimeError("CUDA out of memory. Tried to …")).kind == "overloaded"
    told = failure(ValueError("secret detail"))
    assert (told.kind, "secret" in told.message, "secret" in told.detail) == ("unavailable", False, True)
