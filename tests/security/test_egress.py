"""What leaves the gateway: items 13 to 17 of the attack list."""

from __future__ import annotations

import json

import pytest

from tests.gateway_process import ROOT
from tests.security.house import PLAIN, UPSTREAM_KEY, House

pytestmark = pytest.mark.redis
EVIL = "http://evil.example:6666/v1"


# 13. A request cannot choose its upstream.


@pytest.mark.parametrize(
    "body",
    [
        {"api_base": EVIL},
        {"base_url": EVIL},
        {"api_key": "sk-evil"},
        {"custom_llm_provider": "evil"},
        {"url": EVIL},
        {"extra_headers": {"x-evil": "1"}},
        {"extra_body": {"api_base": EVIL}},
        {"headers": {"authorization": "Bearer sk-evil"}},
        {"deployment": "h-content"},
        {"fallbacks": ["h-content"]},
        {"api_version": "x"},
        {"organization": EVIL},
        {"metadata": {"api_base": EVIL}},
        {"user": EVIL},
    ],
)
def test_no_field_of_the_body_reaches_the_wire_unasked(house: House, body: dict[str, object]) -> None:
    before = len(house.upstream.seen)
    status, _, _ = house.chat(body)
    assert status in (200, 400)
    for seen in house.upstream.seen[before:]:
        told = json.dumps(seen.body) + json.dumps(seen.headers)
        assert "evil" not in told or body.keys() <= {"metadata", "user"}
        assert "evil" not in json.dumps(seen.headers)
        assert seen.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert seen.body["model"] == "words-3"


@pytest.mark.parametrize(
    "model",
    [
        "openai/http://evil.example",
        EVIL,
        "evil@words-3",
        "words-3@http://evil.example",
        "openai/words-3",
        "words-3\x00",
        "words-3/",
    ],
)
def test_no_model_name_is_an_address(house: House, model: str) -> None:
    before = len(house.upstream.seen)
    assert house.chat({"model": model})[0] == 404
    assert len(house.upstream.seen) == before


def test_no_header_of_a_client_reaches_the_upstream(house: House) -> None:
    evil = {
        "x-portkey-custom-host": EVIL,
        "x-upstream": EVIL,
        "OpenAI-Organization": "evil",
        "OpenAI-Project": "evil",
        "Cookie": "evil=1",
        "X-Forwarded-For": "evil",
        "X-Forwarded-Host": "evil",
        "Forwarded": "for=evil",
        "User-Agent": "evil",
        "Referer": EVIL,
        "traceparent": "00-" + "e" * 32 + "-" + "e" * 16 + "-01",
        "Proxy-Authorization": "Basic evil",
        "TE": "trailers",
    }
    before = len(house.upstream.seen)
    assert house.chat({}, PLAIN, **evil)[0] == 200
    (seen,) = house.upstream.seen[before:]
    assert "evil" not in json.dumps(seen.headers) and "eeee" not in json.dumps(seen.headers)
    assert PLAIN not in json.dumps(seen.headers) + json.dumps(seen.body)
    assert set(seen.headers) - {""} <= {
        "host",
        "accept-encoding",
        "user-agent",
        "authorization",
        "content-type",
        "content-length",
        "accept",
    }


# 14. Nothing is fetched.


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/x.png",
        "http://0x7f.1/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://allowed\\@evil/x",
        "http://a#@b/x",
        "http://user:pass@evil/x",
        "http://exämple.com/x",
        "http://evil./x",
        "file:///etc/passwd",
        "gopher://evil:70/_x",
        "https://example.com/x.png",
        "ftp://evil/x",
        "//evil/x",
        "",
        "DATA:text/html,x",
        "data:text/html;base64,PHNjcmlwdD4=",
        " http://evil/x",
        "\thttp://evil/x",
        "jar:http://evil!/x",
        "blob:http://evil/x",
    ],
)
def test_an_image_that_is_an_address_is_refused(house: House, url: str) -> None:
    before = len(house.upstream.seen)
    part = {"type": "image_url", "image_url": {"url": url}}
    status, _, _ = house.chat({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]})
    assert status == 400
    assert len(house.upstream.seen) == before


def test_an_image_for_a_model_without_eyes_is_refused(house: House) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,PHN2Zz4="}}
    assert house.chat({"messages": [{"role": "user", "content": [part]}]})[0] in (200, 400)


@pytest.mark.parametrize(
    "body",
    [
        {"modalities": ["audio"], "audio": {"voice": "x", "format": "wav"}},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": EVIL}}]}]},
        {"web_search_options": {}},
        {"tools": [{"type": "mcp", "server_url": EVIL}]},
    ],
)
def test_other_media_and_remote_tools_are_refused(house: House, body: dict[str, object]) -> None:
    before = len(house.upstream.seen)
    assert house.chat(body)[0] == 400
    assert len(house.upstream.seen) == before


# 15. A redirect is followed nowhere.


@pytest.mark.parametrize("stream", [True, False])
def test_a_redirect_is_an_error_and_is_not_followed(house: House, stream: bool) -> None:
    asked = len(house.liars.asked)
    status, headers, body = house.chat({"model": "l-redirect", "stream": stream})
    assert status == 502
    assert "location" not in headers
    assert b"http" not in body
    assert len(house.liars.asked) == asked + 1


# 16. Nothing of a client's is decoded as media: see docs/security.md. 17. The proxy of the environment: the fixture's end.


def test_no_library_that_decodes_media_or_fetches_is_imported_by_a_worker() -> None:
    import subprocess
    import sys

    script = "import sys, gateway.app, gateway.parts; print(sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert loaded.isdisjoint(
        {"PIL", "cv2", "imageio", "wave", "av", "requests", "aiohttp", "torch", "transformers", "llama_cpp"}
    )


def test_the_environments_proxy_is_configured_for_the_gateway_and_never_asked(house: House) -> None:
    assert house.chat({})[0] == 200
    assert house.proxy == []
