"""A completion with a suffix on llama.cpp's own server: `/infill`, on a model that has the marks of a gap."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.integration.llamacpp_server import serving
from tests.tiny_infill import CONTEXT, GAP, write_gguf

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

KEY = "sk-test-user-0123456789abcdef"
BEFORE, AFTER = "def total(x):\n    return ", "\n\nprint(total([1, 2]))\n"


def serving_tiny(folder: Path, *, marks: bool) -> Iterator[str]:
    if not importlib.util.find_spec("gguf"):
        pytest.skip("the package gguf is not installed")
    with serving(str(write_gguf(folder / f"infill-{marks}.gguf", marks=marks)), 2 * CONTEXT) as address:
        yield address


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serving_tiny(tmp_path_factory.mktemp("models"), marks=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serving_tiny(tmp_path_factory.mktemp("models"), marks=False)


def tree(filling: str, plain: str) -> dict[str, object]:
    places = {"filling": filling, "plain": plain}
    return {
        "deployments": {name: {"dialect": "llamacpp", "base_url": url, "model": "m"} for name, url in places.items()},
        "models": {name: {"tiers": [[name]], "context": CONTEXT} for name in places},
        "keys": {"declared": [declared_key("user", KEY)]},
    }


def test_the_server_puts_the_marks_around_the_gap(filling: str) -> None:
    """What our tests rest on: the prompt is prefix, suffix and the mark of the middle, in this order."""
    body = {"input_prefix": BEFORE, "input_suffix": AFTER, "n_predict": 1}
    prompt = httpx.post(filling + "/infill", json=body).json()["prompt"].replace("\u2581", " ")
    assert prompt == f"<s><fim_pre>{BEFORE}<fim_suf>{AFTER}<fim_mid>"


async def test_a_gap_is_filled_through_the_gateway(tmp_path: Path, filling: str, plain: str) -> None:
    with GatewayProcess(tmp_path, tree(filling, plain)) as process:
        await asyncio.to_thread(process.start)
        async with httpx.AsyncClient(base_url=process.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
            asked = {"model": "filling", "prompt": BEFORE, "suffix": AFTER, "max_tokens": 40, "temperature": 0}
            answer = (await client.post("/v1/completions", json=asked)).json()
            (choice,) = answer["choices"]
            assert (choice["text"], choice["finish_reason"]) == (GAP, "stop")
            marks = 1 + 3  # the beginning, and around the gap
            tokens = len(f"{BEFORE}{AFTER}".replace(" ", "\u2581").encode()) + marks
            assert answer["usage"]["prompt_tokens"] == tokens
            streamed = await client.post("/v1/completions", json={**asked, "stream": True})
            assert "".join(piece.split('"')[0] for piece in streamed.text.split('"text":"')[1:]) == GAP
            short = (await client.post("/v1/completions", json={**asked, "max_tokens": 3})).json()["choices"][0]
            assert (short["text"], short["finish_reason"]) == (GAP[:3], "length")
            echoed = (await client.post("/v1/completions", json={**asked, "echo": True})).json()["choices"][0]
            assert echoed["text"] == BEFORE + GAP
            plain_asked = {**asked, "prompt": "q", "suffix": None, "max_tokens": 4}
            without = (await client.post("/v1/completions", json=plain_asked)).json()
            assert without["choices"][0]["text"] == "qqqq", "without a suffix it goes on behind the prompt"


async def test_a_model_without_the_marks_says_so(tmp_path: Path, filling: str, plain: str) -> None:
    with GatewayProcess(tmp_path, tree(filling, plain)) as process:
        await asyncio.to_thread(process.start)
        async with httpx.AsyncClient(base_url=process.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
            answer = await client.post("/v1/completions", json={"model": "plain", "prompt": BEFORE, "suffix": AFTER})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (502, "upstream_unavailable")
            assert "not supported by this model" in error["message"]
