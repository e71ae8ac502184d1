"""How severe the events are that nobody names a level for."""

from __future__ import annotations

import pytest

from gateway.telemetry.style import Style, severity


@pytest.mark.parametrize("name", ["process_died", "engine_crashed", "process_failed", "process_fatal", "bug"])
def test_a_death_is_written_whatever_the_level(name: str) -> None:
    assert severity(name) == "error"
    assert Style(level="error").wants(severity(name))


def test_the_life_of_processes_is_information() -> None:
    assert severity("process_started") == "info"
    assert not Style(level="warning").wants(severity("process_started"))
