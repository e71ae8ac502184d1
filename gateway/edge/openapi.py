"""The OpenAPI document of the whole surface: FastAPI's own part and the generation paths beside it.

Request bodies are described from the very structs that parse them, so the two cannot disagree.
"""

from __future__ import annotations

import html
from typing import Any

import msgspec

from gateway.protocols.openai_errors import ErrorResponse
from gateway.protocols.openai_wire import IGNORED, ChatBody, CompletionBody, EmbeddingBody
from gateway.protocols.rerank import RerankBody, ScoreBody

_REF = "#/components/schemas/{name}"
_GENERATION = (
    ("/v1/chat/completions", ChatBody, "Chat completion", "chat.completion, or a stream of chat.completion.chunk events"),
    ("/v1/completions", CompletionBody, "Plain completion", "text_completion, whole or as a stream of events"),
    ("/v1/embeddings", EmbeddingBody, "Embeddings", "a list of embeddings, as floats or base64 of float32 little-endian"),
    ("/v1/rerank", RerankBody, "Documents by relevance", "results, the best document first"),
    ("/v1/score", ScoreBody, "Scores of texts", "a score for each text, in their order"),
)
_STREAMED = frozenset({ChatBody.__name__, CompletionBody.__name__})
_STATUSES = {
    "400": "The request is wrong; `param` names the parameter.",
    "401": "The key is missing, wrong or expired.",
    "404": "No such model, or the key may not use it.",
    "408": "The body came too slowly.",
    "413": "The body is larger than the configured size.",
    "429": "A limit of the key or its team; Retry-After says when to come back.",
    "502": "The deployments failed.",
    "503": "No deployment can take it now.",
    "504": "The deployments took too long.",
}


def document(own: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document with the generation paths and their schemas. Changes and returns the argument."""
    _, schemas = msgspec.json.schema_components((*(body for _, body, _, _ in _GENERATION), ErrorResponse), ref_template=_REF)
    components = own.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, body, summary, answer in _GENERATION:
        own["paths"][path] = {"post": _operation(body.__name__, summary, answer)}
    for path in own["paths"]:
        if path.startswith(("/v1/", "/admin/v1/")):
            for operation in own["paths"][path].values():
                operation["security"] = [{"key": []}]
    return own


def _operation(body: str, summary: str, answer: str) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if body in _STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    failures = {
        status: {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="ErrorResponse")}}},
        }
        for status, text in _STATUSES.items()
    }
    return {
        "tags": ["generation"],
        "summary": summary,
        "description": f"Accepted and left out, because they change no output here: {', '.join(IGNORED)}.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name=body)}}},
        },
        "responses": {"200": {"description": answer, "content": content}, **failures},
    }


def docs_page(own: dict[str, Any]) -> str:
    """A page that lists every operation and the fields of its body; plain HTML, nothing is loaded from elsewhere."""
    schemas = own["components"]["schemas"]
    rows: list[str] = []
    for path, operations in sorted(own["paths"].items()):
        for method, operation in operations.items():
            text = html.escape(operation.get("description") or operation.get("summary") or "")
            rows.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{text}</p>{_fields(operation, schemas)}")
    return (
        "<!doctype html><meta charset=utf-8><title>Switchyard API</title>"
        "<style>body{font:15px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}td{padding:0 1em 0 0}</style>"
        "<h1>Switchyard API</h1><p>The machine-readable document is <a href=/openapi.json>/openapi.json</a>.</p>"
        + "".join(rows)
    )


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    body = operation.get("requestBody")
    if body is None:
        return ""
    schema = schemas[body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    required = set(schema.get("required", ()))
    cells = (
        f"<tr><td><code>{html.escape(name)}</code><td>{'required' if name in required else ''}<td>{html.escape(_bounds(field))}"
        for name, field in schema["properties"].items()
    )
    return "<table>" + "".join(cells) + "</table>"


def _bounds(field: dict[str, Any]) -> str:
    kinds = field.get("anyOf", [field])
    return " | ".join(_kind(kind) for kind in kinds if kind.get("type") != "null")


def _kind(kind: dict[str, Any]) -> str:
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    name = str(kind.get("type") or kind.get("$ref", "any").rpartition("/")[2])
    limits = [f"{word} {kind[key]}" for key, word in _LIMITS.items() if key in kind]
    return f"{name} ({', '.join(limits)})" if limits else name


_LIMITS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "minLength": "length from",
    "maxLength": "length to",
    "minItems": "items from",
    "maxItems": "items to",
    "maxProperties": "entries to",
}
