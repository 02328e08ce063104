"""Measure copies between two registries, and lists of remote tars, against rclone.

    python -m benchmarks.remote
    python -m benchmarks.remote --rounds 1 --size-scale .05   # a quick check

Each registry has a SeaweedFS of its own. In each round of a copy, async-bento pushes the item to the target, pulls it
from the source and copies it from the source to the target, and rclone copies the same object, in changing order. The
SHA-256 of each file is compared. A warm-up round with a sixteenth of the bytes is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cases import REMOTE_CASES
from benchmarks.items import Items
from benchmarks.measure import take
from benchmarks.measured import REMOTE, RESULTS, load_one
from benchmarks.peers import bare_environment
from benchmarks.run import ROUNDS, WARM_UP, directory_for, given, keep, machine, turned
from benchmarks.servers import BIN, BUCKET, credentials, site

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.measure import Taken
    from benchmarks.servers import Site


@dataclass(frozen=True)
class Round:
    """A round of a case: the source has version `v1` of the item; the target has nothing."""

    items: Items
    source: Site
    target: Site
    directory: Path

    def run(self, peers: list[str]) -> Iterator[tuple[str, Taken]]:
        """Run the peers in order."""
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            self._lay_out(Path(name), "v1")
            self._take(self._ours("push", "v1", "--context", "source"), Path(name))
        for peer in peers:
            with directory_for(self.items.case, self.directory) as home:
                yield peer, self._run(peer, home)

    def _run(self, peer: str, home: Path) -> Taken:
        items, rclone, key = self.items, str(BIN / "rclone"), self._key(self.source, "v1")
        there = f"source:{BUCKET}/{key}"
        match peer:
            case "push":
                self._lay_out(home, "pushed")
                taken = self._take(self._ours("push", "pushed", "--context", "target"), home)
                self._check_object(self._key(self.target, "pushed"))
            case "pull":
                taken = self._take(self._ours("pull", "v1", "--context", "source"), home)
                items.check_store(home / "bentoml", "v1")
            case "copy":
                taken = self._take(self._ours("copy", "v1", "--from", "source", "--to", "target"), home)
                self._check_object(self._key(self.target, "v1"))
            case "rclone copyto":
                taken = self._take([rclone, "copyto", there, f"target:{BUCKET}/copied.tar"], home)
                self._check_object("copied.tar")
            case "ls":
                taken = self._take(self._ours("ls", "v1", "--context", "source", "--json"), home)
            case "rclone archive list":
                taken = self._take([rclone, "archive", "list", "--long", there], home)
            case _:
                taken = self._take(["bash", "-c", 'set -o pipefail; "$1" cat "$2" | tar tv', "", rclone, there], home)
        return taken

    def _ours(self, command: str, version: str, *options: str) -> list[str]:
        return [str(BIN / "async-bento"), "models", command, f"{self.items.name}:{version}", *options]

    def _lay_out(self, home: Path, version: str) -> None:
        self.items.lay_out(home / "bentoml", version)

    def _key(self, of: Site, version: str) -> str:
        ((_, prefix),) = self.items.prefixes(version)
        (found,) = of.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
        return str(found["Key"])

    def _check_object(self, key: str) -> None:
        self.items.check_tar(self.target.client.get_object(Bucket=BUCKET, Key=key)["Body"])

    def _take(self, command: list[str], home: Path) -> Taken:
        os.sync()
        return take(command, self._environment(home), [home], self.directory / "log")

    def _environment(self, home: Path) -> Mapping[str, str]:
        """The environment of a command; both registries are contexts of async-bento and remotes of rclone."""
        variables = bare_environment(home) | credentials()
        sites = {"source": self.source, "target": self.target}
        for name, each in sites.items():
            remote = {"TYPE": "s3", "PROVIDER": "SeaweedFS", "ENDPOINT": each.s3, "ENV_AUTH": "true"}
            variables |= {f"RCLONE_CONFIG_{name}_{key}".upper(): value for key, value in remote.items()}
        contexts = [{"name": name, "endpoint": each.endpoint, "api_token": each.token} for name, each in sites.items()]
        file = home / "bentoml" / ".yatai.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"contexts": contexts, "current_context_name": "source"}))  # which is YAML, too
        file.chmod(0o600)
        return variables


def run_round(items: Items, scratch: Path, peers: list[str]) -> list[dict[str, Any]]:
    """Start the servers, run the peers in order, and return their measurements."""
    with directory_for(items.case, scratch) as directory, ExitStack() as stack:

        def start(name: str) -> Site:
            (directory / name).mkdir()
            return stack.enter_context(site(directory / name, items.case.link, items.case.transmission))

        one = Round(items, start("source"), start("target"), directory)
        return [{"peer": peer, **taken.as_json()} for peer, taken in one.run(peers)]


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in REMOTE_CASES]
    parser.add_argument("--case", action="append", choices=names, help="run this case only; can be repeated")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size-scale", type=float, default=1.0, help="the share of the bytes, for a quick check")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="the directory for the data; needs 10 GB")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends all started processes
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    cases = [case for case in REMOTE_CASES if case.name in (options.case or names)]
    taken: list[dict[str, Any]] = []
    for case in (each.scaled(options.size_scale) for each in cases):
        print(case.title, flush=True)
        with tempfile.TemporaryDirectory(dir=options.scratch) as name:
            run_round(Items(case.scaled(WARM_UP), Path(tempfile.mkdtemp(dir=name))), Path(name), list(case.peers))
            items = Items(case, Path(tempfile.mkdtemp(dir=name)))
            for number in range(1, options.rounds + 1):
                load = round(os.getloadavg()[0], 2)
                for each in run_round(items, Path(name), turned(case.peers, number)):
                    print(f"  {number} {each['peer']:20} {each['wall']:7.2f} s  CPU {each['cpu']:6.2f} s", flush=True)
                    taken.append({"title": case.title, "round": number, "load_before": load, **each})
    titles = {case.title for case in cases}
    others = [each for each in load_one(REMOTE, options.results).get("taken", []) if each["title"] not in titles]
    order = [case.title for case in REMOTE_CASES]
    everything = sorted(others + taken, key=lambda each: order.index(each["title"]))
    facts = {"command": given("benchmarks.remote"), "began": began, "machine": machine(), "taken": everything}
    if options.rounds == ROUNDS and options.size_scale == 1:
        keep(options.results, REMOTE, facts)


if __name__ == "__main__":
    main()
