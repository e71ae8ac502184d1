"""What is soaked: two workers, Redis that is killed now and then, a configuration that changes, an upstream of many moods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.gateway_process import GatewayProcess, declared_key
from tests.servers import RedisServer
from tests.upstream import Upstream, in_thread, upstream_server

PLAIN, LIMITED, BAD = "sk-soak-plain-0123456789abcdef", "sk-soak-limited-0123456789abcdef", "sk-soak-nobody-0123456789abcdef"
PLACES = ["words-10-d10", "words-40-d25", "words-5-d5", "words-4-nousage", "words-6-cut", "words-6-error", "words-3-status-500",
          "words-3-status-429", "words-3-tools"]  # fmt: skip


@dataclass
class SoakedHouse:
    """The running house."""

    gateway: GatewayProcess
    redis: RedisServer
    upstream: Upstream
    trees: tuple[dict[str, object], dict[str, object]]
    changes: int = 0

    def reload(self) -> None:
        """Another configuration: another deployment behind a model, other limits, another time out."""
        self.changes += 1
        self.gateway.write_config(self.trees[self.changes % 2])


def _tree(upstream: str, redis: str, *, other: bool) -> dict[str, object]:
    far = {"dialect": "openai_compatible", "base_url": upstream}
    deployments: dict[str, object] = {name: {**far, "model": name} for name in PLACES}
    deployments["narrow"] = {**far, "model": "words-8-d20", "max_in_flight": 3 if other else 2}
    deployments["mute"] = {**far, "model": "words-3-mute", "timeouts": {"first_event_s": 1 if other else 2}}
    models: dict[str, object] = {name: {"tiers": [[name]]} for name in PLACES if name != "words-3-tools"}
    models |= {"narrow": {"tiers": [["narrow"]]}, "mute": {"tiers": [["mute"]]}, "tools": {"tiers": [["words-3-tools"]]}}
    models["falls-back"] = {"tiers": [["words-3-status-500"], ["words-5-d5" if other else "words-10-d10"]]}
    return {
        "server": {"workers": 2, "queue_wait_s": 5},
        "redis": {"url": redis, "timeout_ms": 500},
        "auth": {"pepper": "env:SY_PEPPER"},
        "deployments": deployments,
        "models": models,
        "keys": {
            "declared": [
                declared_key("plain", PLAIN),
                declared_key(
                    "limited", LIMITED, limits=[{"requests": 200 if other else 300, "per": "minute"}, {"concurrent": 3}]
                ),
            ]
        },
    }


@contextmanager
def soaked(folder: Path) -> Iterator[SoakedHouse]:
    """The house, started."""
    with ExitStack() as stack:
        redis = RedisServer(folder / "redis").start()
        stack.callback(redis.kill)
        upstream = stack.enter_context(in_thread(upstream_server))
        trees = tuple(_tree(upstream.url, redis.url, other=other) for other in (False, True))
        gateway = GatewayProcess(folder / "gateway", trees[0], {"SY_PEPPER": "p" * 40})
        for tree in trees:  # ports and folders, as the first one got them
            tree |= {name: gateway.config[name] for name in ("server", "state_dir", "telemetry")}
        stack.enter_context(gateway)
        gateway.start(timeout_s=120)
        yield SoakedHouse(gateway, redis, upstream, (trees[0], trees[1]))
