import json
import shutil
import sys
import tomllib
import types
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config.settings import Configuration

SOUND = """
deployments:
  far: {dialect: openai_compatible, base_url: http://127.0.0.1:9/v1, model: m}
models:
  chat: {tiers: [[far]], aliases: [gpt-4o-mini]}
  other: {tiers: [[far]]}
teams:
  research: {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(SOUND)
    return path


def test_the_version_is_the_projects_without_an_installation(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"switchyard {project['version']}\n"


def test_check_says_what_is_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file)]) == 0
    assert "2 models, 1 deployments" in capsys.readouterr().out


def test_check_says_file_key_and_mend(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(SOUND + "server: {wrokers: 2}\nzap: 1\n")
    assert main(["check", str(file)]) == 1
    told = capsys.readouterr().err
    assert f"{file}:9: server.wrokers" in told
    assert "mend: did you mean 'workers'?" in told
    assert f"{file}:10: zap" in told


def test_check_speaks_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
    file.write_text("zap: 1\n")
    assert main(["check", "--json", str(file)]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["key"], problem["line"]) == ("zap", 1)


def test_a_key_is_minted_listed_and_revoked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--team", "research", "--rpm", "60", "--tpm", "100000", "--concurrent", "8", "--expires", "30d", "--json"]
    assert main(["keys", "new", "--config", str(file), "--name", "ann", "--models", "gpt-4o-mini, other", *options]) == 0
    minted = json.loads(capsys.readouterr().out)
    assert minted["secret"].startswith("sk-sy-") and minted["id"] in minted["secret"]

    assert main(["keys", "list", "--config", str(file), "--json"]) == 0
    listed = capsys.readouterr().out
    assert minted["secret"] not in listed
    (row,) = json.loads(listed)
    assert (row["id"], row["team"], row["models"], row["state"]) == (minted["id"], "research", "chat, other", "active")
    assert row["limits"] == "60 requests/minute, 100000 tokens/minute, 8 concurrent"

    assert main(["keys", "revoke", "--config", str(file), minted["id"]]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--config", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("revoked")


def test_the_secret_is_printed_once_and_stored_nowhere(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "--config", str(file), "--name", "bob"]) == 0
    secret = capsys.readouterr().out.split("secret")[1].split()[0]
    stored = b"".join(path.read_bytes() for path in (file.parent / "var").rglob("*") if path.is_file())
    assert secret.encode() not in stored
    assert (file.parent / "var" / "pepper").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--team", "reserch"], "'research'"),
        (["--models", "chta"], "'chat'"),
        (["--expires", "soon"], "--expires"),
        (["--expires", "2020-01-01"], "past"),
        (["--rpm", "0"], "rpm"),
        (["--tpm", str(2**53 + 1)], "tpm"),
    ],
)
def test_a_wrong_key_is_refused_and_nothing_is_made(
    file: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["keys", "new", "--config", str(file), "--name", "x", *options]) == 1
    assert words in capsys.readouterr().err
    assert not (file.parent / "var").exists()


def test_revoking_an_unknown_key_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "revoke", "--config", str(file), "nobody"]) == 1
    assert "nobody" in capsys.readouterr().err


def test_a_database_that_cannot_be_used_is_named_without_its_address(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHYARD_LEDGER__URL", f"sqlite+aiosqlite:///{file}/not-a-folder/secret-place.db")
    assert main(["keys", "list", "--config", str(file)]) == 1
    told = capsys.readouterr().err
    assert "ledger.url" in told and "secret-place" not in told


def test_serve_hands_the_configuration_to_the_app(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Configuration] = []
    app = types.ModuleType("gateway.app")
    app.serve = lambda found: served.append(found) or 0  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "gateway.app", app)
    assert main(["serve", "--config", str(file)]) == 0
    shutil.copy(file, file.parent / "unused.yaml")
    monkeypatch.chdir(file.parent)
    assert main(["serve"]) == 0
    assert [one.file for one in served] == [file, None]


def test_serve_refuses_a_broken_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("zap: 1\n")
    assert main(["serve", "--config", str(file)]) == 1
    assert "zap" in capsys.readouterr().err


def test_wrong_usage_is_status_2() -> None:
    for words in ([], ["keys"], ["keys", "new"], ["check"], ["zap"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
