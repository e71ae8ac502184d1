"""What a request may be: items 18 to 20 and 23 to 25 of the attack list."""

from __future__ import annotations

import gzip
import json
import time
import zlib

import pytest

from backends.core.errors import GatewayError
from gateway.protocols.registry import PATHS
from tests.security.house import CAPPED, MAX_BODY, PLAIN, House, code_of, head, parsed, resident

pytestmark = pytest.mark.redis
CHAT = PATHS["/v1/chat/completions"]
GOOD = '"model":"words-3","messages":[{"role":"user","content":"x"}]'


# 18. JSON.

HOSTILE = {
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "deep in a message": b'{"model":"m","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep in what is skipped": b"{" + GOOD.encode() + b',"metadata":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "many keys": b"{" + b",".join(b'"k%d":1' % n for n in range(80_000)) + b"}",
    "many values": b'{"model":"m","messages":[' + b"1," * 400_000 + b"1]}",
    "model twice": b'{"model":"words-3","model":"h-content","messages":[]}',
    "NaN": b"{" + GOOD.encode() + b',"temperature":NaN}',
    "Infinity": b"{" + GOOD.encode() + b',"temperature":Infinity}',
    "1e400": b"{" + GOOD.encode() + b',"temperature":1e400}',
    "a long number": b"{" + GOOD.encode() + b',"seed":' + b"9" * 100_000 + b"}",
    "a long fraction": b"{" + GOOD.encode() + b',"temperature":0.' + b"9" * 100_000 + b"e99999999}",
    "a lone surrogate": b'{"model":"words-3","messages":[{"role":"user","content":"\\ud800"}]}',
    "a lone surrogate in a name": b'{"model":"words-3","messages":[],"\\udfff":1}',
    "UTF-16": ("{" + GOOD + "}").encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{" + GOOD.encode() + b"}",
    "bad UTF-8": b'{"model":"words-3","messages":[{"role":"user","content":"\xc3\x28"}]}',
    "NUL": b'{"model":"words-3\x00","messages":[]}',
    "two values": b"{" + GOOD.encode() + b"}{}",
    "nothing": b"",
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "comments": b"{/*x*/" + GOOD.encode() + b"}",
    "single quotes": b"{'model':'words-3'}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_a_400_and_takes_no_time(house: House, name: str) -> None:
    body = HOSTILE[name]
    assert house.chat(body)[0] == 400
    times = []
    for _ in range(3):
        began = time.thread_time()
        with pytest.raises(GatewayError):
            CHAT.parse(body)
        times.append(time.thread_time() - began)
    assert min(times) < 0.05, "the event loop would stand still"


def test_a_body_of_the_largest_size_is_read_in_time(house: House) -> None:
    text = "a" * (MAX_BODY - 200)
    body = json.dumps({"model": "words-3", "messages": [{"role": "user", "content": text}]}).encode()
    began = time.thread_time()
    CHAT.parse(body)
    assert time.thread_time() - began < 0.05
    assert house.chat(body)[0] == 200


def test_router_and_upstream_see_the_same_model(house: House) -> None:
    before = len(house.upstream.seen)
    body = b'{"model":"words-3","messages":[{"role":"user","content":"x","content":"y"}]}'
    assert house.chat(body)[0] in (200, 400)
    assert all(seen.body["messages"] == [{"role": "user", "content": "y"}] for seen in house.upstream.seen[before:])


# 19. Compressed bodies.


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x-gzip", "GZIP", "compress", "foo"]
)
def test_no_compressed_body_is_unpacked(house: House, encoding: str) -> None:
    bomb = gzip.compress(b" " * 50_000_000) if "gzip" in encoding.lower() else zlib.compress(b" " * 50_000_000)
    before = resident(house)
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        assert house.request("POST", path, PLAIN, bomb, Content_Encoding=encoding)[0] == 415
    assert resident(house) - before < 30 << 20


def test_a_compressed_admin_body_is_not_unpacked(house: House) -> None:
    assert house.request("POST", "/admin/v1/teams", PLAIN, gzip.compress(b"{}"), Content_Encoding="gzip")[0] in (400, 403, 415)


# 20. Sizes.


def test_bodies_over_the_bound_are_refused_before_they_are_read(house: House) -> None:
    before = resident(house)
    assert parsed(house.raw(head("Content-Length: 67108864\r\n") + b"{"))[0] == 413
    assert (
        parsed(
            house.raw(
                head("Transfer-Encoding: chunked\r\n") + b"100000\r\n" + b" " * (1 << 20) + b"\r\n10\r\n" + b" " * 16 + b"\r\n"
            )
        )[0]
        == 413
    )
    assert parsed(house.raw(head("Content-Length: " + "9" * 30 + "\r\n") + b"{}"))[0] in (400, 413)
    assert parsed(house.raw(head("Content-Length: 100\r\n") + b"{}", half_close=True))[0] in (0, 400)
    assert resident(house) - before < 30 << 20


