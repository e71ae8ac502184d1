"""Figures and samples as Markdown, and the page docs/benchmarks.md around them. Pure but for `write_page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.figures import Figure, cpu_us, loaded, median, ratio
from tests.bench.rounds import Samples
from tests.bench.scenarios import SCENARIOS


def begin(part: str) -> str:
    """The line before what is measured of a part."""
    return f"<!-- {part}: written by `make bench`; what is outside of such two lines is kept -->"


def end(part: str) -> str:
    """The line after it."""
    return f"<!-- end of {part} -->"


def number(value: float | None, places: int | None = None) -> str:
    """Three significant figures or so, as a person reads it; `-` for None."""
    if value is None:
        return "-"
    if places is None:
        places = 0 if abs(value) >= 100 else 1 if abs(value) >= 20 else 2
    return f"{value:,.{places}f}"


def _limit(figure: Figure, limit: float | None) -> str:
    if limit is None:
        return "-"
    return f"{'≤' if figure.better == 'less' else '≥'} {limit:,g}"


def _verdict(met: bool | None, asked: bool) -> str:
    if not asked:
        return "-"
    return {True: "met", False: "**missed**", None: "not measured"}[met]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figures_table(figures: Sequence[Figure]) -> str:
    """One row a figure: measured, bar, target, and whether they are met."""
    rows = [
        [
            figure.name, f"{number(figure.value)} {figure.unit}" if figure.value is not None else "-", figure.note or "-",
            _limit(figure, figure.bar), _verdict(figure.meets(figure.bar), figure.bar is not None),
            _limit(figure, figure.target), _verdict(figure.meets(figure.target), figure.target is not None),
        ]
        for figure in figures
    ]  # fmt: skip
    return table(["figure", "measured", "made of", "bar", "", "target", ""], rows)


def scenarios_table(samples: Samples) -> str:
    """One row per scenario and target with what was measured of it, medians over the rounds."""
    rows = []
    for scenario, targets in samples.items():
        for target, rounds in targets.items():
            own, anchor = cpu_us(samples, scenario, target), cpu_us(samples, scenario, "nginx")
            unit = SCENARIOS[scenario].unit
            per_s = loaded(samples, scenario, target, "chunks_s" if unit == "chunk" else "rps")
            times = [loaded(samples, scenario, target, f) for f in ("p50_us", "p99_us", "ttft_p50_us", "gap_p99_us")]
            row = [f"{scenario}, {target}", f"{number(per_s)} {unit}s/s"]
            # The mock's own CPU is nobody's figure.
            row += ["-", "-"] if target == "direct" else [number(own), number(ratio(own, anchor))]
            row += [number(t / 1000) if t else "-" for t in times]
            row += [number(median(rounds, lambda s: s.busy), 2) if target != "direct" else "-"]
            row += [number(loaded(samples, scenario, target, "load_cpu"), 2), str(sum(s.load["errors"] for s in rounds))]
            rows.append(row)
    head = ["scenario, target", "rate", "CPU µs", "x nginx", "p50 ms", "p99 ms", "TTFT p50 ms", "gap p99 ms"]
    return table([*head, "core used", "load's core used", "errors"], rows)


def page(text: str, part: str, measured: str) -> str:
    """The page with what is measured of one part replaced; a page without that part gets it at its end."""
    before, found, rest = text.partition(begin(part))
    after = rest.partition(end(part))[2] if found else "\n"
    return f"{before.rstrip()}\n\n{begin(part)}\n\n{measured.strip()}\n\n{end(part)}{after}".lstrip("\n")


def write_page(file: Path, measured: Mapping[str, str]) -> None:
    """Replace the parts of a file that were measured; it is made when it does not exist."""
    text = file.read_text() if file.exists() else "# Benchmarks\n"
    for part, of_part in measured.items():
        text = page(text, part, of_part)
    file.write_text(text)
