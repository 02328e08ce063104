"""Draw the charts of README and docs from the committed results.

    python -m benchmarks.chart

The background is transparent. The colours of a chart are those of the light or the dark scheme of the page.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.cases import OURS, THEIRS, UNVERIFIED
from benchmarks.measured import FREE_TITLES, RESULTS, load
from benchmarks.table import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measured import Result

CHART = "benchmarks.svg"
FREE_CHART = "free.svg"
INK, BLUE, PALE, GRAY = "#1f2328", "#0969da", "#54aeff", "#b3b9c0"
DARK = {INK: "#d1d7e0", BLUE: "#4493f8", PALE: "#1f4f99", GRAY: "#656c76"}
"""The colours of the dark scheme, by those of the light one."""

COLOURS = {OURS: BLUE, UNVERIFIED: PALE}
"""The colours of peers; gray by default."""

SETTINGS = {
    "svg.hashsalt": "async-bento",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "xtick.color": INK,
    "ytick.color": INK,
}


def relative(results: Sequence[Result]) -> Figure:
    """Draw the wall time of each client relative to bentoml's."""
    rows = [
        (f"{result.title}: {way}", result.median(way, OURS, "wall"), result.median(way, THEIRS, "wall"))
        for result in results
        for way in result.directions
        if way in {"push", "pull"}
    ]
    rows.reverse()
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.0))
    axes = figure.add_subplot()
    for height, (_, ours, theirs) in enumerate(rows):
        for peer, seconds, offset in ((THEIRS, theirs, -0.2), (OURS, ours, 0.2)):
            length, colour = seconds / theirs, COLOURS.get(peer, GRAY)
            axes.barh(height + offset, length, 0.36, color=colour, label=peer if not height else None)
            axes.text(length + 0.008, height + offset, f"{seconds:.2f} s", va="center")
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_xlabel("wall time, bentoml 1.4.39 = 1 (less is better)")
    axes.set_xlim(0, max(1.12, *(ours / theirs + 0.12 for _, ours, theirs in rows)))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    return figure


def absolute(results: Sequence[Result]) -> Figure:
    """Draw the wall time of each peer, with a panel for each case and direction."""
    panels = [(result, way) for result in results for way in result.directions if way in {"push", "pull"}]
    lines = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 2.4 * lines), layout="constrained")
    for place, (result, way) in enumerate(panels, start=1):
        _panel(figure.add_subplot(lines, 2, place), result, way)
    return figure


def _panel(axes: Any, result: Result, way: str) -> None:
    """Draw the peers of a direction, the fastest one on top."""
    walls = sorted(((result.median(way, peer, "wall"), peer) for peer in result.peers(way)), reverse=True)
    bars = axes.barh(
        [peer for _, peer in walls],
        [wall for wall, _ in walls],
        0.72,
        color=[COLOURS.get(peer, GRAY) for _, peer in walls],
    )
    axes.bar_label(bars, [f"{wall:.2f}" for wall, _ in walls], padding=3)
    axes.set_xmargin(0.12)
    axes.set_title(f"{result.title}: {way}, wall s")


def save(figure: Figure, path: Path) -> None:
    """Write a figure with the colours of both schemes."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    path.write_text(with_schemes(buffer.getvalue()))


def with_schemes(svg: str) -> str:
    """Replace the colours by variables, which a style sheet sets for each scheme."""
    names = {light: f"--colour-{number}" for number, light in enumerate(DARK)}
    for light, name in names.items():
        svg = svg.replace(f": {light}", f": var({name})")
    bright = "; ".join(f"{name}: {light}" for light, name in names.items())
    dark = "; ".join(f"{name}: {DARK[light]}" for light, name in names.items())
    style = f"<style>svg {{ {bright} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    return svg.replace("<defs>", f"{style}\n <defs>", 1)


def main() -> None:
    """Draw the charts of all cases that were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the directory of the results")
    parser.add_argument("--charts", type=Path, default=ROOT / "docs", help="the directory of the charts")
    options = parser.parse_args()
    with mpl.rc_context(SETTINGS):
        if results := load(options.results):
            save(relative(results), options.charts / CHART)
        if results := load(options.results, FREE_TITLES):
            save(absolute(results), options.charts / FREE_CHART)


if __name__ == "__main__":
    main()
