"""What compose.yaml runs beside the gateway, run with the same files on real servers: secrets, Redis, Grafana's role."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from gateway.ledger.migrations import migrate
from tests.deploy.fleet import Program
from tests.servers import PostgresServer, free_port, postgres_missing, redis_binary

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def _secrets(root: Path) -> dict[str, str]:
    for name in ("gateway", "redis", "postgres", "grafana"):
        (root / name).mkdir(parents=True, exist_ok=True)
    subprocess.run(["sh", str(DEPLOY / "make-secrets.sh"), str(root)], check=True, capture_output=True, timeout=30)
    return {str(path.relative_to(root)): path.read_text().strip() for path in root.rglob("*") if path.is_file()}


def test_secrets_are_made_once_and_are_not_the_same_twice(tmp_path: Path) -> None:
    first, again, other = _secrets(tmp_path / "one"), _secrets(tmp_path / "one"), _secrets(tmp_path / "other")
    assert first == again
    assert set(first) == set(other)
    made = {"gateway/pepper", "redis/password", "postgres/password", "postgres/grafana_password", "grafana/admin_password"}
    assert all(len(first[name]) == 64 and first[name] != other[name] for name in made)
    assert len({first[name] for name in made}) == len(made)
    assert first["grafana/postgres_password"] == first["postgres/grafana_password"]
    assert all(path.stat().st_mode & 0o777 == 0o440 for path in (tmp_path / "one").rglob("*") if path.is_file())


def test_secrets_that_are_lost_alone_are_made_again(tmp_path: Path) -> None:
    before = _secrets(tmp_path)
    (tmp_path / "redis/password").unlink()
    after = _secrets(tmp_path)
    assert after["redis/password"] != before["redis/password"]
    assert after["redis/password"] in after["gateway/redis_url"]
    assert after["redis/password.conf"] == f"requirepass {after['redis/password']}"
    assert after["gateway/pepper"] == before["gateway/pepper"]


@pytest.mark.skipif(redis_binary() is None, reason="no redis-server")
def test_redis_asks_for_the_password_and_keeps_everything(tmp_path: Path) -> None:
    secrets = _secrets(tmp_path / "secrets")
    port, folder = free_port(), tmp_path / "data"
    folder.mkdir()
    text = (DEPLOY / "redis/redis.conf").read_text().replace("/secrets/redis", str(tmp_path / "secrets/redis"))
    text = text.replace("dir /data", f"dir {folder}").replace("port 6379", f"port {port}").replace("* -::*", "127.0.0.1")
    (tmp_path / "redis.conf").write_text(text)
    server = Program(tmp_path, "redis", [redis_binary() or "", str(tmp_path / "redis.conf")])
    for attempt in range(2):
        server.start()
        try:
            client = redis.Redis(
                port=port, password=secrets["redis/password"], retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100)
            )
            assert client.ping()
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=port).ping()
            assert client.get("kept") == (b"yes" if attempt else None)
            client.set("kept", "yes")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        finally:
            server.kill(signal.SIGTERM)


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    if lacking := postgres_missing():
        pytest.skip(lacking)
    server = PostgresServer().start()
    yield server
    server.remove()


def test_grafana_reads_usage_and_no_hash(postgres: PostgresServer) -> None:
    migrate(postgres.url)
    for password in ("first", "second"):  # a second start, with a new password
        env = {**os.environ, "GRAFANA_PASSWORD": password}
        command = ["psql", "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "switchyard", "-d", "postgres", "-qX"]
        subprocess.run(
            [*command, "-v", "ON_ERROR_STOP=1", "-f", str(DEPLOY / "postgres/grafana-role.sql")],
            env=env, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    with psycopg.connect(f"host=127.0.0.1 port={postgres.port} user=grafana dbname=postgres", autocommit=True) as connection:
        for allowed in (
            "SELECT * FROM ledger",
            "SELECT * FROM owners",
            "SELECT * FROM declared_teams",
            "SELECT id, name, team FROM keys",
        ):
            connection.execute(allowed)
        for refused in (
            "SELECT hash FROM keys",
            "SELECT previous_hash FROM keys",
            "SELECT * FROM audit",
            "DELETE FROM ledger",
            "CREATE TABLE mine (id int)",
        ):
            with pytest.raises(psycopg.Error):
                connection.execute(refused)
