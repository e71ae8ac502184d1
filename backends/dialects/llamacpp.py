"""llama.cpp's server in its own words: `/completion` (events or JSON), `/infill` for a prompt with a suffix, `/embedding`,
`/rerank`.

Source: llama.cpp `tools/server` as vendored in llama-cpp-python 0.3.36 (2026); the 2023-24 form (`stopped_eos`,
`stopped_limit`, no `index`) is read too. `base_url` is the server's root: bare `/completions` is native there.

Known limits: tool calls are not taken out of the text (use `openai_compatible` with quirks `llamacpp` for tools);
logprobs of servers before 2025 (linear `probs`) are refused. Without `n_predict` the server generates without end: the
pipeline always states a cap. It parses special tokens in a prompt's text, and adds the BOS itself: render templates
with an empty `bos_token`, and where a prompt's untrusted parts hold special-token text, send token ids from
`tokenize_request(..., parse_special=False)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import LOCAL_SAMPLING, OPENAI_SAMPLING, Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, UnsupportedParameter, UpstreamProtocol
from backends.core.events import Candidate, FinishReason, TokenLogprob
from backends.core.facts import Facts
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Message, Prompt, RerankRequest, Tool
from backends.dialects.answers import UNREADABLE
from backends.dialects.openai_compatible import Quirks, encode_message, encode_tool
from backends.dialects.rerank_answers import rerank_body, rerank_decoder
from backends.dialects.text_answers import Form, Piece, TextDecoder
from backends.dialects.vector_answers import Vectors, vector_decoder
from backends.parsing import failures
from backends.parsing.vectors import pack
from backends.wire.json_body import json_body
from backends.wire.llamacpp import Completion, Detokenized, EmbeddingItem, Props, SlotState, Templated, Tokenized

CAPABILITIES: Capabilities = (OPENAI_SAMPLING | LOCAL_SAMPLING | {
    *("chat", "completions", "embeddings", "rerank", "token_input", "n", "logprobs", "grammar", "suffix", "needs_output_cap"),
    *("response_format.json_object", "response_format.json_schema"),
}) - {"min_tokens"}  # fmt: skip
_JSON: Mapping[str, str] = {"content-type": "application/json"}
_NAMES = {
    "max_tokens": "n_predict", "temperature": "temperature", "top_p": "top_p", "seed": "seed", "top_k": "top_k",
    "min_p": "min_p", "typical_p": "typical_p", "presence_penalty": "presence_penalty", "mirostat": "mirostat",
    "frequency_penalty": "frequency_penalty", "repetition_penalty": "repeat_penalty", "repeat_last_n": "repeat_last_n",
    "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta", "ignore_eos": "ignore_eos",
}  # fmt: skip
_MESSAGES = Quirks("llamacpp", reasoning_field="reasoning_content")
_read = msgspec.json.Decoder(Completion, strict=False).decode
_read_whole = msgspec.json.Decoder(Completion | list[Completion], strict=False).decode
_read_embeddings = msgspec.json.Decoder(list[EmbeddingItem], strict=False).decode


class LlamaCpp:
    """The dialect. `needs_prompt`: conversations are rendered by a chat template first, ours or the server's."""

    name = "llamacpp"
    needs_prompt = True
    capabilities = CAPABILITIES

    @classmethod
    def legacy(cls) -> LlamaCpp:
        """For servers of 2023 and 2024, and PowerInfer's: the same words, but one choice a prompt and older logprobs."""
        made = cls()
        made.name = "llamacpp_legacy"
        made.capabilities = CAPABILITIES - {"n", "logprobs"}
        return made

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: a suffix beside several prompts, or beside token ids.
            ValueError: a conversation without its rendered prompt.
        """
        if isinstance(job, EmbeddingRequest):
            content = [list(one.tokens) if one.tokens is not None else one.text for one in job.inputs]
            return _post("/embedding", {"content": content})
        if isinstance(job, RerankRequest):
            return _post("/rerank", rerank_body(job))
        prompts = prompts or job.prompts
        if not prompts:
            raise ValueError("a conversation must be rendered by a chat template first")
        body = _infill(job, prompts) if job.suffix else _prompt(prompts)
        body["stream"] = job.stream
        for ours, theirs in _NAMES.items():
            if (value := getattr(job.sampling, ours)) is not None:
                body[theirs] = value
        if job.sampling.stop:
            body["stop"] = list(job.sampling.stop)
        if job.sampling.logit_bias:
            body["logit_bias"] = list(job.sampling.logit_bias)
        if job.n > 1:
            body["n_cmpl"] = job.n
        if job.top_logprobs is not None:
            body["n_probs"] = max(1, job.top_logprobs)
        if job.output.kind == "grammar":
            body["grammar"] = job.output.grammar
        elif job.output.kind == "json_schema":
            body["json_schema"] = job.output.schema
        elif job.output.kind == "json_object":
            body["json_schema"] = {"type": "object"}
        return _post("/infill" if job.suffix else "/completion", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        if isinstance(job, EmbeddingRequest):
            return vector_decoder(job, _vectors)
        return rerank_decoder(job) if isinstance(job, RerankRequest) else TextDecoder(job, _FORM)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _post(path: str, body: Mapping[str, object]) -> UpstreamRequest:
    return UpstreamRequest("POST", path, _JSON, json_body(body))


def _prompt(prompts: Sequence[Prompt]) -> dict[str, object]:
    inputs = [list(one.tokens) if one.tokens is not None else one.text for one in prompts]
    return {"prompt": inputs[0] if len(inputs) == 1 else inputs}


def _infill(job: GenerationRequest, prompts: Sequence[Prompt]) -> dict[str, object]:
    """What stands before and behind the gap; the server puts the model's own marks around them."""
    if len(prompts) > 1 or prompts[0].tokens is not None:
        raise UnsupportedParameter("A 'suffix' goes with one prompt, as text, here.", param="suffix")
    return {"input_prefix": prompts[0].text, "input_suffix": job.suffix, "input_extra": []}


