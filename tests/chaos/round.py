"""A case, played: what is called, what goes wrong meanwhile, and whether the call's word was true."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any

from tests.builders import make_bento, make_model
from tests.chaos.case import MiB, Moment, Turn
from tests.chaos.disk import Disk
from tests.chaos.items import Counts, Item
from tests.chaos.proxy import ChaosProxy, Upstream, describe
from tests.chaos.silence import SilentProxy
from tests.chaos.truth import Record, Tree, difference, record_of, tree_of
from tests.chaos.zygote import HANGS_AFTER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from pathlib import Path

    from tests.chaos.case import Case
    from tests.chaos.processes import Process, Zygote

NAME = "thing"
DISK = 160 * MiB

BUILT = {"older": "2024-01-01 00:00:00.000000", "now": "2024-05-06 07:08:09.000010"}
TIMEOUTS = {"connect": 2.0, "stall": 1.0, "api": 2.0, "complete": 3.0}
RETRY = {"attempts": 4, "wait_initial": 0.02, "wait_max": 0.1, "retry_after_cap": 5.0}


_SIGNALS = {int(number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)}
"""What may end a client: the last two before the client has a handler, or after the call."""


def _way(turn: Turn | None) -> str:
    """By what a client pushes or pulls."""
    if turn and turn.terminate:
        return "command"
    return "forked" if turn and turn.fork else "call"


@dataclass
class Round:
    """A case on disks of its own, with a registry and a proxy of its own.

    Attributes:
        complaints: What was not as it should be.
        story: What happened, for whoever looks into a complaint.
    """

    case: Case
    zygote: Zygote
    work: Path
    counts: Counts
    own_disks: bool
    complaints: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    _registry: Process | None = None
    _killed: Process | None = None

    async def play(self) -> None:
        """Play the case."""
        size = DISK if self.own_disks else None
        self.client_disk = Disk(self.work / "client", size)
        self.registry_disk = Disk(self.work / "registry", size)
        self.author, self.puller = self.client_disk.path / "author", self.client_disk.path / "puller"
        kind = self.case.kind
        self.main = Item(kind, NAME, f"v{self.case.number}")
        self.items = [self.main, *(Item("model", f"part{n}", "m1") for n in range(self.case.models))]
        self.before: dict[Item, list[Tree | None]] = {item: [None] for item in self.items}
        try:
            async with (
                ChaosProxy(Upstream()) as self.proxy,
                SilentProxy(*self.proxy.address, self.proxy.counts) as self.silent,
            ):
                try:
                    await self._start_registry()
                    await self._push()
                    await self._pull()
                    await self._see_registry_tidy()
                finally:
                    self.counts.faults.update(self.proxy.counts)
                    await self._stop_registry()
        finally:
            self.client_disk.unmount()
            self.registry_disk.unmount()
            await asyncio.to_thread(shutil.rmtree, self.work, ignore_errors=True)

    # The push

    async def _push(self) -> None:
        case = self.case
        forced = case.pushed_before
        if forced:
            await asyncio.to_thread(self._make, self.author, "before")
            await self._calm("push", force=True)
        await asyncio.to_thread(self._make, self.author, "now")
        for turn in case.pushes:
            word = await self._call("push", turn, force=forced)
            await self._check_push(word["word"])
            if word["word"] == "interrupted" and turn.is_calm:
                await self._see_failure_reported()
            if word["word"] == "done":
                self._see_scratch_empty(self.author)
                break
            if case.changed:
                forced = True  # or a push that has only lost its answer has nothing more to do
                await asyncio.to_thread(self._make, self.author, "changed")
                self.counts.others["files changed before the push was repeated"] += 1
        else:
            await self._calm("push", force=forced)
            self._see_scratch_empty(self.author)
        self.pushed = await asyncio.to_thread(self._trees, self.author)

    async def _check_push(self, word: str) -> None:
        """Compare a push's word with what the registry has."""
        here = await asyncio.to_thread(self._trees, self.author)
        for item, tree in here.items():
            record = await self._record(item)
            if word == "done" and record.status != "success":
                self._complain(f"a push was done, and {item} is {record.status}")
            if record.status != "success":
                continue
            if record.broken:
                self._complain(f"{item} is a success, and its tar is broken: {record.broken}")
                continue
            known = [tree] if word == "done" else [tree, *self.before[item]]
            if not any(record.tree is not None and record.tree == one for one in known):
                why = difference(tree, record.tree)
                self._complain(f"{item} is a success after a push was {word}, with other bytes: {why}")
            if word == "error" and item == self.main and record.tree == tree and tree not in self.before[item]:
                self._see_answer_lost(item)
            if record.tree == tree and tree not in self.before[item]:
                self.before[item].append(tree)

    async def _see_failure_reported(self) -> None:
        """See that the registry knows of an interrupted push."""
        record = await self._record(self.main)
        if record.status in {"uploading", "pending"}:
            self._complain(f"a push was interrupted, and {self.main} is {record.status}")

    def _see_answer_lost(self, item: Item) -> None:
        """See that a push which failed and is a success all the same had asked for it and heard no answer."""
        asked = [
            request
            for request in self.proxy.requests
            if (
                request.forwarded
                and (
                    request.path.endswith("/upload")
                    or (request.path.endswith("finish_upload") and b"success" in request.body)
                )
            )
            # Of a forced push through the registry, which records the success before the record is updated.
            or (request.method == "PATCH" and request.path.endswith(f"/{item.kind}s/{item.version}"))
        ]
        if all(request.answered and request.status == HTTPStatus.OK for request in asked):
            self._complain(f"a push failed, {item} is a success, and no answer to that was lost")
        else:
            self.counts.others["pushes that failed with the last answer alone lost"] += 1

    # The pull

    async def _pull(self) -> None:
        case = self.case
        tag, forced = f"{NAME}:{self.main.version}", False
        latest: str | None = None
        if case.pulled_before == "same tag":
            forced, latest = True, self.main.version
            await asyncio.to_thread(self._make, self.puller, "local")
        elif case.pulled_before == "older version":
            tag, latest = NAME, "older"
            older = Item(self.main.kind, NAME, "older")
            await asyncio.to_thread(self._make_one, older, self.puller, "older", [1000])
        if latest:
            (self.puller / f"{case.kind}s" / NAME / "latest").write_text(latest)
        self.latest = {latest}
        self.stood = await asyncio.to_thread(self._trees, self.puller)
        for turn in case.pulls:
            word = await self._call("pull", turn, tag, force=forced)
            await self._check_pull(word["word"])
            if word["word"] == "done":
                break
            if case.replaced:
                await asyncio.to_thread(self._make, self.author, "replaced")
                await self._calm("push", force=True)
                self.pushed = await asyncio.to_thread(self._trees, self.author)
                self.counts.others["item pushed anew before the pull was repeated"] += 1
                # What a killed pull had brought is there, and is not as new: only by force it is replaced.
                forced = True
        else:
            await self._calm("pull", tag, force=forced)
            await self._check_pull("done")
        self._see_scratch_empty(self.puller)
        self._see_store_tidy()

    async def _check_pull(self, word: str) -> None:
        """Compare a pull's word with what the store has."""
        found = await asyncio.to_thread(self._trees, self.puller)
        for item, tree in found.items():
            # Of what was killed after the commit, and of models that came before their bento failed, all is there.
            came = difference(tree, self.pushed[item]) == "" and tree is not None
            if word == "done" and not came:
                self._complain(f"a pull was done, and {item} is not: {difference(tree, self.pushed[item])}")
            if word != "done" and not came and tree != self.stood[item]:
                self._complain(f"a pull was {word}, and left of {item}: {difference(tree, self.stood[item])}")
            if word == "error" and item == self.main and came and tree != self.stood[item] and len(self.items) == 1:
                self._complain(f"a pull failed, and {item} is there, whole")
            if came:
                self.stood[item] = tree
                self.latest |= {item.version} if item == self.main else set()
        latest = self.puller / f"{self.case.kind}s" / NAME / "latest"
        says = latest.read_text() if latest.exists() else None
        wanted = {self.main.version} if word == "done" else self.latest
        if says not in wanted:
            self._complain(f"a pull was {word}, and `latest` says {says!r} instead of {wanted}")

    # One call

    async def _calm(self, direction: str, tag: str | None = None, **options: object) -> None:
        """A call that nothing disturbs, which must be done."""
        word = await self._call(direction, None, tag, **options)
        if word["word"] != "done":
            self._complain(f"a {direction} that nothing disturbed was {word}")
        self.counts.others[f"{direction}es without a fault".replace("pulles", "pulls")] += 1
        if direction == "push":
            trees = await asyncio.to_thread(self._trees, self.author)
            await self._check_push("done")
            for item, tree in trees.items():
                self.before[item].append(tree)

    async def _call(
        self, direction: str, turn: Turn | None, tag: str | None = None, **options: object
    ) -> dict[str, Any]:
        """Push or pull in a process of its own, with what a turn brings."""
        proxy, case, main = self.proxy, self.case, self.main
        proxy.begin(turn.weather if turn else None)
        home = self.author if direction == "push" else self.puller
        if direction == "push":
            options["threads"] = case.threads
        elif main.kind == "bento":
            options["with_models"] = True
        environment = {"BENTOML_HOME": str(home)}
        if turn and turn.silence:
            self.silent.begin(turn.silence)
            environment |= {"http_proxy": self.silent.url, "no_proxy": ""}
        began = time.monotonic()
        client = self.zygote.start(
            do=direction,
            way=_way(turn),
            kind=main.kind,
            tag=tag or f"{NAME}:{main.version}",
            endpoint=proxy.endpoint,
            token="token",
            environment=environment,
            config={
                "timeouts": TIMEOUTS,
                "retry": RETRY,
                "transfer": {"part_size": 5 * MiB, "range_size": case.range_size, "window": 4 * MiB},
            },
            options=options,
            log=str(self.work / "client.log"),
        )
        happening = [asyncio.create_task(self._happen(turn, client))] if turn else []
        try:
            await asyncio.wait_for(client.ended.wait(), HANGS_AFTER)
        except asyncio.TimeoutError:
            log = self.work / "client.log"
            self._complain(f"a {direction} did not end:\n{log.read_text()[-3000:]}")
            client.kill()
            await client.ended.wait()
        for task in happening:
            task.cancel()
        await asyncio.gather(*happening, return_exceptions=True)
        for disk in (self.client_disk, self.registry_disk):
            disk.relieve()
        await proxy.end()
        if not proxy.registry.endpoint:
            await self._start_registry()
        word = client.said or {"word": "killed"}
        if not client.said and client.status not in _SIGNALS:
            word = {"word": "crashed", "message": (self.work / "client.log").read_text()[-3000:]}
        if word["word"] == "crashed":
            self._complain(f"a {direction} crashed: {word}")
        if word["word"] != "killed" and client.status not in {0, *_SIGNALS}:
            self._complain(f"a {direction} was {word['word']}, and its process ended with {client.status}")
        self._note(direction, turn, word, options, time.monotonic() - began)
        return word

    def _note(
        self, direction: str, turn: Turn | None, word: dict[str, Any], options: dict[str, object], seconds: float
    ) -> None:
        self.story += [
            f"{direction} {options}: {word} after {seconds:.2f} s",
            f"  {turn}",
            *(f"  {describe(number, request)}" for number, request in enumerate(self.proxy.requests, start=1)),
        ]
        expired = sum(request.status == 403 for request in self.proxy.requests)
        self.counts.others["URLs that had expired"] += expired
        self.counts.others["requests"] += len(self.proxy.requests)
        self.counts.others["tries after the first"] += word.get("retries", 0)
        if word.get("resumed"):
            self.counts.others[f"{direction}: resumed"] += 1
        if turn is None:
            return
        self.counts.calls[f"{direction} {word['word']}"] += 1
        if word["word"] == "error":
            self.counts.errors[f"{direction} {word['type']}"] += 1

    async def _happen(self, turn: Turn, client: Process) -> None:
        """Kill, and fill disks, when the moment is there."""

        async def kill_client() -> None:
            assert turn.kill_client
            await self.proxy.reached(turn.kill_client)
            client.kill()
            self.counts.faults["client killed"] += 1

        async def kill_registry() -> None:
            assert turn.kill_registry
            await self.proxy.reached(turn.kill_registry)
            self.counts.faults["registry killed"] += 1
            await self._stop_registry()
            await asyncio.sleep(turn.down_for)
            await asyncio.shield(self._start_registry())

        async def fill() -> None:
            await self.proxy.reached(turn.fill_at)
            disk = self.client_disk if turn.fill == "client" else self.registry_disk
            if disk.fill(turn.room):
                self.counts.faults[f"{turn.fill}'s disk full"] += 1
            await asyncio.sleep(turn.full_for)
            disk.relieve()

        async def send_signal(moment: Moment, number: signal.Signals, fault: str) -> None:
            await self.proxy.reached(moment)
            client.send_signal(number)
            self.counts.faults[fault] += 1

        doing: list[Awaitable[None]] = []
        if turn.terminate:
            doing.append(send_signal(turn.terminate, signal.SIGTERM, "client terminated"))
        if turn.fork:
            doing.append(send_signal(turn.fork, signal.SIGUSR1, "client forked"))
        if turn.kill_client:
            doing.append(kill_client())
        if turn.kill_registry:
            doing.append(kill_registry())
        if turn.fill:
            doing.append(fill())
        await asyncio.gather(*doing)

    # The registry

    async def _start_registry(self) -> None:
        if self._killed is not None:  # `_stop_registry` may have been cancelled, and the directory is still locked
            await self._killed.ended.wait()
        if self._registry is None:
            self._registry = self.zygote.start(
                do="serve",
                root=str(self.registry_disk.path / "root"),
                options={
                    "transmission": self.case.transmission,
                    "url_expiry": self.case.url_expiry,
                    "api_token": "token",
                },
                log=str(self.work / "registry.log"),
            )
        registry = self._registry
        await registry.spoke.wait()
        if registry.ended.is_set():
            raise RuntimeError(f"the registry did not start: {(self.work / 'registry.log').read_text()[-3000:]}")
        self.direct = registry.said["endpoint"]
        self.proxy.registry.endpoint = self.direct

    async def _stop_registry(self) -> None:
        self.proxy.registry.endpoint = ""
        if self._registry is not None:
            self._killed, self._registry = self._registry, None
            self._killed.kill()
        if self._killed is not None:
            await self._killed.ended.wait()

    async def _record(self, item: Item) -> Record:
        return await asyncio.to_thread(record_of, self.direct, "token", item.kind, item.name, item.version)

    # Trees

    def _make(self, home: Path, what: str) -> None:
        """Make the items, whatever was there before. What is pulled is a bento by force, but never its models."""
        for item in self.items[:1] if what in {"local", "replaced"} else self.items:
            self._make_one(item, home, what, [*self.case.sizes] if item == self.main else [2000, 70_000])

    def _make_one(self, item: Item, home: Path, what: str, sizes: list[int]) -> None:
        random = Random(f"{self.case.number}/{item}/{what}")
        shutil.rmtree(item.path(home), ignore_errors=True)
        files = {f"{'deep/er/' * (n % 2)}file{n}": random.randbytes(size) for n, size in enumerate(sizes)}
        tag = f"{item.name}:{item.version}"
        built = BUILT["older" if what == "older" else "now"]
        if item.kind == "bento":
            models = [f"{one.name}:{one.version}" for one in self.items[1:]]
            path = make_bento(home, tag, files, models=models, built=built)
        else:
            path = make_model(home, tag, files, built=built)
        (path / "empty").mkdir()
        (path / "link").symlink_to("file0")
        (path / "file0").chmod(0o755)

    def _trees(self, home: Path) -> dict[Item, Tree | None]:
        return {item: tree_of(item.path(home), item.left_out) for item in self.items}

    def _see_scratch_empty(self, home: Path) -> None:
        tmp = home / "tmp"
        left = [str(path.relative_to(tmp)) for path in tmp.rglob("*") if not path.name.startswith("async-bento-lock-")]
        if left:
            self._complain(f"after a call that was done, there is left: {left}")

    def _see_store_tidy(self) -> None:
        kept = {item.kind for item in self.items}
        for kind in kept:
            for name in (self.puller / f"{kind}s").iterdir():
                known = {item.version for item in self.items if (item.kind, item.name) == (kind, name.name)} | {
                    "latest"
                }
                known |= {"older"} if name.name == NAME and kind == self.main.kind else set()
                inside = {path.name for path in name.iterdir()} if name.is_dir() else {""}
                if inside - known:
                    self._complain(f"in the store lies {name} with {sorted(inside)}")

    async def _see_registry_tidy(self) -> None:
        """See that nothing is left but what records name: the bytes of items, replaced ones, and open uploads."""
        root = self.registry_disk.path / "root"

        def left() -> Iterator[Path]:
            with closing(sqlite3.connect(f"file:{root}/registry.sqlite3?mode=ro", uri=True)) as records:
                known = {key for (key,) in records.execute("SELECT key FROM blobs")}
            for directory in (root / "blobs").glob("*/*/*/*"):
                if (directory / "upload").exists():  # it accepts parts, also if the registry was killed meanwhile
                    continue
                yield from directory.glob(".*")
                if directory.relative_to(root / "blobs").as_posix() not in known:
                    yield directory

        for _ in range(50):
            found = await asyncio.to_thread(lambda: [*left()])
            if not found:
                return
            await asyncio.sleep(0.1)
        self._complain(f"the registry has left {found}")

    def _complain(self, complaint: str) -> None:
        self.complaints.append(complaint)
