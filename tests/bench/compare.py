"""The gateway beside nginx and the bare upstream, interleaved: what it costs and what it adds.

    python -m tests.bench.compare [-s ns1,ns64,... | all] [-r ROUNDS] [-d SECONDS] [--memory] [--json FILE]

Starts everything itself and stops it. `make bench` runs all of it and writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench import memory
from tests.bench.figures import Figure, errors
from tests.bench.figures import memory as memory_figures
from tests.bench.figures import speed as speed_figures
from tests.bench.programs import KEY, PATH, Bench, Missing, bench
from tests.bench.report import figures_table, scenarios_table
from tests.bench.rounds import Loaded, Samples, run_rounds
from tests.bench.scenarios import Scenario, Target, chosen

#: Where no nginx is installed.
NO_NGINX = "nginx is not installed, so there are no ratios: apt-get install -y nginx-light"


def targets(running: Bench, scenarios: Sequence[Scenario]) -> dict[Target, Loaded]:
    """Start the gateways that the scenarios ask for; everybody who can be loaded."""
    asked = {name for scenario in scenarios for name in scenario.targets}
    upstream = running.upstream
    found: dict[Target, Loaded] = {
        "direct": Loaded("direct", f"http://127.0.0.1:{upstream.port}{PATH}", KEY, (upstream.pid,)),
    }
    if running.nginx is not None:
        found["nginx"] = Loaded("nginx", f"http://127.0.0.1:{running.nginx.port}{PATH}", KEY, (running.nginx.pid,))
    for name in ("gateway", "embedded"):
        if name in asked:
            gateway = running.gateway(name, redis=name == "gateway")
            found[name] = Loaded(name, gateway.url + PATH, KEY, (memory.root_pid(gateway),))
    return found


def compare(running: Bench, scenarios: Sequence[Scenario], rounds: int, seconds: float) -> Samples:
    """Run the scenarios one after the other."""
    loaded = targets(running, scenarios)
    samples: Samples = {}
    for scenario in scenarios:
        print(f"{scenario.name}: {scenario.what} …", file=sys.stderr, flush=True)
        samples[scenario.name] = run_rounds(
            running.load, running.cores.loading, loaded, running.redis.pid, scenario, rounds, seconds
        )
    return samples


def measured_figures(samples: Samples, of_memory: Sequence[Figure] = ()) -> list[Figure]:
    """The figures that these samples give, and those of memory."""
    return [*(figure for figure in speed_figures(samples) if figure.value is not None), *of_memory]


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that `make bench` shares."""
    parser.add_argument("-s", "--scenarios", default="ns1,ns64,st64,pace64", help="names with commas between, or all")
    parser.add_argument("-r", "--rounds", type=int, default=3, help="interleaved rounds of each scenario (3)")
    parser.add_argument("-d", "--seconds", type=float, default=2.5, help="seconds of each run (2.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures and every sample as JSON")
    return parser


def write_json(file: Path, figures: Sequence[Figure], samples: Samples) -> None:
    """Everything that was measured, for a later comparison."""
    raw = {s: {t: [asdict(sample) for sample in rounds] for t, rounds in targets.items()} for s, targets in samples.items()}
    file.write_text(json.dumps({"figures": [asdict(figure) for figure in figures], "samples": raw}, indent=1))


def main() -> int:
    """Print the tables."""
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--memory", action="store_true", help="also memory, open streams and the start")
    asked = parser.parse_args()
    try:
        scenarios = chosen(asked.scenarios)
        with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder, bench(Path(folder)) as running:
            if running.nginx is None:
                print(NO_NGINX, file=sys.stderr)
            samples = compare(running, scenarios, asked.rounds, asked.seconds)
            of_memory = memory_figures(memory.measure(running)) if asked.memory else []
    except (Missing, ValueError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    figures = measured_figures(samples, of_memory)
    print(f"\n{scenarios_table(samples)}\n\n{figures_table(figures)}")
    for line in errors(samples):
        print(f"! {line}")
    if asked.json is not None:
        write_json(asked.json, figures, samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
