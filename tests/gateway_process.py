"""A whole gateway as a user starts it: `python -m gateway serve --config FILE`, in a process tree of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import psutil
import yaml

from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent
_TLS = ssl.create_default_context()


def declared_key(name: str, secret: str, **fields: object) -> dict[str, object]:
    """A `keys.declared` entry for a secret."""
    return {"name": name, "hash": "sha256:" + hashlib.sha256(secret.encode()).hexdigest(), **fields}


def http_client(key: str, **headers: str) -> httpx.AsyncClient:
    """A client with a key; many can be made quickly, because reading the system's authorities is done once."""
    return httpx.AsyncClient(timeout=20, verify=_TLS, headers={"authorization": f"Bearer {key}", **headers})


class GatewayProcess:
    """One gateway. `config` is the configuration file's tree; ports, state_dir and run_dir are filled in."""

    def __init__(self, folder: Path, config: dict[str, object], env: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.metrics_port = free_port()
        server = {"listen": f"127.0.0.1:{self.port}", "drain_s": 5, **config.get("server", {})}  # type: ignore[dict-item]
        telemetry = {"metrics": {"listen": f"127.0.0.1:{self.metrics_port}"}}
        self.config = {"state_dir": str(folder / "var"), "telemetry": telemetry, **config, "server": server}
        self.file = folder / "config.yaml"
        self.write_config(self.config)
        self.log = folder / "gateway.log"
        self._env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def write_config(self, config: dict[str, object]) -> None:
        """Replace the configuration file."""
        self.file.write_text(yaml.safe_dump(config))

    def start(self, timeout_s: float = 60.0, ready: bool = True) -> GatewayProcess:
        """Start it and wait until it is ready (or at least live)."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(self.file)],
                cwd=ROOT, env=self._env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        # each connection may come to another worker: all of them, as likely as not
        workers = int(self.config["server"].get("workers", 1))  # type: ignore[attr-defined, call-overload]
        deadline = time.monotonic() + timeout_s
        in_a_row = 0
        while in_a_row < (1 if workers == 1 else 4 * workers):
            self.wait_for("/health/ready" if ready else "/health/live", max(0.0, deadline - time.monotonic()))
            in_a_row = in_a_row + 1 if not ready or self.get("/health/ready")[0] == 200 else 0
        return self

    def wait_for(self, path: str, timeout_s: float) -> None:
        """Wait until a GET answers 200."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.tail()}")
            with contextlib.suppress(OSError):
                if self.get(path)[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{path} did not answer 200 within {timeout_s} s:\n{self.tail()}")

    def get(self, path: str, key: str | None = None) -> tuple[int, bytes]:
        """A GET: status and body."""
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {key}"} if key else {})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def metrics(self) -> str:
        """The text of the metrics port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def rows(self, count: int, *, since_us: int = 0, within_s: float = 5.0, **having: object) -> list[sqlite3.Row]:
        """The settled rows of the gateway's own SQLite ledger with these values, oldest first, once there are `count`."""
        file = next((self.folder / "var").glob("*.db"))
        where = "".join(f" AND {name} = ?" for name in having)
        deadline = time.monotonic() + within_s
        while True:
            with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
                db.row_factory = sqlite3.Row
                select = f"SELECT * FROM ledger WHERE settled_us > 0 AND admitted_us >= ?{where} ORDER BY admitted_us, id"
                found = db.execute(select, (since_us, *having.values())).fetchall()
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} rows, not {count}"
            time.sleep(0.02)

    def events(self, event: str | None = None) -> list[dict[str, object]]:
        """The JSON lines of the log, all or those of one event."""
        lines = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and (event is None or value.get("event") == event):
                    lines.append(value)
        return lines

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-4000:]

    def children(self, having: str = "") -> list[psutil.Process]:
        """Processes below the supervisor whose command line has this text."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if having in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, then wait; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the whole group, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def __enter__(self) -> GatewayProcess:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.process is not None:
                self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the gateway did not stop:\n{self.tail()}") from None