def template_request(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> UpstreamRequest:
    """Ask the server to render a conversation by its model's own chat template, ready for the assistant's turn."""
    body: dict[str, object] = {"messages": [encode_message(message, _MESSAGES) for message in messages]}
    if tools:
        body["tools"] = [encode_tool(tool) for tool in tools]
    return _post("/apply-template", body)


def templated_prompt(body: bytes) -> Prompt:
    """The prompt out of `/apply-template`'s answer.

    Raises:
        UpstreamProtocol: it is none.
    """
    try:
        return Prompt(msgspec.json.decode(body, type=Templated).prompt)
    except UNREADABLE as error:
        raise UpstreamProtocol("The backend's answer could not be understood.", detail=f"/apply-template: {error}") from None


def tokenize_request(text: str, *, add_special: bool = False, parse_special: bool = True) -> UpstreamRequest:
    """Ask for a text's token ids. `parse_special=False`: special-token text stays plain text, for untrusted input."""
    return _post("/tokenize", {"content": text, "add_special": add_special, "parse_special": parse_special})


def tokens_of(body: bytes) -> tuple[int, ...]:
    """The ids out of `/tokenize`'s answer.

    Raises:
        UpstreamProtocol: it is none.
    """
    try:
        return tuple(msgspec.json.decode(body, type=Tokenized).tokens)
    except UNREADABLE as error:
        raise UpstreamProtocol("The backend's answer could not be understood.", detail=f"/tokenize: {error}") from None


def detokenize_request(tokens: Sequence[int]) -> UpstreamRequest:
    """Ask for the text of token ids."""
    return _post("/detokenize", {"tokens": list(tokens)})


def text_of(body: bytes) -> str:
    """The text out of `/detokenize`'s answer.

    Raises:
        UpstreamProtocol: it is none.
    """
    try:
        return msgspec.json.decode(body, type=Detokenized).content
    except UNREADABLE as error:
        raise UpstreamProtocol("The backend's answer could not be understood.", detail=f"/detokenize: {error}") from None


def facts(bodies: Sequence[bytes]) -> Facts:
    """What `/props` and `/slots` tell; either may be switched off at the server (an error body, which tells nothing)."""
    found = Facts()
    for body in bodies:
        try:
            value = msgspec.json.decode(body, type=Props | list[SlotState])
        except UNREADABLE:
            continue
        if isinstance(value, list):
            found.slots, found.busy = len(value), sum(one.is_processing for one in value)
        else:
            settings = value.default_generation_settings
            found.context = settings.n_ctx if settings else 0
            found.slots = found.slots or value.total_slots
            found.model = value.model_path.replace("\\", "/").rpartition("/")[2]
            found.version, found.template = value.build_info, value.chat_template
    return found


#: Where a server tells of itself.
FACTS = ("/props", "/slots")


def _event(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    record = _read(data)
    if record.content is None and record.index is None and not record.stop:
        return None
    return [_piece(record, record.index or 0, job)]


def _quick(data: bytes) -> str:
    record = _read(data)
    return "" if record.stop or record.index or record.completion_probabilities else record.content or ""


def _answer(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    """One object, or a bare array of them for several prompts or choices."""
    value = _read_whole(data)
    pieces: list[Piece] = []
    for place, record in enumerate(value if isinstance(value, list) else [value]):
        if record.content is None or not record.stop:
            return None
        pieces.append(_piece(record, place if record.index is None else record.index, job))
    return pieces


def _piece(record: Completion, choice: int, job: GenerationRequest) -> Piece:
    """Only the last record of a choice tells counts that hold."""
    piece = Piece(record.content or "", choice, model=record.model)
    if record.completion_probabilities is not None and job.top_logprobs is not None:
        piece.logprobs = _tokens(record, job.top_logprobs)
    if record.stop:
        piece.finished = True
        piece.reason = _reason(record)
        piece.input_tokens, piece.output_tokens = record.tokens_evaluated, record.tokens_predicted
        piece.cached_tokens = record.timings.cache_n if record.timings else 0
    return piece


def _reason(record: Completion) -> FinishReason:
    """eos and word are `stop`; limit, none and a record without any flag are `length`."""
    return "stop" if record.stop_type in ("eos", "word") or record.stopped_eos or record.stopped_word else "length"


def _tokens(record: Completion, top: int) -> tuple[TokenLogprob, ...]:
    """`n_probs` cannot be 0, so alternatives beyond what was asked are cut here."""
    return tuple(
        TokenLogprob(
            one.token,
            bytes(one.bytes) if one.bytes is not None else one.token.encode(),
            one.logprob,
            tuple(
                Candidate(other.token, bytes(other.bytes) if other.bytes is not None else other.token.encode(), other.logprob)
                for other in (one.top_logprobs or ())[:top]
            ),
        )
        for one in record.completion_probabilities or ()
    )


def _vectors(body: bytes) -> Vectors:
    """An array of `{index, embedding: [[...]]}`; it tells no usage."""
    vectors: dict[int, bytes] = {}
    for item in _read_embeddings(body):
        (vector,) = item.embedding  # several are one per token: the server runs without pooling
        vectors[item.index] = pack(vector)
    return Vectors(vectors)


_FORM = Form(_event, _answer, terminator="finish", quick=_quick)
