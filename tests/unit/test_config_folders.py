import os
from pathlib import Path

import pytest

from gateway.config.folders import make_private
from gateway.config.problems import ConfigError


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "run", "server.run_dir")
    assert (tmp_path / "a" / "run").stat().st_mode & 0o777 == 0o700
    make_private(tmp_path / "a" / "run", "server.run_dir")


def test_what_others_could_have_laid_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("link", "file", "open"):
        with pytest.raises(ConfigError, match=r"server\.run_dir"):
            make_private(tmp_path / name, "server.run_dir")


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="another user"):
        make_private(tmp_path, "state_dir")
