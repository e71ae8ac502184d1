"""The gateway that every client library is tried on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.sdk.house import Place, place


@pytest.fixture(scope="session")
def clients_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all of them: nothing of it is changed by a test."""
    with place(tmp_path_factory.mktemp("clients")) as running:
        yield running
