"""What a backend's error means to a client: any envelope in, one `BackendError` out.

Envelopes seen (PITFALLS 13 of our notes; each from its server's source, 2026): `{"error": {...}}` with `code` an
integer or a string; flat `{"object": "error", "message"}` (vLLM <= 0.9, SGLang, LMDeploy, trtllm-serve, FastChat);
`{"error": "text"}` (Ollama, Triton, vLLM's 401); `{"error", "error_type"}` (TGI, TEI); FastAPI's `{"detail": text or
list}`; `{"message"}` (lightllm); FastChat's in-stream `{"text", "error_code"}`; HTML, plain text or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from backends.core.errors import (
    BackendError,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from backends.core.events import Failure, FailureKind
from backends.parsing.sanitise import public
from backends.parsing.sse import SseParser

_MAX_BODY = 65536
_MAX_DETAIL = 4096
_MAX_RETRY_AFTER_MS = 24 * 3600 * 1000
_CONTEXT = re.compile(
    r"(?i)(?:maximum|max|model'?s?|available) context|context[ _](?:length|size|window|limit)|exceed_context"
    r"|\bexceeds? (?:the )?(?:maximum|max|model|limit)[^.]{0,30}(?:(?:input|prompt|sequence) length|tokens)"
    r"|prompt is too long|too many (?:input )?tokens|max_(?:model|seq|input)_len|`?inputs`?.{0,60}must (?:be|have) "
    r"(?:<=|less than)?.{0,30}tokens|must be <= \d+"
)
_MODEL = re.compile(
    r"(?i)\bmodel\b.{0,200}\b(?:not found|not exist|does not exist|unknown|not available|not supported)|no such model"
)
_LOADING = re.compile(r"(?i)\bloading\b|still starting|warming up")
#: What of a client's request can be too long; vLLM names things of its own, such as `input_text`.
_TOO_LONG = frozenset({"messages", "prompt", "input", "max_tokens", "max_completion_tokens"})
_NAME = re.compile(r"[A-Za-z][\w.\[\]-]{0,63}")
_WRONG_CREDENTIALS = frozenset({401, 402, 403, 407})
_OURS = frozenset({405, 406, 409, 411, 415, 417, 421, 424, 425, 426, 428, 431, 499})
#: Statuses that stand for themselves only by a type's or a code's name, in stream errors without a number.
_BY_NAME = {
    "invalid_request_error": 400, "badrequesterror": 400, "bad request": 400, "validation": 422, "tool_error": 422,
    "template_error": 422, "unprocessableentityerror": 422, "exceed_context_size_error": 400, "context_length_exceeded": 400,
    "not_found_error": 404, "notfounderror": 404, "model_not_found": 404, "authentication_error": 401, "invalid_api_key": 401,
    "permission_error": 403, "rate_limit_error": 429, "rate_limit_exceeded": 429, "insufficient_quota": 429, "overloaded": 429,
    "overloaded_error": 529, "unavailable_error": 503, "serviceunavailableerror": 503, "timeout_error": 504,
    "engine_overloaded": 503, "invalid_model": 404, "request_too_large": 413, "billing_error": 402,
}  # fmt: skip
#: TGI's names of a generation that broke off.
_INCOMPLETE = frozenset({"incomplete_generation", "incomplete_generation_stream"})
#: FastChat's own numbers (fastchat/constants.py ErrorCode, 0.2.36); others are their hundreds.
_FASTCHAT_CODES = {40301: "model_not_found", 40303: "context_length_exceeded"}
_FASTCHAT = {40301: 404, 40302: 400, 40303: 400, 50005: 503, 50006: 504}


class Envelope(msgspec.Struct, frozen=True):
    """What an error body says. `status`: the number it carries itself, 0 for none. `raw`: the body, bounded.

    Bodies echo prompts (FastAPI's validation errors do), so neither log nor client gets more of one than `told` and
    what `public` leaves of `message`.
    """

    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""
    status: int = 0
    raw: str = ""

    @property
    def told(self) -> str:
        """For the log: everything but words."""
        names = [f"{what} {name}" for what, text in (("type", self.type), ("code", self.code)) if (name := _name(text))]
        return ", ".join([*names, f"an error body of {len(self.raw)} characters"])


def envelope(body: bytes) -> Envelope:
    """Read an error body of any known form; never raises. A form that is not known gives only `raw`."""
    raw = body[:_MAX_DETAIL].decode("utf-8", "replace")
    if body.startswith((b"data:", b"event:", b"error:")):
        parser = SseParser()
        events = [*parser.feed(body[:_MAX_BODY]), *parser.close()]
        body = events[0].data if events else b""
    try:
        value: Any = msgspec.json.decode(body[:_MAX_BODY])
    except (ValueError, RecursionError):
        text = "" if raw.lstrip()[:1] in ("<", "{", "[") else raw.strip()
        return Envelope(message=text, raw=raw)
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return Envelope(message=value, raw=raw)
    return _read(value, raw) if isinstance(value, dict) else Envelope(raw=raw)


def _read(value: dict[str, Any], raw: str) -> Envelope:
    error = value.get("error", value.get("errors"))
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        value = inner if isinstance(inner := error.get("error"), dict) else error
    elif isinstance(error, str) and error:
        value = {**value, "message": value.get("message") or error, "type": value.get("error_type")}
    elif isinstance(value.get("detail"), str):
        value = {"message": value["detail"]}
    elif isinstance(value.get("detail"), list):
        return _fastapi(value["detail"], raw)
    code = value.get("code", value.get("error_code"))
    number = 0
    for candidate in (code, value.get("http_status_code"), value.get("status_code"), value.get("status")):
        if type(candidate) is int or (type(candidate) is str and candidate.isdecimal() and len(candidate) <= 5):
            number = _number(int(candidate))
            break
    message = _text(value.get("message")) or _text(value.get("error_msg"))
    if not message and "error_code" in value:
        message = _text(value.get("text"))
    if not message and code not in (None, 0, 200):
        message = _text(value.get("msg"))
    return Envelope(
        message=message,
        type=_text(value.get("type")),
        code=_FASTCHAT_CODES.get(code, "") if type(code) is int else _text(code),
        param=_text(value.get("param")),
        status=number,
        raw=raw,
    )


def _number(code: int) -> int:
    if code > 9999:
        return _FASTCHAT.get(code, code // 100)
    return code if 400 <= code <= 599 else 0


def _fastapi(problems: list[Any], raw: str) -> Envelope:
    """FastAPI's validation list; its `input` echoes the prompt and is left out."""
    said: list[str] = []
    param = ""
    for problem in problems[:5]:
        if isinstance(problem, dict):
            place = problem.get("loc")
            where = ".".join(str(step) for step in place if step != "body") if isinstance(place, list) else ""
            said.append(f"{where}: {_text(problem.get('msg'))}".removeprefix(": "))
            param = param or where
    return Envelope(message="; ".join(said), param=param, raw=raw)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def failure(status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
    """The error that a non-2xx response stands for.

    Args:
        status: its HTTP status.
        headers: with lower-case names; `retry-after` and `retry-after-ms` are read.
        body: its body, perhaps cut short.
    """
    said = envelope(body)
    named = said.status if said.status and status in (400, 500) and '"object":"error"' in said.raw.replace(" ", "") else status
    return verdict(named, said, retry_after_ms(headers))


def stream_failure(body: bytes, *, begun: bool) -> BackendError:
    """The error that an error event (or an error body under 200) stands for.

    Args:
        body: the event's JSON.
        begun: whether content came before it; then nothing can be the request's fault any more.
    """
    return told(envelope(body), begun=begun)


def told(said: Envelope, *, begun: bool) -> BackendError:
    """The error that an envelope in a stream stands for; `begun` as in `stream_failure`."""
    if said.type in _INCOMPLETE:
        return UpstreamTruncated("The backend's answer stopped before its end.", detail=said.raw)
    status = said.status or _BY_NAME.get(said.code.lower()) or _BY_NAME.get(said.type.lower()) or 500
    error = verdict(status, said, None)
    if begun and isinstance(error, UpstreamRejected) and error.code != "context_length_exceeded":
        return _unavailable(said)
    return error


def verdict(status: int, said: Envelope, retry_ms: int | None) -> BackendError:
    """The error that a status and an envelope stand for together.

    A 4xx about the request keeps its status; 422 is FastAPI's and TGI's word for what OpenAI calls a 400.
    """
    if status in _WRONG_CREDENTIALS:
        return UpstreamRefused("The backend refused the gateway's credentials.", detail=said.told)
    if status in (400, 413, 422, 500) and (said.code == "context_length_exceeded" or _too_long(said)):
        message = public(said.message) or "The request exceeds the model's context."
        param = said.param if said.param in _TOO_LONG else None
        return UpstreamRejected(message, param=param, code="context_length_exceeded", detail=said.told)
    if status == 404 and (said.code == "model_not_found" or _MODEL.search(said.message[:_MAX_DETAIL])):
        return UpstreamRejected(
            "The backend does not have this model.", param="model", code="model_not_found", detail=said.told, status=404
        )
    if status in (429, 503, 529):
        if _LOADING.search(said.message[:_MAX_DETAIL]):
            return UpstreamOverloaded("The model is loading.", code="model_loading", retry_after_ms=retry_ms, detail=said.told)
        return UpstreamOverloaded("The backend is overloaded.", retry_after_ms=retry_ms, detail=said.told)
    if status in (408, 504):
        return UpstreamTimeout("The backend gave up waiting.", detail=said.told)
    if status == 404 or status in _OURS or not 400 <= status < 500:
        return _unavailable(said)
    message = public(said.message) or "The backend rejected the request."
    return UpstreamRejected(
        message, param=_name(said.param), code=_name(said.code), detail=said.told, status=400 if status == 422 else status
    )


def _unavailable(said: Envelope) -> BackendError:
    return UpstreamUnavailable(public(said.message) or "The backend failed.", detail=said.told)


def _too_long(said: Envelope) -> bool:
    return said.type == "exceed_context_size_error" or bool(_CONTEXT.search(said.message[:_MAX_DETAIL]))


def _name(value: str) -> str | None:
    value = value.removeprefix("body.")
    return value if _NAME.fullmatch(value) else None


def retry_after_ms(headers: Mapping[str, str]) -> int | None:
    """How long to wait, from `retry-after-ms` or `retry-after` in seconds. A date, or more than a day, says nothing."""
    for name, factor in (("retry-after-ms", 1), ("retry-after", 1000)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(?:\.\d{1,6})?", text) and (wait := round(float(text) * factor)) <= _MAX_RETRY_AFTER_MS:
            return wait
    return None


def event(error: BackendError) -> Failure:
    """The in-stream form of an error."""
    return Failure(
        cast("FailureKind", error.kind),
        error.message,
        code=error.code,
        param=error.param,
        retry_after_ms=error.retry_after_ms,
        detail=error.detail,
    )


def protocol(why: str, data: bytes = b"") -> Failure:
    """The backend spoke something that is not its protocol; `why` and the data's size go to the log only."""
    detail = f"{why}: {len(data)} bytes" if data else why
    return event(UpstreamProtocol("The backend's answer could not be understood.", detail=detail))


def truncated(why: str) -> Failure:
    """The answer stopped before its terminator."""
    return event(UpstreamTruncated("The backend's answer stopped before its end.", detail=why))
