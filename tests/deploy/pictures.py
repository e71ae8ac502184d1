"""The pictures in docs/images: a loaded gateway, a real Prometheus and PostgreSQL, every dashboard drawn from them.

    python -m tests.deploy.pictures [--seconds 240] [--out docs/images]

Redis answers nothing for four seconds on the way, and one deployment is ill, so that the panels show more than a quiet day.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from deploy.dashboards.generate import DASHBOARDS
from deploy.dashboards.render import render
from tests.deploy.loaded import Loaded, load, loaded_gateway
from tests.deploy.prometheus_server import PrometheusServer


async def _busy(house: Loaded, seconds: float) -> None:
    """Load in two strengths, and an outage of Redis for four seconds in between."""
    async with asyncio.TaskGroup() as group:
        group.create_task(load(house, seconds, seed=1, callers=5))
        await asyncio.sleep(seconds * 0.3)
        group.create_task(load(house, seconds * 0.4, seed=2, callers=8))
        await asyncio.sleep(seconds * 0.3)
        house.redis.pause()
        await asyncio.sleep(4)
        house.redis.resume()


def main() -> None:
    """Load, then draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.pictures")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="switchyard-pictures-") as name:
        folder = Path(name)
        with loaded_gateway(folder) as house, PrometheusServer(folder / "prometheus", house.gateway.metrics_port) as prometheus:
            since_s = time.time()
            asyncio.run(_busy(house, chosen.seconds))
            time.sleep(3)
            for dashboard in DASHBOARDS:
                render(
                    dashboard,
                    lambda text: prometheus.over_time(text, since_s),
                    lambda text: house.sql(text, since_s),
                    chosen.out / f"{dashboard.uid}.png",
                )


if __name__ == "__main__":
    main()
