"""What dialects of servers that take one plain prompt a request have in common: checking the job, writing the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.core.contracts import UpstreamRequest
from backends.core.errors import UnsupportedParameter
from backends.core.request import GenerationRequest, Job, Prompt
from backends.wire.json_body import json_body


def generation(job: Job) -> GenerationRequest:
    """The job, for servers that only generate.

    Raises:
        UnsupportedParameter: another kind of work is asked.
    """
    if not isinstance(job, GenerationRequest):
        raise UnsupportedParameter(f"The model {job.model!r} only generates text here.", param="model")
    return job


def one_prompt(job: GenerationRequest, prompts: Sequence[Prompt]) -> Prompt:
    """The one prompt, as text.

    Raises:
        UnsupportedParameter: several prompts, or token ids.
        ValueError: a conversation without its rendered prompt.
    """
    prompts = prompts or job.prompts
    if not prompts:
        raise ValueError("a conversation must be rendered by a chat template first")
    if len(prompts) > 1 or prompts[0].tokens is not None:
        raise UnsupportedParameter(f"The model {job.model!r} takes one prompt at a time here, as text.", param="prompt")
    return prompts[0]


def post(path: str, body: Mapping[str, object]) -> UpstreamRequest:
    """A JSON request."""
    return UpstreamRequest("POST", path, {"content-type": "application/json"}, json_body(body))
