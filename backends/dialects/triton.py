"""TensorRT-LLM behind Triton's generate extension: `/v2/models/<model>/generate` and `generate_stream`.

Source: Triton server e1db8a6 (2026-08) src/http_server.cc and docs/protocol/extension_generate.md; TensorRT-LLM
triton_backend (ensemble, tensorrt_llm_bls). `base_url` is the server's root, the deployment's `model` is Triton's:
`ensemble`, `tensorrt_llm_bls` or one of one's own.

An input that the model does not declare is taken for a parameter of the request and ignored where it is a number, a
text or a boolean, and refused where it is a list (Triton 2.51, tried): so inputs can be renamed, or left out with "", and
what is left out is refused by name here (`tensors`).
There is no finish reason: it is inferred from the token count where the model tells one. Counts and usage that are not
told are the gateway's to make.

Known limits: one prompt and one choice a request (`beam_width` is not `n`); no token ids, no logprobs with
alternatives. Where text comes in deltas (`accumulate_tokens: false`), a character that Triton cut into two events is
lost upstream and shows as U+FFFD, and SentencePiece's leading spaces may be missing: `accumulate_tokens` mends both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast
from urllib.parse import quote

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError
from backends.core.request import GenerationRequest, Job, Prompt
from backends.core.usage import told_count
from backends.dialects.plain_prompts import generation, one_prompt, post
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.parsing import failures

_INPUTS = (
    *("text_input", "max_tokens", "stop_words", "temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "min_tokens", "seed", "stream", "exclude_input_in_output", "return_num_input_tokens"),
    *("return_num_output_tokens", "guided_decoding_guide_type", "guided_decoding_guide"),
)
_OUTPUTS = ("text_output", "num_input_tokens", "num_output_tokens")
#: Inputs that are FP32: their JSON must not be an integer.
_FLOATS = ("top_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
CAPABILITIES: Capabilities = frozenset({
    *("chat", "completions", "max_tokens", "temperature", "top_p", "stop", "seed", "frequency_penalty"),
    *("presence_penalty", "top_k", "repetition_penalty", "min_tokens", "needs_output_cap"),
})  # fmt: skip
#: Sampling parameters by their input; those without an input of this name cannot be asked.
_SAMPLING = {
    "max_tokens": "max_tokens", "top_p": "top_p", "seed": "seed", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty", "repetition_penalty": "repetition_penalty", "min_tokens": "min_tokens",
    "temperature": "temperature", "top_k": "top_k", "stop": "stop_words",
}  # fmt: skip


class _Record(msgspec.Struct, gc=False):
    """Under the tensors' own names: see `_reader`. Values are as odd as their models."""

    text_output: object = None
    num_input_tokens: object = None
    num_output_tokens: object = None
    model_name: object = None
    error: object = None


def _reader(tensors: Mapping[str, str]) -> Callable[[bytes], _Record]:
    """Reads records whose outputs have these names; "" = there is none."""
    names = {name: tensors[name] or f"no {name}" for name in _OUTPUTS}
    fields = [(name, object, None) for name in _Record.__struct_fields__]
    kind = msgspec.defstruct("_Named", fields, bases=(_Record,), rename=names, gc=False)
    return cast("Callable[[bytes], _Record]", msgspec.json.Decoder(kind).decode)


class TritonOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must be known of a Triton deployment.

    Attributes:
        accumulate_tokens: each event of a stream has all text so far, as the model's parameter of that name says.
        exclude_input_in_output: whole answers can be had without the prompt; where false, it is cut off here.
        eos_texts: end-of-text markers that the engine leaves in the text.
        tensors: the model's names for the inputs and outputs of TensorRT-LLM's ensemble; "" = it has none.
    """

    accumulate_tokens: bool = False
    exclude_input_in_output: bool = True
    eos_texts: tuple[str, ...] = ()
    tensors: dict[str, str] = {}

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tensors) - {*_INPUTS, *_OUTPUTS}):
            raise ValueError(f"unknown tensor {unknown[0]!r}; known: {', '.join((*_INPUTS, *_OUTPUTS))}")
        for needed in ("text_input", "max_tokens", "text_output"):
            if self.tensors.get(needed, needed) == "":
                raise ValueError(f"the tensor {needed!r} cannot be left out")


class Triton:
    """The dialect. `needs_prompt`: conversations are rendered by a chat template first."""

    name = "triton"
    needs_prompt = True

    def __init__(self, options: TritonOptions | None = None) -> None:
        self._options = options = options or TritonOptions()
        self._tensor = {name: options.tensors.get(name, name) for name in (*_INPUTS, *_OUTPUTS)}
        self._read = _reader(self._tensor)
        self._form = Form(
            self._pieces,
            self._whole,
            terminator="close",
            cumulative=options.accumulate_tokens,
            running_counts=options.accumulate_tokens,
            counted_by="" if options.accumulate_tokens else "text",
            ends=options.eos_texts,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the model's inputs allow."""
        return CAPABILITIES - {name for name, tensor in _SAMPLING.items() if not self._tensor[tensor]}

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings, several prompts or token ids.
            ValueError: a conversation without its rendered prompt.
        """
        job = generation(job)
        sampling = job.sampling
        inputs: dict[str, object] = {"text_input": one_prompt(job, prompts).text}
        for name in ("max_tokens", "seed", "min_tokens"):
            inputs[name] = getattr(sampling, name)
        for name in _FLOATS:
            value = getattr(sampling, name)
            inputs[name] = None if value is None else float(value)
        inputs["top_k"] = sampling.top_k or None
        if sampling.temperature == 0:  # the engine divides by it; one candidate is the same
            inputs["top_k"] = 1
        elif sampling.temperature is not None:
            inputs["temperature"] = float(sampling.temperature)
        inputs["stop_words"] = list(sampling.stop) or None
        inputs["stream"] = job.stream
        inputs["return_num_input_tokens"] = inputs["return_num_output_tokens"] = True
        inputs["exclude_input_in_output"] = True if self._options.exclude_input_in_output else None
        if job.output.kind in ("json_object", "json_schema"):
            schema = job.output.kind == "json_schema"
            inputs["guided_decoding_guide_type"] = "json_schema" if schema else "json"
            inputs["guided_decoding_guide"] = bytes(job.output.schema).decode() if schema else None
        elif job.output.kind in ("grammar", "regex"):
            inputs["guided_decoding_guide_type"] = "regex" if job.output.kind == "regex" else "ebnf_grammar"
            inputs["guided_decoding_guide"] = job.output.grammar
        body = {self._tensor[name]: value for name, value in inputs.items() if value is not None and self._tensor[name]}
        return post(f"/v2/models/{quote(job.model, safe='')}/generate{'_stream' if job.stream else ''}", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        job = generation(job)
        given = prompts or job.prompts
        echo = given[0].text if given and not self._options.exclude_input_in_output else ""
        return TextDecoder(job, self._form, echo=echo)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for.

        400 is Triton's word for its model's refusals and for inputs that it does not know: the gateway's doing, unless
        it says that the prompt is too long.
        """
        said = failures.envelope(body)
        return failures.verdict(500 if status == 400 else status, said, failures.retry_after_ms(headers))

    def _pieces(self, data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
        record = self._read(data)
        text = record.text_output
        if isinstance(text, list):  # beams, or several results: the first is the best
            text = text[0] if text else ""
        if not isinstance(text, str) or record.error:
            return None
        name = record.model_name
        return [
            Piece(
                text,
                input_tokens=_count(record.num_input_tokens),
                output_tokens=_count(record.num_output_tokens),
                model=name if isinstance(name, str) else "",
            )
        ]

    def _whole(self, data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
        pieces = self._pieces(data, job)
        for piece in pieces or ():
            piece.finished = True
        return pieces


def _count(value: object) -> int:
    """A count as a number, or in arrays of one."""
    while isinstance(value, list) and value:
        value = value[0]
    return told_count(value) or 0
