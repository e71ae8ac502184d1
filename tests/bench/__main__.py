"""`make bench`: everything that is measured, into docs/benchmarks.md.

    make bench          or, with options: python -m tests.bench [--parts limits,decoders] [-s ...] [--json FILE]

About eight minutes. What cannot be measured here (no nginx, no llama.cpp) is left out, and the page says why. Each part
replaces what the page said of it before, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.bootstrap.places import CHAT_MODEL, Places
from tests.bench import compare, decoders, engine_part, limits_part, machine, memory
from tests.bench.figures import Figure, errors
from tests.bench.figures import memory as memory_figures
from tests.bench.programs import Missing, bench, cores
from tests.bench.report import figures_table, scenarios_table, table, write_page
from tests.bench.rounds import Samples
from tests.bench.scenarios import SCENARIOS, chosen
from tests.gateway_process import ROOT

TITLES = {
    "gateway": "The gateway",
    "limits": "Limits and keys",
    "memory": "Memory and start",
    "pool": "The llama.cpp pool",
    "decoders": "Decoders",
}
PARTS = tuple(TITLES)

#: What was measured of a part: its figures, and its sections as Markdown.
Part = tuple[Sequence[Figure], Sequence[str]]


def arguments() -> argparse.ArgumentParser:
    """Everything has a default, and the defaults are what the page is made with."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    compare.arguments(parser)
    engine_part.arguments(parser)
    parser.set_defaults(scenarios="all")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)} (all)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page to write")
    return parser


def judged(figures: Sequence[Figure]) -> str:
    """The table of figures, and how many reach their bars."""
    verdicts = [figure.meets(figure.bar) for figure in figures if figure.bar is not None]
    met = f"{sum(met is True for met in verdicts)} of {len(verdicts)} bars are met.\n\n" if verdicts else ""
    return met + figures_table(figures)


def gateway_parts(asked: argparse.Namespace, parts: Sequence[str]) -> tuple[Samples, dict[str, Part]]:
    """The samples of the load, and the parts `gateway` and `memory`."""
    samples: Samples = {}
    found: dict[str, Part] = {}
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder, bench(Path(folder)) as running:
        notes = [compare.NO_NGINX] if running.nginx is None else []
        if running.cores.serving == running.cores.loading:
            notes.append("This machine has one core: the load is in the gateway's way, and no figure means much.")
        if "gateway" in parts:
            samples = compare.compare(running, chosen(asked.scenarios), asked.rounds, asked.seconds)
            figures = compare.measured_figures(samples)
            what = [[name, SCENARIOS[name].what, f"`{' '.join(SCENARIOS[name].arguments)}`"] for name in samples]
            head = f"{asked.rounds} interleaved rounds of {asked.seconds:g} s each; medians. CPU is the whole process tree's."
            tables = [judged(figures), head, scenarios_table(samples), table(["scenario", "what", "load"], what)]
            found["gateway"] = figures, [*notes, *tables, "\n".join(f"- {line}" for line in errors(samples))]
        if "memory" in parts:
            print("memory, open streams, start …", file=sys.stderr, flush=True)
            figures = memory_figures(memory.measure(running))
            found["memory"] = figures, [judged(figures)]
    return samples, found


def limits_only() -> Part:
    """Admissions, settlements, keys."""
    print("admissions, settlements, keys …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder:
        costs, embedded, keys = limits_part.run(Path(folder), cores())
    figures = limits_part.figures(costs, embedded, keys)
    return figures, [judged(figures), limits_part.costs_table(costs)]


def pool_part(asked: argparse.Namespace) -> Part:
    """The pool beside llama.cpp's own server; a sentence where llama.cpp or the model is not installed."""
    model = Places(ROOT).models / CHAT_MODEL
    if model.exists():
        os.environ.setdefault("SWITCHYARD_TEST_CHAT_GGUF", str(model))
    try:
        rounds = engine_part.run(asked)
    except pytest.skip.Exception as reason:
        return [], [f"Not measured: {reason}."]
    figures = engine_part.figures(rounds)
    same = f"{asked.threads} thread(s), {engine_part.SLOTS} slots, {asked.tokens} tokens an answer"
    peer = "the binary given" if asked.server else "the one inside the package xllamacpp"
    head = f"SmolLM2-135M-Instruct Q4_1; {same}, {asked.engine_rounds} rounds; llama.cpp's server is {peer}."
    return figures, [judged(figures), head, engine_part.rounds_table(rounds)]


def main() -> int:
    """Measure and write the page; the exit status says whether it could, not whether the bars are met."""
    asked = arguments().parse_args()
    parts = asked.parts.split(",")
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])  # what ran, however it was started
    samples: Samples = {}
    found: dict[str, Part] = {}
    try:
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        if {"gateway", "memory"} & set(parts):
            samples, found = gateway_parts(asked, parts)
        if "limits" in parts:
            found["limits"] = limits_only()
        if "pool" in parts:
            found["pool"] = pool_part(asked)
        if "decoders" in parts:
            found["decoders"] = ([], decoders.tables())
    except (Missing, ValueError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    described = table(["measured on", ""], [[name, text] for name, text in machine.describe(command)])
    texts = {
        part: "\n\n".join([f"## {TITLES[part]}", *(text for text in found[part][1] if text), described])
        for part in PARTS
        if part in found
    }
    write_page(asked.page, texts)
    if asked.json is not None:
        compare.write_json(asked.json, [figure for figures, _ in found.values() for figure in figures], samples)
    print("\n\n".join([*texts.values(), f"written to {asked.page}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
