"""Read the benchmark results."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.cases import CASES, FREE_CASES, PEERS, START, START_TITLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RESULTS = Path(__file__).with_name("results")
"""The committed results."""

TITLES = {case.name: case.title for case in CASES} | {START: START_TITLE}

FREE_TITLES = {case.name: case.title for case in FREE_CASES}

SCALE, WHERE, RECORDS, REMOTE = "scale", "where", "records", "remote"
"""The files of `benchmarks.scale`, `benchmarks.where`, `benchmarks.records` and `benchmarks.remote`."""


@dataclass(frozen=True)
class Goal:
    """A target and the measured ratio."""

    title: str
    direction: str
    measure: str
    peer: str
    against: str
    ratio: float
    at_most: float

    @property
    def is_met(self) -> bool:
        """Whether the ratio, rounded to two digits, meets the target."""
        return round(self.ratio, 2) <= self.at_most


class Result:
    """The measurements of one case, read from its file."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.title = cast("str", content["title"])
        self._rounds = cast("list[dict[str, Any]]", content["rounds"])

    @property
    def directions(self) -> list[str]:
        """The measured directions, in order."""
        return list(dict.fromkeys(each["direction"] for each in self._rounds))

    def peers(self, direction: str) -> list[str]:
        """Return the peers of a direction."""
        found = {each["peer"] for each in self._rounds if each["direction"] == direction}
        return [peer for peer in PEERS if peer in found]

    def values(self, direction: str, peer: str, measure: str) -> list[float]:
        """Return a measure of all rounds."""
        return [each[measure] for each in self._rounds if each["direction"] == direction and each["peer"] == peer]

    def median(self, direction: str, peer: str, measure: str) -> float:
        """Return the median of a measure."""
        return statistics.median(self.values(direction, peer, measure))

    def peak(self, direction: str, peer: str, measure: str) -> float:
        """Return the maximum of a measure over all rounds."""
        return max(self.values(direction, peer, measure))

    def goals(self) -> Iterator[Goal]:
        """Yield each target with the measured ratio."""
        for target in self.content["targets"]:
            direction, measure, peer, against = (target[key] for key in ("direction", "measure", "peer", "against"))
            if not {peer, against} <= {*self.peers(direction)}:  # a quick check of some peers
                continue
            ratio = self.median(direction, peer, measure) / self.median(direction, against, measure)
            yield Goal(self.title, direction, measure, peer, against, ratio, target["at_most"])

    def above_import(self, peer: str) -> float | None:
        """Return the peak memory above that of the imports, in bytes, if it was measured."""
        floor = self.content.get("floors", {}).get(peer)
        peaks = [self.peak(direction, peer, "peak_memory") for direction in self.directions]
        return max(peaks) - floor if floor else None


def load(directory: Path = RESULTS, titles: Mapping[str, str] = TITLES) -> list[Result]:
    """Read the results of all measured cases, in the order of `cases.py`."""
    paths = [directory / f"{name}.json" for name in titles]
    return [Result(json.loads(path.read_text())) for path in paths if path.exists()]


def load_one(name: str, directory: Path = RESULTS) -> dict[str, Any]:
    """Read the results of `benchmarks.scale` or `benchmarks.where`; empty if there are none."""
    path = directory / f"{name}.json"
    return cast("dict[str, Any]", json.loads(path.read_text())) if path.exists() else {}
