"""A job's sampling as the keyword arguments of vLLM's `SamplingParams`. Pure.

Source: `vllm/sampling_params.py` of 0.32 and 0.33. Not there: typical_p, mirostat, repeat_last_n.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.core.capabilities import LOCAL_SAMPLING, OPENAI_SAMPLING, Capabilities
from backends.core.request import GenerationRequest, Output

#: What the engine declares of a model that generates; tools and thoughts depend on its parsers.
CAPABILITIES: Capabilities = (
    OPENAI_SAMPLING | LOCAL_SAMPLING | {"completions", "n", "logprobs", "token_input", "grammar", "regex"}
) - {
    "typical_p",
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
} | {"response_format.json_object", "response_format.json_schema"}

#: Ours to vLLM's, for those that are passed as they are.
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "seed",
)
_SEED_BITS = 63


def sampling_arguments(job: GenerationRequest, *, room: int, defaults: Mapping[str, object]) -> dict[str, object]:
    """The arguments for each prompt of a job.

    Args:
        job: the request.
        room: tokens that the context holds after the prompt.
        defaults: what the model's own generation configuration states; a request's own values go before it.
    """
    sampling = job.sampling
    given: dict[str, object] = {name: value for name, value in defaults.items() if name in _SAME}
    given |= {name: value for name in _SAME if (value := getattr(sampling, name)) is not None}
    most = sampling.max_tokens
    if most is None and isinstance(of_model := defaults.get("max_tokens"), int):
        most = of_model
    given["max_tokens"] = room if most is None else min(most, room)
    given["n"] = job.n
    if isinstance(seed := given.get("seed"), int):
        given["seed"] = seed & ((1 << _SEED_BITS) - 1)
    if sampling.stop:
        given["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        given["logit_bias"] = dict(sampling.logit_bias)
    if job.top_logprobs is not None:
        given["logprobs"] = job.top_logprobs
    return given


def constraint(output: Output) -> dict[str, object]:
    """The keyword arguments of `StructuredOutputsParams`; empty when the answer may have any form."""
    match output.kind:
        case "text":
            return {}
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            return {"json": bytes(output.schema).decode()}
        case "grammar":
            return {"choice": list(output.choices)} if output.choices else {"grammar": output.grammar}
        case "regex":
            return {"regex": output.grammar}
