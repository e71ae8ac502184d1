"""An OpenAI-like upstream that keeps every promise but those it was told to break; for the doctor."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: What it can be told to lie about.
LIES = (
    "models",
    "streaming",
    "usage",
    "tools",
    "schema",
    "object",
    "unfinished",
    "logprobs",
    "n",
    "max_tokens",
    "counts",
    "chat",
    "cap",
    "stop",
)
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lies: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        listed = ["another"] if "models" in self.lies else ["another", "truth"]
        self._json({"object": "list", "data": [{"id": name, "object": "model"} for name in listed]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.startswith("/v1/"):
            self._json({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404)
            return
        if "chat" in self.lies:
            self._json({"error": {"message": "no", "type": "x", "code": None, "param": None}}, 500)
            return
        if self._refuses(body):
            error = {"message": "max_tokens is too large: at most 100", "type": "invalid_request_error", "param": "max_tokens"}
            self._json({"error": {**error, "code": None}}, 400)
            return
        message, finish, words = self._message(body)
        choices = range(1 if "n" in self.lies else body.get("n", 1))
        logprobs = None
        if body.get("logprobs") and "logprobs" not in self.lies:
            logprobs = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}
        if body.get("stream"):
            self._stream(body, message["content"], words)
            return
        self._json(
            {
                **self._head("chat.completion"),
                "choices": [{"index": i, "message": message, "finish_reason": finish, "logprobs": logprobs} for i in choices],
                "usage": self._usage(words),
            }
        )

    def _refuses(self, body: dict) -> bool:
        """A server whose output is shorter than the gateway thinks."""
        return "cap" in self.lies and (body.get("max_tokens") or body.get("max_completion_tokens") or 0) > 100

    def _message(self, body: dict) -> tuple[dict, str, int]:
        kind = (body.get("response_format") or {}).get("type")
        if body.get("tools") and "tools" not in self.lies:
            function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
            calls = [{"id": "c", "type": "function", "function": function}]
            return {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls", 3
        text = None
        if kind == "json_schema" and "schema" not in self.lies:
            text = '{"colour": "blue"}'
        elif kind == "json_object" and "object" not in self.lies:
            text = "{}"
        if text is None:
            cap = body.get("max_tokens") or body.get("max_completion_tokens") or 99
            text = " ".join(WORDS if "max_tokens" in self.lies else WORDS[:cap])
        if kind and "unfinished" in self.lies:  # no lie: a small model that runs into its cap inside an object
            return {"role": "assistant", "content": '{"colour": "bl'}, "length", 8
        for stop in () if "stop" in self.lies else body.get("stop", ()):
            text = text.partition(stop)[0]
        return {"role": "assistant", "content": text}, "stop", len(text.split())

    def _stream(self, body: dict, text: str, words: int) -> None:
        pieces = [text] if "streaming" in self.lies else [word + " " for word in text.split()]
        choices = [[{"index": 0, "delta": {"content": piece}, "finish_reason": None}] for piece in pieces]
        choices.append([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        chunks = [{**self._head("chat.completion.chunk"), "choices": one} for one in choices]
        if (body.get("stream_options") or {}).get("include_usage") and "usage" not in self.lies:
            chunks.append({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(words)})
        data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self._send(data.encode(), "text/event-stream")

    def _usage(self, words: int) -> dict[str, int]:
        if "counts" in self.lies:
            return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return {"prompt_tokens": 5, "completion_tokens": words, "total_tokens": 5 + words}

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": "x", "object": kind, "created": 1, "model": "truth"}

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def lying_upstream(*lies: str) -> Iterator[str]:
    """A running upstream; its base_url."""
    assert set(lies) <= set(LIES)
    handler = type("Handler", (_Handler,), {"lies": frozenset(lies)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
