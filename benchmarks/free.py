"""Measure async-bento on a storage that costs next to nothing, nginx: what remains is the cost of the client.

    python -m benchmarks.free                                              # everything: about 15 minutes on two cores
    python -m benchmarks.free --case http-one-file --peers ours,loop-md5 --direction push --rounds 3

Everything is in memory (/dev/shm): the files to push, the bodies in nginx and the pulled files. All peers run
in each round, in rotating order. The storage counts the bytes that it receives; the SHA-256 of each pulled
file is compared. Peers that hash each part with MD5 are measured with a counter of the hashed bytes, and the run fails
if they are fewer than the sent bytes. A warm-up round with a sixteenth of the bytes is not counted.
"""

from __future__ import annotations

import argparse
import os
import signal
import struct
import sys
import tarfile
import tempfile
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.cases import (
    FREE_CASES,
    HASHING,
    LIBRARIES,
    LOOP,
    LOOP_MD5,
    LOOP_SENDFILE,
    LOOP_SENDFILE_MD5,
    LOOPS,
    OURS,
    TAR_CURL,
    THEIRS,
    UNVERIFIED,
)
from benchmarks.free_servers import free_site, nginx_version
from benchmarks.items import Items
from benchmarks.measure import take
from benchmarks.measured import FREE_TITLES, RESULTS, load
from benchmarks.peers import Errand, command, environment, is_client
from benchmarks.run import ROUNDS, STARTS, WARM_UP, given, keep, machine, turned
from benchmarks.table import free_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.cases import Case, Direction
    from benchmarks.free_servers import Received, Storage
    from benchmarks.measure import Taken
    from benchmarks.servers import Site

SHORT_NAMES = {
    "ours": OURS,
    "ours-unverified": UNVERIFIED,
    "bentoml": THEIRS,
    "loop-md5": LOOP_MD5,
    "loop": LOOP,
    "loop-sendfile-md5": LOOP_SENDFILE_MD5,
    "loop-sendfile": LOOP_SENDFILE,
    "tar-curl": TAR_CURL,
    "curl": "curl",
    "rclone": "rclone",
    "obstore": "obstore",
    "libraries": LIBRARIES,
}
HASHED = Path(__file__).with_name("hashed")
"""The directory whose `sitecustomize.py` counts the hashed bytes."""

READY = "ready"
"""The version pulled by all peers."""


class NotHashedError(Exception):
    """A peer that should hash all bytes of a push hashed fewer."""


class Turns:
    """The runs of the peers on running servers."""

    def __init__(self, items: Items, directory: Path, here: Site, storage: Storage) -> None:
        self._items = items
        self._directory = directory
        self._site = here
        self._storage = storage
        self._key = f"models/{items.name}/{READY}.tar"
        self._turn = 0

    def prepare(self) -> None:
        """Make the tar pulled by all peers, and its record."""
        with self._home() as name:
            errand = self._errand(OURS, "push", READY, Path(name))
            self._items.lay_out(errand.home / "bentoml", READY)
            with tarfile.open(self._tar, "w:") as tar:
                tar.add(errand.directory, "./")
            self._take(OURS, errand)

    @property
    def _tar(self) -> Path:
        return self._storage.path(self._key)

    def _home(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(dir=self._directory)

    def _errand(self, peer: str, direction: Direction, version: str, home: Path) -> Errand:
        push = direction == "push"
        tar = self._tar if push else home / "ready.tar"
        key = f"{version}.tar" if push else self._key
        return Errand(direction, self._items.kind, f"{self._items.name}:{version}", key, tar, home, self._site)

    def push(self, peer: str) -> Taken:
        """Push a new version."""
        self._turn += 1
        version = f"v{self._turn}"
        with self._home() as name:
            home = Path(name)
            errand = self._errand(peer, "push", version, home)
            if is_client(peer):
                self._items.lay_out(home / "bentoml", version)
            since = self._storage.requests()
            taken = self._take(peer, errand)
            received = self._storage.received(since, self._items.total)
            if peer in HASHING:
                check_hashed(home / "hashed", received)
        return taken

    def pull(self, peer: str) -> Taken:
        """Pull the version that is ready."""
        with self._home() as name:
            errand = self._errand(peer, "pull", READY, Path(name))
            taken = self._take(peer, errand)
            if is_client(peer):
                self._items.check_store(errand.home / "bentoml", READY)
            else:
                with errand.tar.open("rb") as file:
                    self._items.check_tar(file)
        return taken

    def list(self, peer: str) -> Taken:
        """List the bentos of the registry, which has none."""
        with self._home() as name:
            return self._take(peer, self._errand(peer, "list", READY, Path(name)))

    def _take(self, peer: str, errand: Errand) -> Taken:
        variables = environment(peer, errand)
        if peer in HASHING and errand.direction == "push":
            counts = errand.home / "hashed"
            counts.mkdir()
            variables["BENCHMARKS_HASHED"] = str(counts)
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HASHED), variables.get("PYTHONPATH")]))
        # Disk usage is not sampled here: a walk through many files would take CPU from the measured process.
        temporary = errand.home / "tmp"
        return take(command(peer, errand), variables, [temporary], self._directory / "log")


