"""A configuration of llama-swap (its config.example.yaml of 2026) as ours. Pure.

A model whose command is llama.cpp's own server becomes a local engine, loaded with its first request as theirs is; any
other becomes a remote deployment at its `proxy` address, which somebody else must start.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from backends.templates.families import FAMILIES
from gateway.config.importing.result import Imported, NotImportable, engine_name, mapping, public_name, read_yaml

_MACRO = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
#: llama-server's options that say what ours say, by every spelling (its --help, llama.cpp of 2026).
_ENGINE: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("-m", "--model"), ("model", str)),
    **dict.fromkeys(("-c", "--ctx-size"), ("context", int)),
    **dict.fromkeys(("-np", "--parallel"), ("slots", int)),
    **dict.fromkeys(("-t", "--threads"), ("threads", int)),
    **dict.fromkeys(("-ub", "--ubatch-size"), ("batch", int)),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), ("gpu_layers", int)),
    "--pooling": ("pooling", str),
    "--chat-template-file": ("template", str),
    "--chat-template": ("family", str),
    "--lora": ("lora", str),
}
_SWITCHES: Mapping[str, tuple[str, object]] = {
    "--embedding": ("embedding", True),
    "--embeddings": ("embedding", True),
    "--rerank": ("rerank", True),
    "--reranking": ("rerank", True),
    "--no-mmap": ("mmap", False),
}
_SAMPLING: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("--temp", "--temperature"), ("temperature", float)),
    "--top-k": ("top_k", int),
    "--top-p": ("top_p", float),
    "--min-p": ("min_p", float),
    "--repeat-penalty": ("repetition_penalty", float),
    "--repeat-last-n": ("repeat_last_n", int),
    "--presence-penalty": ("presence_penalty", float),
    "--frequency-penalty": ("frequency_penalty", float),
    **dict.fromkeys(("-s", "--seed"), ("seed", int)),
}
#: What needs no equivalent: where it listens, how it looks, what is always so here.
_OURS = {"--host", "--port", "--jinja", "--no-webui", "--no-ui", "-a", "--alias", "--metrics", "--slots", "--no-warmup", "-cb"}
_MODEL = {"cmd", "proxy", "ttl", "aliases", "useModelName", "concurrencyLimit", "env", "macros", "unlisted", "checkEndpoint",
          "name", "description", "metadata"}  # fmt: skip
_TOP = {"models", "macros", "globalTTL", "healthCheckTimeout", "logLevel", "startPort", "groups", "matrix", "apiKeys", "hooks"}


def import_llama_swap(data: bytes) -> Imported:
    """The configuration for theirs.

    Raises:
        NotImportable: it has no models.
    """
    theirs = read_yaml(data)
    models = theirs.get("models")
    if not isinstance(models, dict) or not models:
        raise NotImportable("it has no models")
    made = Imported()
    start = theirs.get("startPort", 5800)
    ports = iter(range(start if isinstance(start, int) else 5800, 1 << 17))
    for id, entry in models.items():
        _model(made, str(id), mapping(entry), theirs, ports)
    if theirs.get("groups") or theirs.get("matrix"):
        made.note("groups, matrix: which models fit together is told by server.engine_memory_mb and engines.<name>.memory_mb")
    else:
        made.note("theirs runs one model at a time: server.engine_memory_mb bounds what ours may load together")
    if theirs.get("apiKeys"):
        made.note("apiKeys: they are not copied; make keys with `switchyard keys new`, or declare their hashes")
    for hook in mapping(mapping(theirs.get("hooks")).get("on_startup")).get("preload") or ():
        for engine in made.tree["models"].get(public_name(str(hook)), {}).get("tiers", [[]])[0]:
            made.tree["engines"].get(engine, {}).pop("load", None)
    made.lacks("the file", {str(key) for key in theirs} - _TOP)
    return made


def _model(made: Imported, id: str, entry: Mapping[str, Any], theirs: Mapping[str, Any], ports: Iterator[int]) -> None:
    where = f"models.{id}"
    macros = {**mapping(theirs.get("macros")), **mapping(entry.get("macros")), "MODEL_ID": id}
    if "${PORT}" in _expanded(f"{entry.get('cmd', '')} {entry.get('proxy', '${PORT}')}", macros):
        macros["PORT"] = next(ports)
    words = _words(made, where, str(entry.get("cmd", "")), macros)
    public = public_name(id, made.tree["models"])
    known: dict[str, Any] = {}
    if words and PurePath(words[0].replace("\\", "/")).name.removesuffix(".exe").startswith("llama-server"):
        deployment = _engine(made, where, id, words[1:], entry, theirs, known)
    else:
        deployment = _remote(made, where, public, entry, macros)
    if deployment is None:
        return
    aliases = [str(one.get("id", "")) if isinstance(one, dict) else str(one) for one in entry.get("aliases") or ()]
    known["tiers"] = [[deployment]]
    if aliases:
        known["aliases"] = [public_name(one) for one in aliases]
    made.tree["models"][public] = known
    made.lacks(where, {str(key) for key in entry} - _MODEL)


def _expanded(text: str, macros: Mapping[str, Any]) -> str:
    """With macros put in; a macro may hold others."""
    for _ in range(8):
        text = _MACRO.sub(lambda match: str(macros.get(match[1], match[0])), text)
    return text


def _words(made: Imported, where: str, command: str, macros: Mapping[str, Any]) -> list[str]:
    """The command's words, comments left out and macros put in; a macro may hold others."""
    text = "\n".join(line for line in command.splitlines() if not line.lstrip().startswith("#"))
    text = _expanded(text, macros)
    if "${" in text:
        made.note(f"{where}.cmd: a macro or variable in it is not known here: {_MACRO.findall(text)}")
    try:
        return shlex.split(text.replace("\\\n", " "))
    except ValueError:
        made.note(f"{where}.cmd: its quotes do not match")
        return []


