"""deploy/systemd: the unit before systemd's own reader, and the command line that stands beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).resolve().parents[2] / "deploy/systemd"
UNIT, COMMAND = SYSTEMD / "switchyard.service", SYSTEMD / "switchyard.sh"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on PATH (apt: systemd)")
def test_systemd_reads_the_unit_and_finds_it_well_shut(tmp_path: Path) -> None:
    unit = tmp_path / "switchyard.service"
    unit.write_text(UNIT.read_text().replace("/opt/switchyard/.venv/bin/switchyard", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit]
    shut = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert shut.returncode == 0, shut.stdout[-600:]  # exposure of 2.0 or less


def test_the_command_line_stands_where_the_service_does() -> None:
    unit, command = UNIT.read_text(), COMMAND.read_text()
    subprocess.run(["sh", "-n", COMMAND], check=True, timeout=10)
    (home,) = re.findall(r"SWITCHYARD_STATE_DIR=(\S+)", unit)
    assert f"SWITCHYARD_STATE_DIR={home} " in command and f"HOME={home} " in command
    (secrets,) = re.findall(r"EnvironmentFile=-(\S+)", unit)
    assert f". {secrets}\n" in command
    (user,) = re.findall(r"^User=(\S+)$", unit, re.M)
    assert f"--reuid {user} " in command
    (program,) = re.findall(r"^ExecStart=(\S+) serve", unit, re.M)
    assert f'{program} "$@"' in command
