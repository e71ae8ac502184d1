"""A job's sampling as the fields of transformers' `GenerationConfig`. Pure.

Source: transformers 5.19 to 5.23 `generation/configuration_utils.py`. What is not stated anywhere there is 50 for
`top_k`, so that "all" has to be said; `do_sample` is off, so that a request that states nothing is greedy unless the
model's own generation configuration says otherwise. Not there: mirostat, repeat_last_n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.core.capabilities import LOCAL_SAMPLING, OPENAI_SAMPLING, Capabilities
from backends.core.request import GenerationRequest

#: What the engine declares of a model that generates.
CAPABILITIES: Capabilities = (OPENAI_SAMPLING | LOCAL_SAMPLING | {"completions", "n", "logprobs", "token_input"}) - {
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
}

#: Ours to theirs.
_SAME = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_new_tokens",
}
_WARPS = ("temperature", "top_p", "top_k", "min_p", "typical_p")
#: What the continuous batch can do for each request by itself.
_BATCHED = frozenset({"max_tokens", "temperature", "top_p", "top_k", "stop", "ignore_eos"})
_NEUTRAL: Mapping[str, object] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "do_sample": False,
}


def generation_arguments(
    job: GenerationRequest,
    *,
    room: int,
    ends: Sequence[int],
    pad: int,
    of_model: Mapping[str, object],
    stated: Mapping[str, object],
) -> dict[str, object]:
    """The fields for one prompt of a job.

    Args:
        job: the request.
        room: tokens that the context holds after the prompt.
        ends: tokens that end an answer.
        pad: token that fills up finished rows.
        of_model: what the model's own generation configuration states.
        stated: what the engine's options state.
    """
    sampling = job.sampling
    given: dict[str, object] = {**_NEUTRAL, **of_model, **stated}
    asked = {there: value for ours, there in _SAME.items() if (value := getattr(sampling, ours)) is not None}
    given |= asked
    if given["temperature"] == 0:
        given["do_sample"] = False
    elif any(getattr(sampling, name) is not None for name in _WARPS):
        given["do_sample"] = True
    if not given["do_sample"]:
        for name in _WARPS:
            given.pop(name, None)
    given["max_new_tokens"] = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
    if isinstance(beams := given["num_beams"], int) and beams > 1:
        given["num_return_sequences"] = job.n
    given["eos_token_id"] = [-1] if sampling.ignore_eos else list(ends)
    given["pad_token_id"] = pad
    return given


def batched_arguments(given: Mapping[str, object], vocabulary: int) -> dict[str, object]:
    """The arguments that a request of the continuous batch has of its own; greedy is the one likeliest token.

    There 0 is no way to say "all" for `top_k`: it is raised to 1.
    """
    if not given["do_sample"]:
        return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
    top_k = given["top_k"]
    assert isinstance(top_k, int)
    all_of_them = not 0 < top_k <= vocabulary
    return {
        "temperature": float(str(given["temperature"])),
        "top_k": vocabulary if all_of_them else top_k,
        "top_p": float(str(given["top_p"])),
    }


def batchable(job: GenerationRequest, of_model: Mapping[str, object], stated: Mapping[str, object]) -> bool:
    """Whether the continuous batch can do all that is asked; else the request has the model for itself for a while."""
    if job.top_logprobs is not None or any(
        {**_NEUTRAL, **of_model, **stated}.get(name) != value for name, value in _ALONE.items()
    ):
        return False
    return all(name in _BATCHED or getattr(job.sampling, name) in (None, ()) for name in job.sampling.__struct_fields__)


#: Values that the batch cannot have otherwise.
_ALONE: Mapping[str, object] = {"num_beams": 1, "repetition_penalty": 1.0}
