"""`make bench`: everything that is measured, into docs/benchmarks.md.

    make bench          or, with options: python -m tests.bench [--parts gateway,memory,pool] [-s ...] [-r 3] [--json FILE]

About six minutes. A part that cannot be measured here (no nginx, no llama.cpp) is left out, and the page says why.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.bootstrap.places import CHAT_MODEL, Places
from tests.bench import compare, engine_part, machine, memory
from tests.bench.figures import Figure, errors, redis_pair
from tests.bench.figures import memory as memory_figures
from tests.bench.limits_cost import pair_us
from tests.bench.programs import Bench, Missing, bench, pinned
from tests.bench.report import figures_table, scenarios_table, table, write_page
from tests.bench.rounds import Samples, measuring
from tests.bench.scenarios import SCENARIOS, chosen
from tests.gateway_process import ROOT
from tests.servers import RedisServer

PARTS = ("gateway", "memory", "pool")


def arguments() -> argparse.ArgumentParser:
    """Everything has a default, and the defaults are what the page is made with."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    compare.arguments(parser)
    engine_part.arguments(parser)
    parser.set_defaults(scenarios="all")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of gateway, memory, pool (all)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page to write")
    return parser


def gateway_parts(asked: argparse.Namespace, parts: list[str], notes: list[str]) -> tuple[Samples, list[Figure]]:
    """The samples of the load, and the figures that come from elsewhere; `notes` gets what could not be measured."""
    samples: Samples = {}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder, bench(Path(folder)) as running:
        if running.nginx is None:
            notes.append(compare.NO_NGINX)
        if running.cores.serving == running.cores.loading:
            notes.append("This machine has one core: the load is in the gateway's way, and no figure means much.")
        if "gateway" in parts:
            samples = compare.compare(running, chosen(asked.scenarios), asked.rounds, asked.seconds)
            figures.append(redis_pair(_redis_pair_us(running)))
        if "memory" in parts:
            print("memory, open streams, start …", file=sys.stderr, flush=True)
            figures += memory_figures(memory.measure(running))
    return samples, figures


def _redis_pair_us(running: Bench) -> float:
    """On a Redis of its own, beside the load's core."""
    server = RedisServer(running.folder / "redis-alone")
    with measuring(), pinned(running.cores.loading):
        server.start()
        try:
            return pair_us(server)
        finally:
            server.kill()


def pool_part(asked: argparse.Namespace, notes: list[str]) -> engine_part.Rounds:
    """The rounds of the pool; none where llama.cpp or the model is not installed."""
    model = Places(ROOT).models / CHAT_MODEL
    if model.exists():
        os.environ.setdefault("SWITCHYARD_TEST_CHAT_GGUF", str(model))
    try:
        return engine_part.run(asked)
    except pytest.skip.Exception as reason:
        notes.append(f"The pool was not measured: {reason}.")
        return {}


def measured(samples: Samples, figures: list[Figure], rounds: engine_part.Rounds, asked: argparse.Namespace) -> list[str]:
    """The tables of the page."""
    sections = []
    judged = [figure.meets(figure.bar) for figure in figures if figure.bar is not None]
    if figures:
        met = f"{sum(met is True for met in judged)} of {len(judged)} bars are met."
        sections += ["## Figures and their bars", met, figures_table(figures)]
    if samples:
        what = [[name, SCENARIOS[name].what, f"`{' '.join(SCENARIOS[name].arguments)}`"] for name in samples]
        head = f"{asked.rounds} interleaved rounds of {asked.seconds:g} s each; medians. CPU is that of the whole process tree."
        sections += ["## Every scenario", head, scenarios_table(samples)]
        sections += [table(["scenario", "what", "load"], what), "\n".join(f"- {line}" for line in errors(samples))]
    if rounds:
        same = f"{asked.threads} thread(s), {engine_part.SLOTS} slots, {asked.tokens} tokens an answer"
        peer = "the binary given" if asked.server else "the one inside the package xllamacpp"
        head = f"SmolLM2-135M-Instruct Q4_1; {same}, {asked.engine_rounds} rounds; llama.cpp's server is {peer}."
        sections += ["## The llama.cpp pool", head, engine_part.rounds_table(rounds)]
    return [section for section in sections if section]


def main() -> int:
    """Measure and write the page; the exit status says whether it could, not whether the bars are met."""
    asked = arguments().parse_args()
    parts, notes = asked.parts.split(","), list[str]()
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])  # what ran, however it was started
    samples: Samples = {}
    others: list[Figure] = []
    try:
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        if {"gateway", "memory"} & set(parts):
            samples, others = gateway_parts(asked, parts, notes)
        rounds = pool_part(asked, notes) if "pool" in parts else {}
    except (Missing, ValueError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    described = table(["measured on", ""], [[name, text] for name, text in machine.describe(command)])
    figures = [*compare.measured_figures(samples, others), *(engine_part.figures(rounds) if rounds else [])]
    text = "\n\n".join([described, *notes, *measured(samples, figures, rounds, asked)])
    write_page(asked.page, text)
    if asked.json is not None:
        compare.write_json(asked.json, figures, samples)
    print(f"{text}\n\nwritten to {asked.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
