"""What a backend can do, as data, and what a job asks of it.

A capability is a request parameter's wire name (`temperature`, `top_k`, `n`, `tools`, `response_format.json_schema`,
`logprobs` …) or a kind of work (`chat`, `completions`, `embeddings`, `rerank`). A dialect declares its set; quirks and a
deployment's configuration add to or take from it.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Literal

import msgspec

from backends.core.errors import UnsupportedParameter
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, RerankRequest, Sampling

Capabilities = frozenset[str]
ParamsRule = Literal["reject", "drop", "forward"]

#: Sampling parameters of OpenAI's own schema.
OPENAI_SAMPLING = frozenset(
    {"max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"}
)
#: Sampling parameters that only local backends know.
LOCAL_SAMPLING = frozenset(Sampling.__struct_fields__) - OPENAI_SAMPLING
#: What a conversation with tools may ask.
TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
#: Every name that a configuration's `capabilities` may add or take away: what `asked` can ask.
CAPABILITY_NAMES = (
    OPENAI_SAMPLING
    | LOCAL_SAMPLING
    | TOOLS
    | {
        "chat",
        "completions",
        "embeddings",
        "dimensions",
        "token_input",
        "n",
        "grammar",
        "regex",
        "reasoning_effort",
        "logprobs",
    }
    | {"response_format.json_object", "response_format.json_schema", "suffix", "image_url", "rerank"}
)
_DEFAULT_SAMPLING = Sampling()
#: Capabilities that are forms of the answer, which clients ask for by several names.
_FORMS = frozenset({"grammar", "regex", "response_format"})
#: What may be left out without changing what kind of answer comes: the `drop` rule applies to these only.
DROPPABLE = OPENAI_SAMPLING | LOCAL_SAMPLING | {"parallel_tool_calls", "reasoning_effort", "logprobs"}


def asked(job: Job) -> frozenset[str]:
    """The capabilities that a job needs, by wire name. `max_tokens` and `stop` included when set."""
    if isinstance(job, EmbeddingRequest):
        names = {"embeddings"}
        if job.dimensions is not None:
            names.add("dimensions")
        if any(one.tokens is not None for one in job.inputs):
            names.add("token_input")
        return frozenset(names)
    if isinstance(job, RerankRequest):
        return _RERANK
    names = {"completions" if job.prompts else "chat", *job.sampling.stated()}
    _generation(job, names)
    return frozenset(names)


_RERANK = frozenset({"rerank"})


def _generation(job: GenerationRequest, names: set[str]) -> None:
    if _beside(job) != _PLAIN:
        _special(job, names)
    if job.images:
        names.add("image_url")


_beside = attrgetter(
    "n", "tools", "tool_choice", "parallel_tool_calls", "output", "reasoning_effort", "top_logprobs", "suffix", "prompts"
)
_PLAIN = _beside(GenerationRequest(""))
_local = attrgetter(*sorted(LOCAL_SAMPLING))
_NO_LOCAL = _local(_DEFAULT_SAMPLING)
#: What a job without tools, forms, images and local sampling may ask.
_USUAL = OPENAI_SAMPLING | {"chat", "completions"}
_NOTHING: frozenset[str] = frozenset()


def _special(job: GenerationRequest, names: set[str]) -> None:
    if job.n > 1:
        names.add("n")
    if job.tools:
        names.add("tools")
    if job.tool_choice is not None and job.tool_choice.mode in ("required", "function"):
        names.add("tool_choice")
    if job.parallel_tool_calls is not None:
        names.add("parallel_tool_calls")
    if job.output.kind in ("grammar", "regex"):
        names.add(job.output.kind)
    elif job.output.kind != "text":
        names.add(f"response_format.{job.output.kind}")
    if job.reasoning_effort is not None:
        names.add("reasoning_effort")
    if job.top_logprobs is not None:
        names.add("logprobs")
    if job.suffix:
        names.add("suffix")
    for prompt in job.prompts:
        if prompt.tokens is not None:
            names.add("token_input")


def missing(job: Job, capabilities: Capabilities) -> frozenset[str]:
    """What the job asks that the capabilities lack."""
    if (  # nearly all jobs, where nearly all can run
        type(job) is GenerationRequest
        and _beside(job) == _PLAIN
        and _local(job.sampling) == _NO_LOCAL
        and capabilities >= _USUAL
        and ("image_url" in capabilities or not job.images)
    ):
        return _NOTHING
    return asked(job) - capabilities


def resolve(job: Job, capabilities: Capabilities, rule: ParamsRule) -> Job:
    """The job as a deployment with this rule may be given it: never a silent default or clamp.

    `reject`: any lack is refused. `drop`: droppable parameters are left out, the rest refused. `forward`: sampling
    parameters go upstream as they are (the dialect encodes all it has a spelling for), the rest is refused.

    Raises:
        UnsupportedParameter: names the first parameter, in alphabetical order.
    """
    lacks = missing(job, capabilities)
    if not lacks:
        return job
    tolerated: frozenset[str] = frozenset()
    if rule == "drop":
        tolerated = lacks & DROPPABLE
    elif rule == "forward":
        tolerated = lacks & (OPENAI_SAMPLING | LOCAL_SAMPLING | {"logprobs", "parallel_tool_calls", "reasoning_effort"})
    if refused := sorted(lacks - tolerated):
        name = refused[0]
        param = name.partition(".")[0]
        if param in _FORMS and isinstance(job, GenerationRequest) and job.output.asked_as:
            name = param = job.output.asked_as
        raise UnsupportedParameter(f"The model {job.model!r} does not support {name!r} here.", param=param)
    if rule == "forward" or not isinstance(job, GenerationRequest):
        return job
    changes: dict[str, object] = dict.fromkeys(tolerated & {"parallel_tool_calls", "reasoning_effort"})
    if "logprobs" in tolerated:
        changes["top_logprobs"] = None
    sampling = {name: getattr(_DEFAULT_SAMPLING, name) for name in tolerated & frozenset(Sampling.__struct_fields__)}
    return msgspec.structs.replace(job, sampling=msgspec.structs.replace(job.sampling, **sampling), **changes)
