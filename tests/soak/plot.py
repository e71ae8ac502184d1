"""The soak's picture: memory, descriptors, series and open requests over time (matplotlib, extra `deploy`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.soak.judge import MIB, WARM_UP, Sample


def plotted(samples: Sequence[Sample], file: Path) -> None:
    """Write the picture; without matplotlib there is none."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, figsize=(9, 8), sharex=True)
    at = [one.at_s / 60 for one in samples]
    rows = (
        ("resident memory, MiB", [one.resident / MIB for one in samples]),
        ("file descriptors", [one.descriptors for one in samples]),
        ("metric series", [one.series for one in samples]),
        ("open requests", [one.open_requests for one in samples]),
    )
    for axis, (title, values) in zip(axes, rows, strict=True):
        axis.plot(at, values, linewidth=1)
        axis.axvspan(at[0], at[0] + WARM_UP * (at[-1] - at[0]), alpha=0.08)
        axis.set_ylim(0, max(values) * 1.15 or 1)
        axis.set_title(title, loc="left", fontsize=9)
    axes[-1].set_xlabel("minutes; shaded: warm-up")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
