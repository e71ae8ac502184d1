"""Models, health, metrics and the OpenAPI page, called in process."""

import json
from collections.abc import Sequence
from typing import ClassVar

import httpx
import pytest

from backends.core.errors import GatewayError
from gateway.config.snapshot import Snapshot, Team
from gateway.domain.principal import Principal
from gateway.domain.route import Route
from gateway.edge.web import WebParts, web_app
from tests.unit.openai_schema import valid


class NotAuthenticated(GatewayError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class Keys:
    """One key that may use everything, one that may use a single model, one of a team."""

    KEYS: ClassVar = {
        b"Bearer all": Principal("k1"),
        b"Bearer few": Principal("k2", models=frozenset({"team/chat"})),
        b"Bearer team": Principal("k3", team_id="t"),
    }

    async def authenticate(self, headers: Sequence[tuple[bytes, bytes]], now_us: int) -> Principal:
        assert now_us == 7
        shown = dict(headers).get(b"authorization", b"")
        if shown not in self.KEYS:
            raise NotAuthenticated("Incorrect API key provided.")
        return self.KEYS[shown]


CHAT = Route("team/chat", (), created_s=5)
SNAPSHOT = Snapshot(
    "v1",
    models={"team/chat": CHAT, "gpt-4o-mini": CHAT, "embed": Route("embed", ())},
    deployments={},
    engines={},
    teams={"t": Team("t", frozenset({"embed"}))},
)


def client(token: str = "", reasons: dict[str, str] | None = None) -> httpx.AsyncClient:
    async def metrics() -> bytes:
        return b"up 1\n"

    parts = WebParts(
        auth=Keys(),
        now_us=lambda: 7,
        snapshot=lambda: SNAPSHOT,
        not_ready=lambda: reasons or {},
        metrics=metrics,
        metrics_token=token,
    )
    transport = httpx.ASGITransport(web_app(parts), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@pytest.mark.parametrize(
    ("who", "names"),
    [("all", ["embed", "gpt-4o-mini", "team/chat"]), ("few", ["gpt-4o-mini", "team/chat"]), ("team", ["embed"])],
)
@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_the_models_that_a_key_may_use(path: str, who: str, names: list[str]) -> None:
    async with client() as http:
        value = (await http.get(path, headers=key(who))).json()
    valid("ListModelsResponse", value)
    assert [model["id"] for model in value["data"]] == names


async def test_one_model_whose_name_has_a_slash() -> None:
    async with client() as http:
        value = (await http.get("/v1/models/team/chat", headers=key("few"))).json()
        valid("Model", value)
        assert (value["id"], value["created"]) == ("team/chat", 5)
        for who, name in (("few", "embed"), ("all", "nothing"), ("all", "../../etc/passwd"), ("all", "a%00b")):
            answer = await http.get(f"/v1/models/{name}", headers=key(who))
            assert answer.status_code == 404
            valid("ErrorResponse", answer.json())
        hidden = (await http.get("/v1/models/embed", headers=key("few"))).json()["error"]
        assert hidden["code"] == "model_not_found"


async def test_models_need_a_key() -> None:
    async with client() as http:
        for path in ("/v1/models", "/v1/models/embed", "/models", "/models/embed"):
            answer = await http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_health() -> None:
    async with client() as http:
        assert (await http.get("/health/live")).json()["status"] == "ok"
        assert (await http.get("/health/ready")).status_code == 200
    async with client(reasons={"redis": "no answer"}) as http:
        assert (await http.get("/health/live")).status_code == 200
        answer = await http.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json() == {"status": "not_ready", "reasons": {"redis": "no answer"}}


async def test_every_503_says_when_to_come_again() -> None:
    class Out(GatewayError):
        status = 503

    class Away(Keys):
        async def authenticate(self, headers: Sequence[tuple[bytes, bytes]], now_us: int) -> Principal:
            raise Out("Keys cannot be checked.", retry_after_ms=2500 if dict(headers).get(b"authorization") else None)

    parts = WebParts(auth=Away(), now_us=lambda: 7, snapshot=lambda: SNAPSHOT, not_ready=dict)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(web_app(parts)), base_url="http://gateway") as http:
        told, untold = await http.get("/v1/models", headers=key("x")), await http.get("/v1/models")
    assert (told.headers["retry-after"], told.headers["retry-after-ms"]) == ("3", "2500")
    assert (untold.headers["retry-after"], untold.headers["retry-after-ms"]) == ("1", "1000")


async def test_metrics_only_with_the_token() -> None:
    async with client() as http:
        assert (await http.get("/metrics")).status_code == 404
        assert (await http.get("/metrics", headers=key(""))).status_code == 404
    async with client("sesame") as http:
        assert (await http.get("/metrics")).status_code == 404
        assert (await http.get("/metrics", headers=key("sesam"))).status_code == 404
        answer = await http.get("/metrics", headers=key("sesame"))
        assert (answer.status_code, answer.text) == (200, "up 1\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/V1/models", 404),
        ("DELETE", "/health/live", 405),
        ("GET", "/redoc", 404),
    ],
)
async def test_errors_have_openais_shape(method: str, path: str, status: int) -> None:
    async with client() as http:
        answer = await http.request(method, "http://gateway" + path, headers=key("all"))
    assert answer.status_code == status
    valid("ErrorResponse", answer.json())
    assert answer.headers["content-type"] == "application/json"


async def test_a_poisoned_host_changes_nothing() -> None:
    async with client() as http:
        for host in ("x/health/live?", "x#", "x/public/"):
            assert (await http.get("/v1/models", headers={"host": host})).status_code == 401


async def test_a_bug_shows_nothing_of_itself() -> None:
    parts = WebParts(auth=Keys(), now_us=lambda: 7, snapshot=lambda: 1 / 0, not_ready=dict)  # type: ignore[arg-type, return-value]
    transport = httpx.ASGITransport(web_app(parts), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        answer = await http.get("/v1/models", headers=key("all"))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "division" not in answer.text


async def test_the_openapi_document_describes_both_parts() -> None:
    async with client() as http:
        value = (await http.get("/openapi.json")).json()
        page = (await http.get("/docs")).text
        again = (await http.get("/openapi.json")).json()
    assert value == again
    assert {"/", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health/ready"} <= set(
        value["paths"]
    )
    chat = value["components"]["schemas"]["ChatBody"]
    assert set(chat["required"]) == {"model", "messages"}
    assert chat["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    text = json.dumps(value)
    names = {ref.split('"')[0] for ref in text.split("#/components/schemas/")[1:]}
    assert names <= set(value["components"]["schemas"])
    assert "POST /v1/chat/completions" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


async def test_every_documented_get_answers() -> None:
    async with client("sesame") as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        for path, operations in paths.items():
            if "get" in operations:
                who = "sesame" if path == "/metrics" else "all"
                answer = await http.get(path.replace("{model}", "embed"), headers=key(who))
                assert answer.status_code == 200, path
