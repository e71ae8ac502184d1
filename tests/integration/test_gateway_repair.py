"""`repair: true` through a whole gateway: a schema kept by a server that cannot be held to one, and both calls paid."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import GatewayProcess, declared_key

KEY = "sk-test-user-0123456789abcdef"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


class _Text(BaseHTTPRequestHandler):
    """A lightllm server that answers what its prompt's first word says: `mends` is right the second time."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
        again = "does not fit" in prompt
        text = '{"a": 1}' if "knows" in prompt or ("mends" in prompt and again) else "not JSON at all"
        told = {"generated_text": [text], "finish_reason": "stop", "prompt_tokens": 10, "count_output_tokens": 4}
        data = json.dumps(told).encode()
        if self.path.endswith("_stream"):
            token = {"id": 1, "text": text, "special": False, "count_output_tokens": 4, "prompt_tokens": 10}
            data = b"data:" + json.dumps({"token": token, "finished": True, "finish_reason": "stop"}).encode() + b"\n\n"
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Text)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_schema_is_kept_or_the_answer_is_an_error(url: str, tmp_path: Path) -> None:
    place = {"dialect": "lightllm", "base_url": url, "model": "m", "capabilities": {"lacks": ["response_format.json_schema"]}}
    tree = {
        "deployments": {"d": {**place, "repair": True}, "strict": place},
        "models": {"m": {"tiers": [["d"]]}, "strict": {"tiers": [["strict"]]}},
        "keys": {"declared": [declared_key("user", KEY)]},
    }
    with GatewayProcess(tmp_path, tree) as process:
        await asyncio.to_thread(process.start)
        async with httpx.AsyncClient(base_url=process.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as client:

            async def ask(word: str, model: str = "m", **more: object) -> httpx.Response:
                body = {"model": model, "messages": [{"role": "user", "content": word}], "response_format": FORM, **more}
                return await client.post("/v1/chat/completions", json=body)

            knows = (await ask("knows")).json()
            assert json.loads(knows["choices"][0]["message"]["content"]) == {"a": 1}
            assert knows["usage"]["total_tokens"] == 14
            mends = (await ask("mends")).json()
            assert json.loads(mends["choices"][0]["message"]["content"]) == {"a": 1}
            assert (mends["usage"]["prompt_tokens"], mends["usage"]["completion_tokens"]) == (20, 8)
            streamed = await ask("mends", stream=True)
            assert '{\\"a\\": 1}' in streamed.text and streamed.text.endswith("data: [DONE]\n\n")
            several = (await ask("mends", n=2)).json()
            assert [json.loads(one["message"]["content"]) for one in several["choices"]] == [{"a": 1}] * 2
            for stream in (False, True):
                never = await ask("never", stream=stream)
                assert (never.status_code, never.json()["error"]["code"]) == (502, "form_not_met")
            refused = await ask("knows", "strict")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
        rows = process.rows(6, model="m")
        assert sorted(row["input_tokens"] for row in rows if row["outcome"] == "ok")[:3] == [10, 20, 20]
