"""What `.ci/run` does after `make test`: a step's failure is the change's, what this machine lacks is not."""

from __future__ import annotations

import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.bootstrap import ci
from deploy.bootstrap.ci import Step
from tests.deploy import image

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", "total used free")
OK, WRONG = (sys.executable, "-c", ""), (sys.executable, "-c", "raise SystemExit(3)")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs these steps after so many seconds; the exit status and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*steps: Step, spent: str = "0") -> tuple[int, str]:
        monkeypatch.setattr(ci, "steps", lambda _: list(steps))
        return ci.main([spent]), capfd.readouterr().out

    return run


def test_each_step_tells_its_seconds(ran) -> None:  # type: ignore[no-untyped-def]
    code, said = ran(Step("one", OK, 1), Step("two", OK, 1))
    assert code == 0
    assert "== one: ok, 0 s" in said and "== two: ok, 0 s" in said


def test_a_step_that_fails_fails_the_change(ran) -> None:  # type: ignore[no-untyped-def]
    code, said = ran(Step("one", WRONG, 1), Step("two", OK, 1))
    assert code == 3
    assert "== one: failed" in said and "two" not in said


def test_what_cannot_be_installed_is_left_out_with_what_needs_it(ran) -> None:  # type: ignore[no-untyped-def]
    code, said = ran(Step("one", WRONG, 1, must=False), Step("two", WRONG, 1))
    assert code == 0
    assert "== one: LEFT OUT with all that follows" in said and "two" not in said


def test_time_and_disk_leave_a_step_out(ran, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert ran(Step("one", WRONG, 300), spent="2500")[0] == 0
    monkeypatch.setattr(ci.shutil, "disk_usage", lambda _: Usage(10e9, 9e9, 1e9))
    code, said = ran(Step("one", WRONG, 1, free_gb=12), Step("two", OK, 1))
    assert code == 0
    assert "== one: LEFT OUT, it takes 12 GB of disk, and 1.0 GB are free" in said and "== two: ok" in said


def test_a_step_that_does_not_end_is_stopped_with_its_children(ran) -> None:  # type: ignore[no-untyped-def]
    code = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.monotonic()
    status, said = ran(Step("one", (sys.executable, "-c", code), 1), spent=str(int(ci.BUDGET_S) - 2))
    assert status == 0
    assert "== one: LEFT OUT, it did not end" in said
    assert time.monotonic() - began < 30


def test_the_steps_are_those_that_exist() -> None:
    named = {step.command[-1] for step in ci.steps("python") if step.command[0] == "python"}
    assert named == {"deploy-quick"}
    assert "install-deploy:" in (ROOT / "Makefile").read_text()
    assert ci.main([]) == ci.main(["soon"]) == 2


@pytest.mark.parametrize(
    "said",
    [
        "write /layer.tar: no space left on device",
        "E: Failed to fetch http://deb.example/x  Temporary failure resolving 'deb.example'",
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'ReadTimeoutError(...Read timed out...)'",
    ],
)
def test_a_build_that_lacks_the_network_or_disk_is_out_of_reach(
    said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def buildah(*words: object, **_: object) -> str:
        assert words[0] != "bud", said
        return ""

    monkeypatch.setattr(image, "KEPT", tmp_path)
    monkeypatch.setattr(image, "import_base", lambda: None)
    monkeypatch.setattr(image, "no_room", lambda: None)
    monkeypatch.setattr(image, "buildah", buildah)
    with pytest.raises(image.OutOfReach):
        image.build()
    said = "cmake: error: no such file llama.cpp/CMakeLists.txt"
    with pytest.raises(AssertionError):
        image.build()
