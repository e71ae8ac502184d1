"""A configuration of LiteLLM's proxy (`model_list`, `router_settings` …, its docs of 2026) as ours. Pure.

A secret that stands in their file is never written into ours: a reference to a variable takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from gateway.config.importing.result import Imported, NotImportable, mapping, public_name, read_yaml, whole

#: Their provider to our dialect, quirks and, where the provider is one place, its address.
_PROVIDERS: Mapping[str, tuple[str, str, str]] = {
    "openai": ("openai_compatible", "openai", "https://api.openai.com/v1"),
    "text-completion-openai": ("openai_compatible", "openai", "https://api.openai.com/v1"),
    "custom_openai": ("openai_compatible", "generic", ""),
    "openai_like": ("openai_compatible", "generic", ""),
    "hosted_vllm": ("openai_compatible", "vllm", ""),
    "vllm": ("openai_compatible", "vllm", ""),
    "llamafile": ("openai_compatible", "llamacpp", ""),
    "lm_studio": ("openai_compatible", "generic", ""),
    "ollama": ("ollama", "", "http://localhost:11434"),
    "ollama_chat": ("ollama", "", "http://localhost:11434"),
    "anthropic": ("anthropic", "", "https://api.anthropic.com"),
    "triton": ("triton", "", ""),
    "groq": ("openai_compatible", "generic", "https://api.groq.com/openai/v1"),
    "mistral": ("openai_compatible", "generic", "https://api.mistral.ai/v1"),
    "deepseek": ("openai_compatible", "generic", "https://api.deepseek.com/v1"),
    "openrouter": ("openai_compatible", "generic", "https://openrouter.ai/api/v1"),
    "together_ai": ("openai_compatible", "generic", "https://api.together.xyz/v1"),
    "xai": ("openai_compatible", "generic", "https://api.x.ai/v1"),
}
_STRATEGIES = {"simple-shuffle": "weighted", "least-busy": "least_busy"}
_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
_PARAMS = {
    "model", "api_base", "base_url", "api_key", "timeout", "stream_timeout", "max_parallel_requests", "weight", "drop_params",
    "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", *_SAMPLING,
}  # fmt: skip
_ROUTER = {"routing_strategy", "fallbacks", "model_group_alias"}
_VARIABLE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")


def import_litellm(data: bytes) -> Imported:
    """The configuration for theirs.

    Raises:
        NotImportable: there is no model_list.
    """
    theirs = read_yaml(data)
    entries = theirs.get("model_list")
    if not isinstance(entries, list):
        raise NotImportable("it has no model_list")
    made = Imported()
    settings, router = mapping(theirs.get("litellm_settings")), mapping(theirs.get("router_settings"))
    policy = _STRATEGIES.get(str(router.get("routing_strategy", "simple-shuffle")), "")
    if not policy:
        made.note(f"router_settings.routing_strategy: {router['routing_strategy']!r} has no equivalent; least_busy is used")
    for number, entry in enumerate(entries):
        _entry(made, f"model_list[{number}]", mapping(entry), policy or "least_busy", drop=bool(settings.get("drop_params")))
    _fallbacks(made, [*_pairs(router.get("fallbacks")), *_pairs(settings.get("fallbacks"))])
    for alias, name in mapping(router.get("model_group_alias")).items():
        _alias(made, str(alias), name)
    made.lacks("router_settings", {str(key) for key in router} - _ROUTER)
    made.lacks("litellm_settings", {str(key) for key in settings} - {"drop_params", "fallbacks"})
    if mapping(theirs.get("general_settings")):
        made.note("general_settings: keys, teams and budgets are made anew with `switchyard keys` and `switchyard teams`")
    read = {"model_list", "litellm_settings", "router_settings", "general_settings"}
    made.lacks("the file", {str(key) for key in theirs} - read)
    return made


def _entry(made: Imported, where: str, entry: Mapping[str, Any], policy: str, *, drop: bool) -> None:
    params = mapping(entry.get("litellm_params"))
    if not entry.get("model_name") or "*" in f"{entry.get('model_name')}{params.get('model')}":
        what = "names with * (each of a provider's models)" if entry.get("model_name") else "entries without model_name"
        made.note(f"{where}: {what} have no equivalent; it is left out")
        return
    name = public_name(str(entry.get("model_name", "")))
    provider, slash, model = str(params.get("model", "")).partition("/")
    if not slash:
        provider, model = "openai", provider
    if provider not in _PROVIDERS:
        made.note(f"{where}: the provider {provider!r} has no equivalent; {name!r} is left out")
        return
    dialect, quirks, address = _PROVIDERS[provider]
    address = str(params.get("api_base") or params.get("base_url") or address)
    if not address or not model or _VARIABLE.search(address):
        made.note(f"{where}: write its address by hand; without one {name!r} is left out")
        return
    id = public_name(f"{name}-{provider}" if name in made.tree["models"] else name, made.tree["deployments"])
    one: dict[str, Any] = {"dialect": dialect, **({"quirks": quirks} if quirks else {}), "base_url": address, "model": model}
    if key := params.get("api_key"):
        one["credential"] = _credential(made, where, id, str(key))
    if drop or params.get("drop_params"):
        one["params"] = "drop"
    if (most := whole(params.get("max_parallel_requests"), 1, 1_000_000)) is not None:
        one["max_in_flight"] = most
    if timeouts := _timeouts(params):
        one["timeouts"] = timeouts
    if price := _price({**params, **mapping(entry.get("model_info"))}):
        one["price"] = price
    if mapping(entry.get("model_info")).get("mode") == "rerank":
        one["capabilities"] = {"adds": ["rerank"]}
    made.tree["deployments"][id] = one
    known = made.tree["models"].setdefault(name, {"policy": policy, "tiers": [[]]})
    known["tiers"][0].append(id)
    if (weight := whole(params.get("weight"), 1, 1_000_000)) is not None and policy == "weighted":
        known.setdefault("weights", {})[id] = weight
    if sampling := {key: params[key] for key in _SAMPLING if isinstance(params.get(key), int | float)}:
        known.setdefault("defaults", {}).update(sampling)
    for key in sorted({"rpm", "tpm"} & params.keys()):
        made.note(f"{where}: {key} limits one deployment; ours limit models, keys and teams: models.{name}.limits")
    made.lacks(where, {str(key) for key in params} - _PARAMS - {"rpm", "tpm"})


def _credential(made: Imported, where: str, id: str, key: str) -> str:
    if found := _VARIABLE.fullmatch(key):
        return f"env:{found[1]}"
    variable = re.sub(r"[^A-Z0-9]+", "_", id.upper()).strip("_") + "_KEY"
    variable = variable if variable[0].isalpha() else f"KEY_{variable}"
    made.note(f"{where}: its key stands in their file; put it into the variable {variable}")
    return f"env:{variable}"


def _timeouts(params: Mapping[str, Any]) -> dict[str, float]:
    pairs = (("total_s", params.get("timeout")), ("first_event_s", params.get("stream_timeout")))
    return {ours: float(value) for ours, value in pairs if isinstance(value, int | float) and 0 < value <= 86_400}


def _price(params: Mapping[str, Any]) -> dict[str, float]:
    """USD per million tokens, of theirs per token."""
    pairs = (
        ("input", "input_cost_per_token"),
        ("cached_input", "cache_read_input_token_cost"),
        ("output", "output_cost_per_token"),
    )
    found: dict[str, float] = {}
    for ours, theirs in pairs:
        try:
            cost = Decimal(str(params[theirs])) * 1_000_000
        except (KeyError, InvalidOperation):
            continue
        if cost.is_finite() and 0 <= cost <= 1_000_000:
            found[ours] = float(round(cost, 6))
    return found


def _pairs(fallbacks: object) -> list[tuple[str, list[str]]]:
    entries = fallbacks if isinstance(fallbacks, list) else []
    return [
        (str(name), [str(one) for one in others])
        for entry in entries
        for name, others in mapping(entry).items()
        if isinstance(others, list)
    ]


def _fallbacks(made: Imported, pairs: list[tuple[str, list[str]]]) -> None:
    own = {name: model["tiers"][0] for name, model in made.tree["models"].items()}
    for name, others in pairs:
        for other in others:
            if name in own and other in own:
                if own[other] not in made.tree["models"][name]["tiers"]:
                    made.tree["models"][name]["tiers"].append(list(own[other]))
            else:
                made.note(f"fallbacks: {name!r} to {other!r}: one of them is not in the result")


def _alias(made: Imported, alias: str, target: object) -> None:
    name = str(mapping(target).get("model", target) if isinstance(target, dict) else target)
    if name in made.tree["models"] and alias not in made.tree["models"]:
        made.tree["models"][name].setdefault("aliases", []).append(public_name(alias))
    else:
        made.note(f"router_settings.model_group_alias: {alias!r} is left out")
