"""Draw the chart of README and docs from the committed results.

    python -m benchmarks.chart

The background is transparent, and the colours suit light and dark pages.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.cases import OURS, THEIRS
from benchmarks.measured import RESULTS, load
from benchmarks.table import ROOT

CHART = ROOT / "docs" / "benchmarks.svg"
INK = "#7d8590"
COLOURS = {OURS: "#2f81f7", THEIRS: "#9e9e9e"}
FONT = 9


def draw(results: Path, chart: Path) -> None:
    """Draw the wall time of each client relative to bentoml's."""
    rows = [
        (f"{result.title}: {way}", result.median(way, OURS, "wall"), result.median(way, THEIRS, "wall"))
        for result in load(results)
        for way in result.directions
        if way in {"push", "pull"}
    ]
    rows.reverse()
    settings = {"svg.hashsalt": "async-bento", "svg.fonttype": "none", "font.size": FONT, "text.color": INK}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8, 0.42 * len(rows) + 1.0))
        axes = figure.add_subplot()
        for height, (_, ours, theirs) in enumerate(rows):
            for peer, seconds, offset in ((THEIRS, theirs, -0.2), (OURS, ours, 0.2)):
                length = seconds / theirs
                axes.barh(height + offset, length, 0.36, color=COLOURS[peer], label=peer if not height else None)
                axes.text(length + 0.008, height + offset, f"{seconds:.2f} s", va="center", color=INK)
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
        axes.set_xlabel("wall time, bentoml 1.4.39 = 1 (less is better)", color=INK)
        axes.set_xlim(0, max(1.12, *(ours / theirs + 0.12 for _, ours, theirs in rows)))
        axes.tick_params(colors=INK, labelcolor=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, labelcolor=INK)
        figure.savefig(chart, transparent=True, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the directory of the results")
    parser.add_argument("--chart", type=Path, default=CHART)
    options = parser.parse_args()
    draw(options.results, options.chart)


if __name__ == "__main__":
    main()