def test_heads_over_the_bound_are_refused(house: House) -> None:
    assert parsed(house.raw(head(extra="X-Big: " + "a" * 65_536 + "\r\n")))[0] == 431
    assert parsed(house.raw(head(extra="".join(f"X-{n}: 1\r\n" for n in range(1000)))))[0] == 431
    assert parsed(house.raw(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"))[0] in (400, 431)


# 23. What would hurt an engine.

SCHEMA_DEEP = {"type": "object"}
for _ in range(64):
    SCHEMA_DEEP = {"type": "object", "properties": {"a": SCHEMA_DEEP}}


@pytest.mark.parametrize(
    "body",
    [
        {"n_discard": -1},
        {"n_keep": -1},
        {"id_slot": 0},
        {"cache_prompt": False},
        {"chat_template": "{{ x }}"},
        {"chat_template_kwargs": {"tokenize": True}},
        {"prompt_embeds": "x"},
        {"mm_processor_kwargs": {"a": 1}},
        {"lora": "/etc/passwd"},
        {"lora_request": {"path": "/etc"}},
        {"guided_decoding_backend": "x"},
        {"kv_transfer_params": {}},
        {"echo_prompt_tokens": True},
    ],
)
def test_fields_of_engines_never_reach_a_backend(house: House, body: dict[str, object]) -> None:
    before = len(house.upstream.seen)
    assert house.chat(body)[0] in (200, 400)
    for seen in house.upstream.seen[before:]:
        assert not seen.body.keys() & body.keys()


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1_000_000},
        {"n": 0},
        {"n": -1},
        {"max_tokens": 2**63},
        {"max_tokens": -1},
        {"max_tokens": 10**9},
        {"max_tokens": 0},
        {"max_completion_tokens": 2**63},
        {"temperature": -1},
        {"temperature": 1e9},
        {"top_p": 7},
        {"top_logprobs": 10_000},
        {"stop": ["x" * 10_000] * 10_000},
        {"stop": ["a"] * 100},
        {"logit_bias": {str(n): 1 for n in range(50_000)}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": 1e9}},
        {"frequency_penalty": 99},
        {"seed": 2**80},
        {"best_of": 100},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA_DEEP}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://evil.example/s"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x" * 1000, "schema": {}}}},
        {"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(1000)]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA_DEEP}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": ["x" * 100] * 10_000}}}]},
        {"messages": [{"role": "user", "content": "x"}] * 5000},
        {"messages": []},
        {"messages": [{"role": "root", "content": "x"}]},
    ],
)
def test_amounts_beyond_reason_are_refused_before_any_backend(house: House, body: dict[str, object]) -> None:
    before = len(house.upstream.seen)
    answer = house.chat(body)
    assert answer[0] in (400, 413), answer[2][:200]
    assert len(house.upstream.seen) == before


@pytest.mark.parametrize(
    "schema", [{"type": "string", "pattern": "(a+)+$"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}]
)
def test_schemas_are_passed_on_and_never_run_here(house: House, schema: dict[str, object]) -> None:
    """No regular expression and no reference of a client's is evaluated here: an engine's process does it, or no one."""
    body = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    began = time.thread_time()
    whole = json.dumps({"model": "words-3", "messages": [{"role": "user", "content": "a" * 5000 + "!"}], **body}).encode()
    CHAT.parse(whole)
    assert time.thread_time() - began < 0.05
    assert house.chat(whole)[0] in (200, 400)


# 24. Two caps are the larger.


def test_the_larger_cap_is_reserved(house: House) -> None:
    answer = house.chat({"max_tokens": 1, "max_completion_tokens": 1_000_000}, CAPPED)
    assert answer[0] in (400, 429), answer
    assert house.chat({"max_tokens": 1_000_000, "max_completion_tokens": 1}, CAPPED)[0] in (400, 429)
    before = len(house.upstream.seen)
    assert house.chat({"max_tokens": 5, "max_completion_tokens": 9}, CAPPED)[0] == 200
    (seen,) = house.upstream.seen[before:]
    assert {seen.body.get("max_tokens"), seen.body.get("max_completion_tokens")} <= {9, None}


# 25. A prompt that is hard to count.


@pytest.mark.parametrize(
    "text",
    ["a" * 900_000, " " * 900_000, "\u0301" * 300_000, "🏳️‍🌈" * 40_000, "\u202e" * 300_000],
    ids=["a", "blank", "marks", "flags", "rtl"],
)
def test_a_long_prompt_stalls_nobody(house: House, text: str) -> None:
    body = json.dumps({"model": "words-3", "messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()[
        : MAX_BODY + 9
    ]
    began = time.thread_time()
    CHAT.parse(body)
    assert time.thread_time() - began < 0.05
    assert house.chat(body, CAPPED)[0] in (400, 429, 413)  # 5,000 tokens are all it has


def test_an_error_names_the_code(house: House) -> None:
    assert code_of(house.chat(b"{")) == "invalid_json"
