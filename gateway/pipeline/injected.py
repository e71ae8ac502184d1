"""When a backend refuses an output cap that we chose: the configuration's fault, never the client's. Pure."""

from __future__ import annotations

import re

from backends.core.errors import BackendError, GatewayError, UpstreamRejected

#: The cap's names on the wires that we speak (OpenAI, llama.cpp, Ollama, vLLM, TGI).
_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "n_predict", "num_predict")
#: vLLM and OpenAI name the context that a request did not fit in.
_CONTEXT = re.compile(r"context length (?:is|of) (?:only )?(\d{2,9})")


class OutputCapRefused(BackendError):
    """A deployment refused the output cap that we injected (502); another one may take it."""

    default_code = "output_cap_refused"
    kind = "rejected"


def blamed(error: GatewayError, imposed_cap: int, prompt_bound: int) -> GatewayError:
    """The error that counts: ours, when a rejection is about the cap that we chose.

    Args:
        error: what an attempt ended in.
        imposed_cap: the cap that we chose, 0 = the client chose it or there is none.
        prompt_bound: no fewer tokens than the prompt has. A prompt that fits the context that the backend names was
            refused because of our cap.
    """
    if not imposed_cap or not isinstance(error, UpstreamRejected):
        return error
    about_cap = error.param in _NAMES or any(name in error.message for name in _NAMES)
    context = _CONTEXT.search(error.message)
    if error.code == "context_length_exceeded" or context:
        about_cap = context is not None and prompt_bound < int(context[1])
    if not about_cap:
        return error
    return OutputCapRefused(
        "The model's server refused the output cap that the gateway chose.",
        detail=f"cap {imposed_cap}: set the model's `context` and `default_output_tokens`; it said: {error.message[:200]}",
    )