def check_hashed(counts: Path, received: Received) -> None:
    """Raise NotHashedError unless the processes of a peer hashed all bytes that they sent."""
    hashed = sum(struct.unpack("Q", path.read_bytes())[0] for path in counts.iterdir())
    if hashed < received.announced or not received.announced:
        raise NotHashedError(f"{hashed} bytes were hashed, and {received.announced} were sent")


def run_case(case: Case, options: argparse.Namespace, description: dict[str, Any], scratch: Path) -> None:
    """Run all rounds of a case and write the results after each round."""
    print(f"{case.name}: {case.title}", flush=True)
    case = case.scaled(options.size_scale)
    rounds: list[dict[str, Any]] = []
    for _ in run_rounds(case.scaled(WARM_UP), range(1), scratch):
        pass
    count = options.rounds * (STARTS if "list" in case.directions else 1)
    for found in run_rounds(case, range(1, count + 1), scratch):
        rounds += found
        keep(options.results, case.name, {**asdict(case), **description, "rounds": rounds})


def run_rounds(case: Case, numbers: Sequence[int], scratch: Path) -> Iterator[list[dict[str, Any]]]:
    """Run rounds of a case and yield the measurements of each."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        directory = Path(name)
        (directory / "items").mkdir()
        (directory / "nginx").mkdir()
        with free_site(directory / "nginx", tls=case.tls) as (here, storage):
            turns = Turns(Items(case, directory / "items"), directory, here, storage)
            turns.prepare()
            for number in numbers:
                yield run_round(case, number, turns)


def run_round(case: Case, number: int, turns: Turns) -> list[dict[str, Any]]:
    """Let each peer push, then each peer pull; or each peer list."""
    load = round(os.getloadavg()[0], 2)
    found: list[dict[str, Any]] = []
    for direction in case.directions:
        for peer in turned(case.peers, number):
            if direction == "pull" and (peer in LOOPS or peer == UNVERIFIED):  # which are for pushes only
                continue
            taken = {"push": turns.push, "pull": turns.pull, "list": turns.list}[direction](peer)
            about = {"round": number, "load_before": load, "direction": direction, "peer": peer}
            found.append({**about, **taken.as_json()})
            if number:
                print(f"  {number} {direction} {peer:24} {taken.wall:6.2f} s  CPU {taken.cpu:6.2f} s", flush=True)
    return found


def main() -> None:
    """Run the selected cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in FREE_CASES]
    parser.add_argument("--case", action="append", choices=names, help="run this case only; can be repeated")
    parser.add_argument("--peers", help=f"run these peers only, separated by commas: {', '.join(SHORT_NAMES)}")
    parser.add_argument("--direction", choices=("push", "pull"), help="run this direction only")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size-scale", type=float, default=1.0, help="the share of the bytes, for a quick check")
    parser.add_argument(
        "--results",
        type=Path,
        help="the output directory; default: benchmarks/results, or build/benchmarks for a quick check",
    )
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"), help="the directory for the data, in memory")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends all started processes
    is_quick = options.rounds < ROUNDS or options.size_scale != 1 or options.peers or options.direction
    options.results = options.results or (Path("build/benchmarks") if is_quick else RESULTS)
    description = {
        "command": given("benchmarks.free"),
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "size_scale": options.size_scale,
        "machine": {**machine(), "nginx": nginx_version()},
    }
    wanted = cast("list[str]", options.case) or names
    peers = [SHORT_NAMES[name] for name in options.peers.split(",")] if options.peers else None
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        for case in FREE_CASES:
            if case.name in wanted:
                directions = (options.direction,) if options.direction else case.directions
                chosen = tuple(peers or case.peers)
                run_case(replace(case, directions=directions, peers=chosen), options, description, Path(name))
    found = load(options.results, {name: title for name, title in FREE_TITLES.items() if name in wanted})
    print("\n" + free_tables(found))


if __name__ == "__main__":
    main()
