"""What the two generation endpoints parse alike: sampling, output cap, stream options, sizes."""

from __future__ import annotations

from operator import attrgetter

import msgspec

from backends.core.errors import BadRequest
from backends.core.request import Sampling
from gateway.protocols.contract import Options
from gateway.protocols.decoding import decoded_part
from gateway.protocols.openai_wire import MAX_SMALL_BYTES, GenerationBody, LogitBias

_logit_bias: msgspec.json.Decoder[dict[str, float]] = msgspec.json.Decoder(LogitBias)

#: Sampling parameters whose name and form are the same on both sides.
_SAME = (
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "min_p",
    "typical_p",
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "min_tokens",
    "ignore_eos",
)
_same = attrgetter(*_SAME)
_NOTHING_TOLD = (None,) * len(_SAME)
_LARGEST_TOKEN_ID = 2**31 - 1


def sampling(body: GenerationBody, cap: int | None) -> Sampling:
    """The sampling of a body; `cap` is its output cap. `top_k` -1 (vLLM's "off") becomes 0, which is off everywhere.

    Raises:
        BadRequest: names the parameter.
    """
    told = _same(body)
    values = (
        {name: value for name, value in zip(_SAME, told, strict=True) if value is not None} if told != _NOTHING_TOLD else {}
    )
    if cap is not None:
        values["max_tokens"] = cap
        if body.min_tokens is not None and body.min_tokens > cap:
            raise BadRequest("'min_tokens' is larger than the output cap.", param="min_tokens")
    if body.stop:
        stops = (body.stop,) if isinstance(body.stop, str) else body.stop
        values["stop"] = tuple(stop for stop in stops if stop)  # an empty one stops nothing
    if bias := decoded_part(_logit_bias, body.logit_bias, "logit_bias", MAX_SMALL_BYTES):
        values["logit_bias"] = tuple((_token_id(key), value) for key, value in bias.items())
    if body.top_k is not None:
        values["top_k"] = max(body.top_k, 0)
    repetition = body.repetition_penalty
    if body.repeat_penalty is not None:
        if repetition not in (None, body.repeat_penalty):
            raise BadRequest("'repeat_penalty' contradicts 'repetition_penalty'.", param="repeat_penalty")
        repetition = body.repeat_penalty
    if repetition is not None:
        values["repetition_penalty"] = repetition
    return Sampling(**values) if values else _NONE


_NONE = Sampling()


def output_cap(*stated: int | None) -> int | None:
    """The larger of the caps that a client stated under several names; None when it stated none."""
    caps = [cap for cap in stated if cap is not None]
    return max(caps) if caps else None


def options(body: GenerationBody, *, stated_cap: bool, echo: bool = False) -> Options:
    """What the client wants of the answer's form.

    Raises:
        BadRequest: `stream_options` without `stream`.
    """
    stream = bool(body.stream)
    if body.stream_options is not None and not stream:
        raise BadRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return Options(stream=stream, include_usage=include_usage, stated_cap=stated_cap, echo=echo)


def size(text: str) -> int:
    """UTF-8 bytes of a text."""
    return len(text) if text.isascii() else len(text.encode())


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10) or int(key) > _LARGEST_TOKEN_ID:
        raise BadRequest(f"Invalid key in 'logit_bias': {key[:32]!r} is no token id.", param="logit_bias")
    return int(key)
