"""What deploy/ promises, held to its files: hardened services, pinned images, no secrets, enough time to drain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.bootstrap.places import llama_requirement
from gateway.config.loader import load
from gateway.runtime.drain import DrainTimes
from gateway.runtime.supervisor import PROCESSES_S

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = sorted(path.name for path in DEPLOY.glob("compose*.yaml"))
CONFIGS = sorted(path.name for path in (DEPLOY / "config").glob("*.yaml"))
#: What the overlays only add to; the rest of such a service stands in compose.yaml.
_BASE = "compose.yaml"


def _file(name: str) -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(found, dict)
    return found


def _services() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """File, name and body of every service that a file defines, not only adds to."""
    base = set(_file(_BASE)["services"])
    for file in COMPOSE:
        for name, body in _file(file)["services"].items():
            if file == _BASE or name not in base:
                yield file, name, body


SERVICES = [pytest.param(name, body, id=f"{file}-{name}") for file, name, body in _services()]
#: Those that end after their work.
ONCE = {"secrets", "grafana-role", "ollama-store", "ollama-model"}


def _seconds(text: str) -> int:
    matched = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert matched, text
    return int(matched[1] or 0) * 60 + int(matched[2] or 0)


def _default(text: str) -> str:
    """What `${NAME:-default}` is when nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize(("name", "body"), SERVICES)
def test_every_service_is_hardened(name: str, body: dict[str, Any]) -> None:
    assert body["read_only"] is True
    assert body["cap_drop"] == ["ALL"]
    assert "cap_add" not in body
    assert body["security_opt"] == ["no-new-privileges:true"]
    assert not body.get("privileged")
    user, _, _ = body["user"].partition(":")
    assert int(user) > 0, "runs as root"
    limits = body["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert not any("docker.sock" in volume for volume in body.get("volumes", []))


@pytest.mark.parametrize(("name", "body"), SERVICES)
def test_every_lasting_service_has_a_health_check_and_comes_back(name: str, body: dict[str, Any]) -> None:
    if name in ONCE:
        assert body["restart"] == "no"
        return
    assert body["restart"] == "unless-stopped"
    assert body["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert "stop_grace_period" in body


@pytest.mark.parametrize(("name", "body"), SERVICES)
def test_images_are_of_one_version(name: str, body: dict[str, Any]) -> None:
    image = _default(body["image"])
    tag = image.rpartition(":")[2]
    assert re.search(r"\d", tag), f"{image} is not pinned"
    assert "latest" not in image


def test_only_gateway_and_grafana_publish_a_port() -> None:
    published = {name: body["ports"] for _, name, body in _services() if body.get("ports")}
    assert set(published) == {"gateway", "grafana"}
    assert [_default(port) for port in published["grafana"]] == ["127.0.0.1:3000:3000"]
    for file in COMPOSE:
        for name, body in _file(file)["services"].items():
            assert name in published or "ports" not in body
            assert body.get("network_mode") in (None, "none")


def test_the_data_is_on_networks_that_lead_nowhere() -> None:
    compose = _file(_BASE)
    internal = {name for name, body in compose["networks"].items() if body and body.get("internal")}
    for name in ("redis", "postgres", "prometheus", "grafana-role"):
        assert set(compose["services"][name]["networks"]) <= internal, name
    for file in COMPOSE:
        if file != _BASE:
            more = {name for name, body in _file(file).get("networks", {}).items() if body and body.get("internal")}
            for name, body in _file(file)["services"].items():
                assert set(body.get("networks", [])) <= internal | more, name


def test_no_secret_has_a_value_or_a_default() -> None:
    """Passwords are files that are made at the first start: no variable that holds one, nor a default of one."""
    for file in [*COMPOSE, ".env.example"]:
        for line in (DEPLOY / file).read_text().splitlines():
            text = line.partition("#")[0]
            if re.search(r"password|secret|pepper|token", text, re.I):
                assert re.search(r"/secrets?|-secrets|secrets:|_FILE|__FILE", text), f"{file}: {line}"


def test_environment_names_are_the_examples() -> None:
    """Every variable of .env.example is one of the compose files', and MODELS_DIR is required where it is used."""
    used = set(re.findall(r"\$\{(\w+)", "".join((DEPLOY / file).read_text() for file in COMPOSE)))
    told = set(re.findall(r"^#?([A-Z_]+)=", (DEPLOY / ".env.example").read_text(), re.M))
    assert told <= used
    defaults = dict(re.findall(r"^([A-Z_]+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.M))
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", (DEPLOY / _BASE).read_text()):
        assert defaults[name] == default, f"{name}: .env.example and compose.yaml differ"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gateway_has_time_to_drain(name: str) -> None:
    server = load(DEPLOY / "config" / name).static.server
    longest_s = DrainTimes(delay_s=server.drain_delay_s, drain_s=server.drain_s).longest_s + 2 + PROCESSES_S
    assert _seconds(_file(_BASE)["services"]["gateway"]["stop_grace_period"]) > longest_s


def test_every_server_beside_has_its_deployment() -> None:
    beside = {name for name in _file("compose.backends.yaml")["services"] if name not in ONCE | {"gateway"}}
    snapshot = load(DEPLOY / "config" / "backends.yaml").snapshot
    hosts = {
        one.base_url.split("//")[1].split(":")[0] for one in snapshot.deployments.values() if getattr(one, "base_url", None)
    }
    assert hosts == beside


def test_lock_files_have_hashes_and_name_no_registry() -> None:
    for name in ("requirements.lock", "llama.lock", "build.lock", "models.lock"):
        text = (DEPLOY / name).read_text()
        assert "://" not in text
        entries = re.split(r"\n(?=\S)", text.strip())
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#")), name


def test_the_library_is_of_the_version_that_is_installed() -> None:
    """llama.lock repeats an entry of requirements.lock, and both are what pyproject.toml pins."""
    entry = (DEPLOY / "llama.lock").read_text()
    assert entry in (DEPLOY / "requirements.lock").read_text()
    assert entry.startswith(llama_requirement(DEPLOY.parent) + " ")
