"""Where a model name leads: deployments in tiers. Pure data, compiled from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from backends.core.capabilities import Capabilities, ParamsRule
from backends.core.request import Sampling
from gateway.domain.principal import LimitSpec

Policy = Literal["weighted", "round_robin", "least_busy"]


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. `idle_s` is between two events, `total_s` from the attempt's start to its last event."""

    connect_s: float = 5.0
    first_event_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 1800.0


class Price(msgspec.Struct, frozen=True):
    """Pico-USD per token (0.0375 $ per million tokens = 37 500)."""

    input: int = 0
    cached_input: int = 0
    output: int = 0


class Deployment(msgspec.Struct, frozen=True):
    """One place that serves an upstream model: a remote server (`dialect`, `base_url`) or a local `engine`.

    `credential` is a resolved secret; `__repr__` never shows it. `adds` and `lacks` correct the dialect's declared
    capabilities. `later_prices`: (µs UTC from which it holds, price), by instant; before the first `price` holds.
    `max_in_flight`: None = unbounded. `keepalive_s`: how long an idle upstream connection is kept.
    `tools`, `thinking`: the family in whose ways the model's text is read for tool calls and thoughts, "" = not at all.
    `template_eos`: the text that `eos_token` stands for in its chat template; `template_stops`: strings that end an answer
    under it. `options`: what the dialect wants to know of this server beyond its quirks. `tokenizer`: the path of its
    model's tokenizer.json, "" = none is known. `repair`: JSON forms that it cannot be held to are checked, and asked twice.
    """

    id: str
    model: str
    dialect: str = ""
    quirks: str = ""
    base_url: str = ""
    engine: str = ""
    credential: str = msgspec.field(default="")
    adds: Capabilities = frozenset()
    lacks: Capabilities = frozenset()
    params: ParamsRule = "reject"
    max_in_flight: int | None = None
    timeouts: Timeouts = Timeouts()
    price: Price = Price()
    later_prices: tuple[tuple[int, Price], ...] = ()
    keepalive_s: float = 4.0
    template: str = ""
    template_eos: str = ""
    template_stops: tuple[str, ...] = ()
    repair: bool = False
    verify_tls: bool = True
    early_keepalive_s: float | None = None
    options: Mapping[str, object] = {}
    tools: str = ""
    thinking: str = ""
    tokenizer: str = ""

    def __repr__(self) -> str:
        return f"Deployment({self.id!r})"


class Route(msgspec.Struct, frozen=True):
    """What a model name resolves to. Tiers are tried in order; inside a tier the policy chooses.

    `context` 0 = unknown. `weights` by deployment id (1 where absent). `limits` hold for the model, whoever asks.
    `tokenizer` is the path of a tokenizer.json ("" = prompts are estimated), `chat_template` a template's jinja source.
    `prices` are the database's, by deployment id: (µs UTC from which it holds, price), by instant.
    """

    name: str
    tiers: tuple[tuple[Deployment, ...], ...]
    policy: Policy = "least_busy"
    weights: dict[str, int] = {}
    context: int = 0
    default_output_tokens: int = 1024
    defaults: Sampling = Sampling()
    created_s: int = 0
    owned_by: str = "switchyard"
    limits: tuple[LimitSpec, ...] = ()
    tokenizer: str = ""
    chat_template: str = ""
    prices: Mapping[str, tuple[tuple[int, Price], ...]] = {}
