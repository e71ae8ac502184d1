"""llama.cpp's server in its own words: `/completion` (events or JSON) and `/embedding`.

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
from backends.core.errors import BackendError, UpstreamProtocol
from backends.core.events import Candidate, Event, Failure, Finish, FinishReason, Started, TextDelta, TokenLogprob
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Message, Prompt, Tool
from backends.core.usage import ABSURD, Usage
from backends.dialects.openai_compatible import Quirks, encode_message, encode_tool
from backends.dialects.openai_embeddings import embedding_events
from backends.parsing import failures
from backends.parsing.framing import EventsOrBody
from backends.parsing.sse import SseEvent
from backends.parsing.utf8 import mend_escapes
from backends.parsing.vectors import pack
from backends.wire.llamacpp import Completion, EmbeddingItem, Templated, Tokenized

CAPABILITIES: Capabilities = (OPENAI_SAMPLING | LOCAL_SAMPLING | {
    *("chat", "completions", "embeddings", "token_input", "n", "logprobs", "grammar", "needs_output_cap"),
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
_EMPTY = msgspec.Raw(b"")
_UNREADABLE = (ValueError, RecursionError)
_read = msgspec.json.Decoder(Completion).decode
_read_whole = msgspec.json.Decoder(Completion | list[Completion]).decode
_read_embeddings = msgspec.json.Decoder(list[EmbeddingItem]).decode


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
            ValueError: a conversation without its rendered prompt.
        """
        if isinstance(job, EmbeddingRequest):
            content = [list(one.tokens) if one.tokens is not None else one.text for one in job.inputs]
            return _post("/embedding", {"content": content})
        prompts = prompts or job.prompts
        if not prompts:
            raise ValueError("a conversation must be rendered by a chat template first")
        inputs = [list(one.tokens) if one.tokens is not None else one.text for one in prompts]
        body: dict[str, object] = {"prompt": inputs[0] if len(inputs) == 1 else inputs, "stream": job.stream}
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
        return _post("/completion", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return _Embeddings(job) if isinstance(job, EmbeddingRequest) else _Completions(job)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _post(path: str, body: Mapping[str, object]) -> UpstreamRequest:
    return UpstreamRequest("POST", path, _JSON, msgspec.json.encode(body))


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
    except _UNREADABLE as error:
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
    except _UNREADABLE as error:
        raise UpstreamProtocol("The backend's answer could not be understood.", detail=f"/tokenize: {error}") from None


class _Completions:
    """`/completion`: events until every choice has said `stop: true`, or one object, or a bare array of them."""

    def __init__(self, job: GenerationRequest) -> None:
        self._job = job
        self._framing = EventsOrBody()
        self._started = self._begun = self._ended = False
        self._finals: dict[int, Completion] = {}

    @property
    def ended(self) -> bool:
        """Whether the answer is over: nothing that may still come adds an event."""
        return self._ended

    def feed(self, data: bytes, /) -> list[Event]:
        """Events completed by these bytes."""
        out: list[Event] = []
        if self._ended:
            return out
        for event in self._framing.feed(data):
            self._event(event, out)
            if self._ended:
                return out
        if self._framing.broken:
            self._fail(failures.protocol(self._framing.broken), out)
        return out

    def close(self) -> list[Event]:
        """The body has ended."""
        out: list[Event] = []
        if self._ended:
            return out
        if self._framing.is_body:
            self._whole(self._framing.take_body(), out)
        for event in self._framing.close():
            if not self._ended:
                self._event(event, out, cut=True)
        if not self._ended:
            self._fail(failures.truncated("the body ended before every choice said `stop: true`"), out)
        return out

    def _event(self, event: SseEvent, out: list[Event], *, cut: bool = False) -> None:
        if event.data == b"null":  # begins each but the first group of several prompts' choices (seen in xllamacpp)
            return
        try:
            record = _read(event.data)
        except _UNREADABLE:
            try:
                record = _read(mend_escapes(event.data))
            except _UNREADABLE:
                odd = (
                    failures.truncated("the body ended inside an event")
                    if cut
                    else failures.protocol("not a record", event.data)
                )
                self._fail(odd, out)
                return
        if event.name == "error":
            self._error(event.data, out)
        else:
            self._record(record, record.index or 0, event.data, out)

    def _whole(self, body: bytes, out: list[Event]) -> None:
        try:
            answer = _read_whole(body)
        except _UNREADABLE:
            self._fail(failures.protocol("not an answer", body), out)
            return
        for position, record in enumerate(answer if isinstance(answer, list) else [answer]):
            if not self._ended:
                self._record(record, position if record.index is None else record.index, body, out)

    def _error(self, data: bytes, out: list[Event]) -> None:
        self._fail(failures.event(failures.stream_failure(data, begun=self._begun)), out)

    def _fail(self, failure: Failure, out: list[Event]) -> None:
        self._ended = True
        out.append(failure)

    def _record(self, record: Completion, choice: int, data: bytes, out: list[Event]) -> None:
        content = record.content
        if content is None:
            self._error(data, out)
            return
        if not 0 <= choice < self._job.choices:
            self._fail(failures.protocol(f"choice {choice} of {self._job.choices}"), out)
            return
        if not self._started:
            self._started = True
            out.append(Started(record.model))
        if choice in self._finals:
            return
        tokens: tuple[TokenLogprob, ...] = ()
        if record.completion_probabilities is not None and self._job.top_logprobs is not None:
            tokens = _tokens(record, self._job.top_logprobs)
        if content or tokens:
            self._begun = True
            out.append(TextDelta(content, choice, tokens))
        if record.stop:
            self._finals[choice] = record
            out.append(Finish(_reason(record), choice))
            if len(self._finals) == self._job.choices:
                self._ended = True
                if usage := self._usage():
                    out.append(usage)

    def _usage(self) -> Usage | None:
        """Outputs of all choices; each prompt once, however many choices share it."""
        firsts = [final for choice, final in self._finals.items() if choice % self._job.n == 0]
        prompt = sum(final.tokens_evaluated for final in firsts)
        output = sum(final.tokens_predicted for final in self._finals.values())
        cached = sum(final.timings.cache_n for final in firsts if final.timings)
        if not 0 < prompt < ABSURD or not 0 <= output < ABSURD or (output == 0 and self._begun):
            return None
        return Usage(prompt, output, cached if 0 <= cached <= prompt else 0)


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


class _Embeddings:
    """`/embedding`: an array of `{index, embedding: [[...]]}`; it tells no usage."""

    def __init__(self, job: EmbeddingRequest) -> None:
        self._job = job
        self._framing = EventsOrBody()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer is over: nothing that may still come adds an event."""
        return self._ended

    def feed(self, data: bytes, /) -> list[Event]:
        """Nothing yet: the body is one JSON value."""
        if not self._ended:
            self._framing.feed(data)
            if self._framing.broken:
                self._ended = True
                return [failures.protocol(self._framing.broken)]
        return []

    def close(self) -> list[Event]:
        """All of it, in the order of the inputs."""
        if self._ended:
            return []
        self._ended = True
        body = self._framing.take_body()
        try:
            vectors: dict[int, bytes] = {}
            for item in _read_embeddings(body):
                (vector,) = item.embedding
                vectors[item.index] = pack(vector)
        except _UNREADABLE as error:
            if failures.envelope(body).message:
                return [failures.event(failures.stream_failure(body, begun=False))]
            return [failures.protocol(f"no embeddings, or one per token ({error})", body)]
        return embedding_events(vectors, self._job, "", None)
