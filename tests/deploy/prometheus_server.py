"""A real Prometheus on a gateway's metrics port, with the shipped rules, fast enough for a test."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
#: What stands for Grafana's variables.
VARIABLES = {"$__rate_interval": "20s", "$model": ".*", "$deployment": ".*", "$__interval": "10s"}

Series = list[dict[str, Any]]


class PrometheusServer:
    """One Prometheus; `start` waits until it answers."""

    def __init__(self, folder: Path, target_port: int, every: str = "1s") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            group["interval"] = every
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": "switchyard", "static_configs": [{"targets": [f"127.0.0.1:{target_port}"]}]},
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def start(self) -> PrometheusServer:
        """Start it."""
        binary = shutil.which("prometheus")
        assert binary is not None, "install prometheus (apt)"
        options = [f"--config.file={self.folder / 'prometheus.yml'}", f"--storage.tsdb.path={self.folder / 'data'}"]
        with (self.folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, *options, f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=1):
                    return self
            except OSError:
                assert self._process.poll() is None, (self.folder / "prometheus.log").read_text()
                assert time.monotonic() < deadline, "Prometheus does not answer"
                time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def ask(self, path: str, **parameters: object) -> Any:
        """`/api/v1/<path>`'s data.

        Raises:
            urllib.error.HTTPError: it refuses, for instance an expression that is none.
        """
        query = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=20) as answer:
            return json.load(answer)["data"]

    def over_time(self, expression: str, since_s: float, step_s: float = 1.0) -> Series:
        """The series of an expression from an instant until now; variables of Grafana's are filled in."""
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        found: Series = self.ask("query_range", query=expression, start=since_s, end=time.time(), step=step_s)["result"]
        return found

    def __enter__(self) -> PrometheusServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def tells(series: Series) -> bool:
    """Whether some sample is a number: not a number is what a quantile of nothing is."""
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])
