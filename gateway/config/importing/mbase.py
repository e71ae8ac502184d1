"""A description of mbase_openai_server (mbase v0.1.0, docs of its example openai-server) as a configuration. Pure.

Its defaults are stated in the result where ours differ: 4 processors, 8 threads, a context of 2048 for each processor,
batches of 512, 80 layers on the GPU, and greedy sampling where no sampler is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from gateway.config.importing.result import Imported, NotImportable, engine_name, mapping, public_name, read_json, whole

#: Ours, theirs, their default, and our bounds.
_NUMBERS = (
    ("slots", "processor_count", 4, 1, 256),
    ("context", "context_length", 2048, 32, 2**24),
    ("threads", "thread_count", 8, 1, 1024),
    ("batch", "batch_length", 512, 32, 65_536),
    ("gpu_layers", "gpu_layers", 80, 0, 10_000),
)
_KNOWN = {"model_path", "batch_thread_count", "samplers", *(theirs for _, theirs, *_ in _NUMBERS)}
_SAMPLERS = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "mirostat_v2.tau": "mirostat_tau",
    "mirostat_v2.eta": "mirostat_eta",
    "repetition.penalty_n": "repeat_last_n",
    "repetition.penalty_repeat": "repetition_penalty",
}
#: What a sampler that is not in their chain does: nothing. Ours would have llama.cpp's defaults.
_NO_SAMPLER = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def import_mbase(data: bytes) -> Imported:
    """The configuration for a description.

    Raises:
        NotImportable: it is no description.
    """
    found = read_json(data)
    entries = found if isinstance(found, list) else [found]
    if not entries or not all(isinstance(entry, dict) and isinstance(entry.get("model_path"), str) for entry in entries):
        raise NotImportable("it is no array of objects that have a model_path")
    made = Imported()
    for number, entry in enumerate(entries):
        _entry(made, f"[{number}]", entry)
    made.note("host name, port and TLS keys are not in a description: server.listen, tls_cert_file, tls_key_file")
    made.note("an embedding model needs `embedding: true`; the description does not say which models are such")
    return made


def _entry(made: Imported, where: str, entry: Mapping[str, Any]) -> None:
    path = entry["model_path"]
    stem = PurePath(path.replace("\\", "/")).stem
    name = engine_name(stem, made.tree["engines"])
    public = public_name(stem, made.tree["models"])
    engine: dict[str, Any] = {"kind": "llamacpp", "model": path}
    for ours, theirs, default, least, most in _NUMBERS:
        stated = entry.get(theirs, default)
        value = whole(stated, least, most)
        if value is None:
            made.note(f"{where}.{theirs}: {stated!r} is not a number from {least} to {most}; their default {default} is used")
            value = default
        engine[ours] = value
    threads = entry.get("batch_thread_count", engine["threads"])
    if threads != engine["threads"]:
        made.note(f"{where}.batch_thread_count: {threads!r}: prompts are read by the {engine['threads']} threads of answers")
    made.lacks(where, entry.keys() - _KNOWN)
    made.tree["engines"][name] = engine
    made.tree["deployments"][name] = {"engine": name, "model": public}
    made.tree["models"][public] = {"tiers": [[name]], "defaults": _defaults(made, f"{where}.samplers", entry.get("samplers"))}


def _defaults(made: Imported, where: str, samplers: object) -> dict[str, Any]:
    stated = _flat(mapping(samplers))
    if not stated:
        return {"temperature": 0.0}
    made.lacks(where, stated.keys() - _SAMPLERS.keys())
    defaults: dict[str, Any] = {}
    for theirs, ours in _SAMPLERS.items():
        if theirs in stated:
            value = stated[theirs]
            if isinstance(value, int | float) and not isinstance(value, bool):
                defaults[ours] = int(value) if ours in ("top_k", "repeat_last_n") else float(value)
            else:
                made.note(f"{where}.{theirs}: {value!r} is no number and is left out")
    if {"mirostat_tau", "mirostat_eta"} & defaults.keys():
        defaults["mirostat"] = 2
    if "temperature" not in defaults and "mirostat" not in defaults:
        defaults["temperature"] = 1.0
    return _NO_SAMPLER | defaults


def _flat(samplers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested groups by dotted names; the docs spell one key `mirostat_v2_eta`."""
    flat: dict[str, Any] = {}
    for key, value in samplers.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            flat["mirostat_v2.eta" if key == "mirostat_v2_eta" else key] = value
    return flat
