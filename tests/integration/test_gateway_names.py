"""A whole gateway whose file comes to declare what the database has: the reload is refused until one of the two is gone."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from gateway.auth.keystore import NewKey, create_key
from gateway.ledger.migrations import migrate
from tests.gateway_process import GatewayProcess

PEPPER = "p" * 40


async def test_a_reload_that_declares_a_name_of_the_database_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}"
    migrate(url)
    admin = await create_key(url, PEPPER.encode(), NewKey("admin", scopes=frozenset({"admin"})))
    tree: dict[str, object] = {
        "ledger": {"url": url},
        "auth": {"pepper": "env:SY_PEPPER"},
        "deployments": {"d": {"dialect": "openai_compatible", "base_url": "http://127.0.0.1:9/v1", "model": "m"}},
        "models": {"chat": {"tiers": [["d"]]}},
    }
    headers = {"authorization": f"Bearer {admin.secret}"}
    with GatewayProcess(tmp_path / "a", tree, {"SY_PEPPER": PEPPER}) as gateway:
        gateway.start()
        async with httpx.AsyncClient(base_url=gateway.url + "/admin/v1", headers=headers, timeout=10) as http:
            assert (await http.post("/teams", json={"name": "red"})).status_code == 200
            clashing = {**gateway.config, "teams": {"red": {}, "blue": {}}}
            gateway.write_config(clashing)
            refused = await _event(gateway, "config_reload_failed")
            assert "teams.red" in str(refused["error"]) and "blue" not in str(refused["error"])
            assert (await http.get("/teams/blue")).status_code == 404, "nothing of that file is used"
            assert (await http.get("/teams/red")).json()["source"] == "database"
            assert (await http.delete("/teams/red")).status_code == 200
            gateway.write_config({**clashing, "gateway": {"timezone": "UTC"}})  # another text: the file is looked at again
            await _event(gateway, "config_reloaded")
            assert (await http.get("/teams/red")).json()["source"] == "file"


async def _event(gateway: GatewayProcess, name: str) -> dict[str, object]:
    deadline = time.monotonic() + 30
    while not (found := gateway.events(name)):
        assert time.monotonic() < deadline, gateway.tail()
        await asyncio.sleep(0.05)
    return found[0]
