"""The ways in which a gateway is loaded. A name is what the tables and the command line call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What CPU time is divided by.
Unit = Literal["request", "chunk"]
Target = Literal["direct", "nginx", "gateway", "embedded"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way. `arguments` are the load generator's (see native/load.c); `targets` is who is loaded, in this order.

    `direct` is the mock upstream itself, wherever a latency that was added is asked for.
    """

    name: str
    what: str
    arguments: tuple[str, ...]
    unit: Unit = "request"
    targets: tuple[Target, ...] = ("nginx", "gateway")

    @property
    def model(self) -> str:
        """The model that is asked for: the script of the mock's answer."""
        return self.arguments[self.arguments.index("-m") + 1]


def _scenario(name: str, what: str, arguments: str, model: str, targets: str = "nginx gateway") -> Scenario:
    words = (*arguments.split(), "-m", model)
    known: dict[str, Target] = {"direct": "direct", "nginx": "nginx", "gateway": "gateway", "embedded": "embedded"}
    unit: Unit = "chunk" if "-S" in words else "request"
    return Scenario(name=name, what=what, arguments=words, unit=unit, targets=tuple(known[t] for t in targets.split()))


_ALL = (
    _scenario("ns1", "whole answers, 1 connection", "-c 1 -w 0.3", "mock-64"),
    _scenario("ns64", "whole answers, 64 connections", "-c 64 -w 0.5", "mock-64", "nginx gateway embedded"),
    _scenario("st1", "streams at full speed, 1 connection", "-S -c 1 -w 0.3", "mock-64", "direct nginx gateway"),
    _scenario("st64", "streams at full speed, 64 connections", "-S -c 64 -w 0.5", "mock-128"),
    _scenario("pace1", "a chunk each 20 ms, 1 stream", "-S -c 1 -w 0.5", "mock-128-d20000"),
    _scenario("pace64", "a chunk each 20 ms, 64 streams", "-S -c 64 -w 0.5", "mock-128-d20000"),
    _scenario("pace256", "a chunk each 20 ms, 256 streams", "-S -c 256 -w 1", "mock-128-d20000"),
    _scenario("rate50", "whole answers, 50 requests/s, open loop", "-c 64 -r 50 -w 0.3", "mock-64", "direct nginx gateway"),
    _scenario("big16", "prompts of 40 kB, 16 connections", "-c 16 -p 40000 -w 0.3", "mock-64"),
    _scenario("deny64", "a key that nobody has, 64 connections", "-c 64 -X 401 -k bad-key -w 0.3", "mock-64", "gateway"),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}

#: One chunk a second, for streams that are open while memory is looked at.
SLOW_MODEL = "mock-64-d1000000"


def chosen(names: str) -> list[Scenario]:
    """Scenarios by their names, commas between; `all` for all.

    Raises:
        ValueError: an unknown name.
    """
    if names == "all":
        return list(_ALL)
    unknown = [name for name in names.split(",") if name not in SCENARIOS]
    if unknown:
        raise ValueError(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return [SCENARIOS[name] for name in names.split(",")]


def models() -> list[str]:
    """Every model that a gateway under test has to serve."""
    return sorted({scenario.model for scenario in _ALL} | {SLOW_MODEL})