def _remote(made: Imported, where: str, public: str, entry: Mapping[str, Any], macros: Mapping[str, Any]) -> str:
    proxy = str(entry.get("proxy") or "http://localhost:${PORT}")
    address = _MACRO.sub(lambda match: str(macros.get(match[1], match[0])), proxy).rstrip("/")
    id = public_name(public, made.tree["deployments"])
    made.tree["deployments"][id] = {
        "dialect": "openai_compatible",
        "quirks": "generic",
        "base_url": address if address.endswith("/v1") else address + "/v1",
        "model": str(entry.get("useModelName") or public),
        **_bound(entry),
    }
    made.note(f"{where}: its command is not llama-server; start it by other means, it is expected at {address}")
    return id


def _bound(entry: Mapping[str, Any]) -> dict[str, int]:
    most = entry.get("concurrencyLimit")
    return {"max_in_flight": most} if isinstance(most, int) and most > 0 else {}


def _engine(
    made: Imported,
    where: str,
    id: str,
    words: list[str],
    entry: Mapping[str, Any],
    theirs: Mapping[str, Any],
    known: dict[str, Any],
) -> str | None:
    found, defaults = _options(made, where, words)
    if "model" not in found:
        made.note(f"{where}: it names no model file (-m); download the weights and add it by hand")
        return None
    slots = max(1, min(256, found.pop("slots", 4)))
    engine: dict[str, Any] = {"kind": "llamacpp", "model": found.pop("model"), "slots": slots, "load": "lazy"}
    if context := found.pop("context", 0):
        engine["context"] = max(32, context // slots)  # theirs is of all slots together
    else:
        made.note(f"{where}: it states no context; ours is 4096 tokens a slot where theirs is what the model was trained with")
    ttl = entry.get("ttl", -1)
    ttl = theirs.get("globalTTL", 0) if not isinstance(ttl, int) or ttl < 0 else ttl
    if isinstance(ttl, int) and ttl > 0:
        engine["idle_unload_s"] = ttl
    if found.pop("rerank", False) or found.get("pooling") == "rank":  # theirs is an embedder whose pooling is `rank`
        found = {name: value for name, value in found.items() if name not in ("embedding", "pooling")} | {"rerank": True}
    options = {name: found.pop(name) for name in ("mmap", "pooling") if name in found}
    family = found.pop("family", "")
    if family in FAMILIES:
        found["template"] = f"builtin:{family}"
    elif family:
        made.note(f"{where}: its chat template {family!r} has no equivalent; the model's own is used")
    if lora := found.pop("lora", ""):
        engine["lora"] = {PurePath(lora).stem: lora}
    engine |= found | ({"options": options} if options else {})
    environment = dict(str(one).partition("=")[::2] for one in entry.get("env") or ())
    if environment:
        engine["environment"] = environment
    name = engine_name(id, made.tree["engines"])
    made.tree["engines"][name] = engine
    model = next(iter(engine.get("lora", {})), public_name(id))
    made.tree["deployments"][name] = {"engine": name, "model": model, **_bound(entry)}
    if defaults:
        known["defaults"] = defaults
    return name


def _options(made: Imported, where: str, words: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the command line says of the engine, and of sampling."""
    found: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    left = list(words)
    while left:
        option, equals, joined = left.pop(0).partition("=")
        if option in _SWITCHES:
            name, value = _SWITCHES[option]
            found[name] = value
            continue
        values = [joined] if equals else []
        while not equals and left and not re.match(r"--?[A-Za-z]", left[0]):
            values.append(left.pop(0))
        table = _ENGINE if option in _ENGINE else _SAMPLING
        if option in table:
            name, kind = table[option]
            try:
                (defaults if table is _SAMPLING else found)[name] = kind(values[0])
            except (ValueError, IndexError):
                made.note(f"{where}: {option} {' '.join(values)}: not understood, and left out")
        elif option not in _OURS:
            made.note(f"{where}: {' '.join([option, *values])}: has no equivalent and is left out")
    return found, defaults
