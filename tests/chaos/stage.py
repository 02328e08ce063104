"""The common part of the phases of a case: items, and calls in their own processes under faults."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any

from tests.builders import make_bento, make_model
from tests.chaos.case import MiB, Moment, Turn
from tests.chaos.items import Counts, Item
from tests.chaos.proxy import describe
from tests.chaos.registry import TOKEN, Registry
from tests.chaos.truth import Tree, tree_of
from tests.chaos.zygote import HANGS_AFTER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from pathlib import Path

    from tests.chaos.case import Case
    from tests.chaos.disk import Disk
    from tests.chaos.processes import Process, Zygote
    from tests.chaos.silence import SilentProxy

NAME = "thing"
DISK = 160 * MiB

BUILT = {"older": "2024-01-01 00:00:00.000000", "now": "2024-05-06 07:08:09.000010"}
TIMEOUTS = {"connect": 2.0, "stall": 1.0, "api": 2.0, "complete": 3.0}
RETRY = {"attempts": 4, "wait_initial": 0.02, "wait_max": 0.1, "retry_after_cap": 5.0}


_SIGNALS = {int(number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)}
"""Signals that may end a client: the last two only before its handler is set, or after the call."""


def _way(turn: Turn | None) -> str:
    """Return how a client makes its call: by the command, in a process that forks, or by the API."""
    if turn and turn.terminate:
        return "command"
    return "forked" if turn and turn.fork else "call"


@dataclass
class Stage:
    """A case on its own disks.

    Attributes:
        complaints: The violations found.
        story: The events, for the reader of a complaint.
    """

    case: Case
    zygote: Zygote
    work: Path
    counts: Counts
    own_disks: bool
    complaints: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    client_disk: Disk = field(init=False)

    def __post_init__(self) -> None:
        self.main = Item(self.case.kind, NAME, f"v{self.case.number}")
        self.items = [self.main, *(Item("model", f"part{n}", "m1") for n in range(self.case.models))]

    @property
    def disk_size(self) -> int | None:
        """The size of each disk in bytes; None without disks of a fixed size."""
        return DISK if self.own_disks else None

    def start_client(self, direction: str, home: Path, endpoints: Mapping[str, str], **job: Any) -> Process:
        """Start a client; `endpoints` are those of the registry and, for a copy, of the target."""
        first, *others = endpoints.values()
        return self.zygote.start(
            **{"way": "call", "kind": self.main.kind, "tag": f"{NAME}:{self.main.version}", "options": {}}
            | {"do": direction, "endpoint": first, "token": TOKEN, "log": str(self.work / "client.log")}
            | ({"target": others[0]} if others else {})
            | {
                "config": {
                    "timeouts": TIMEOUTS,
                    "retry": RETRY,
                    "transfer": {"part_size": 5 * MiB, "range_size": self.case.range_size, "window": 4 * MiB},
                }
            }
            | job
            | {"environment": {"BENTOML_HOME": str(home), **job.get("environment", {})}}
        )

    async def call(
        self,
        direction: str,
        turn: Turn | None,
        home: Path,
        registries: Mapping[str, Registry],
        silent: SilentProxy | None = None,
        **job: Any,
    ) -> dict[str, Any]:
        """Push, pull or copy in a separate process, with the events of a turn; `registries` are by side."""
        for side, registry in registries.items():
            registry.proxy.begin(turn.weathers[side] if turn else None)
        if turn and turn.silence and silent:
            silent.begin(turn.silence)
            job["environment"] = {"http_proxy": silent.url, "no_proxy": ""}
        began = time.monotonic()
        endpoints = {side: registry.proxy.endpoint for side, registry in registries.items()}
        client = self.start_client(direction, home, endpoints, way=_way(turn), **job)
        happening = [asyncio.create_task(self._happen(turn, client, registries))] if turn else []
        try:
            await asyncio.wait_for(client.ended.wait(), HANGS_AFTER)
        except asyncio.TimeoutError:
            log = self.work / "client.log"
            self.complain(f"a {direction} did not end:\n{log.read_text()[-3000:]}")
            client.kill()
            await client.ended.wait()
        for task in happening:
            task.cancel()
        await asyncio.gather(*happening, return_exceptions=True)
        self.client_disk.relieve()
        for registry in registries.values():
            registry.disk.relieve()
            await registry.proxy.end()
            if not registry.proxy.registry.endpoint:
                await registry.start()
        result = client.report or {"outcome": "killed"}
        if not client.report and client.status not in _SIGNALS:
            result = {"outcome": "crashed", "message": (self.work / "client.log").read_text()[-3000:]}
        if result["outcome"] == "crashed":
            self.complain(f"a {direction} crashed: {result}")
        if result["outcome"] != "killed" and client.status not in {0, *_SIGNALS}:
            self.complain(f"a {direction} was {result['outcome']}, and its process ended with {client.status}")
        self._note(direction, turn, result, registries, job.get("options", {}), time.monotonic() - began)
        return result

    def complain(self, complaint: str) -> None:
        """Record a violation."""
        self.complaints.append(complaint)

    def _note(
        self,
        direction: str,
        turn: Turn | None,
        result: dict[str, Any],
        registries: Mapping[str, Registry],
        options: dict[str, object],
        seconds: float,
    ) -> None:
        self.story += [f"{direction} {options}: {result} after {seconds:.2f} s", f"  {turn}"]
        for side, registry in registries.items():
            requests = registry.proxy.requests
            self.story += [f"  {side} {describe(number, request)}" for number, request in enumerate(requests, start=1)]
            self.counts.others["expired URLs"] += sum(request.status == 403 for request in requests)
            self.counts.others["requests"] += len(requests)
        self.counts.others["retries"] += result.get("retries", 0)
        if result.get("resumed"):
            self.counts.others[f"{direction}: resumed"] += 1
        if turn is None:
            return
        self.counts.calls[f"{direction} {result['outcome']}"] += 1
        if result["outcome"] == "error":
            self.counts.errors[f"{direction} {result['type']}"] += 1

    async def _happen(self, turn: Turn, client: Process, registries: Mapping[str, Registry]) -> None:
        """Run the events of a turn, each at its moment."""
        await asyncio.gather(*self.events(turn, client, registries))

    def events(self, turn: Turn, client: Process, registries: Mapping[str, Registry]) -> list[Awaitable[None]]:
        """Return the events of a call; the moments count the requests to the registry of the turn's side."""
        registry = registries[turn.side]

        async def kill_client(moment: Moment) -> None:
            await registry.proxy.reached(moment)
            client.kill()
            self.counts.faults["client killed"] += 1

        async def kill_registry(moment: Moment) -> None:
            await registry.proxy.reached(moment)
            self.counts.faults[f"{turn.side} killed"] += 1
            await registry.stop()
            await asyncio.sleep(turn.down_for)
            await asyncio.shield(registry.start())

        async def fill() -> None:
            await registry.proxy.reached(turn.fill_at)
            disk, owner = (self.client_disk, "client") if turn.fill == "client" else (registry.disk, turn.side)
            if disk.fill(turn.room):
                self.counts.faults[f"{owner}'s disk full"] += 1
            await asyncio.sleep(turn.full_for)
            disk.relieve()

        async def send_signal(moment: Moment, number: signal.Signals, fault: str) -> None:
            await registry.proxy.reached(moment)
            client.send_signal(number)
            self.counts.faults[fault] += 1

        doing: list[Awaitable[None]] = []
        if turn.terminate:
            doing.append(send_signal(turn.terminate, signal.SIGTERM, "client terminated"))
        if turn.fork:
            doing.append(send_signal(turn.fork, signal.SIGUSR1, "client forked"))
        if turn.kill_client:
            doing.append(kill_client(turn.kill_client))
        if turn.kill_registry:
            doing.append(kill_registry(turn.kill_registry))
        if turn.fill:
            doing.append(fill())
        return doing

    # Checks

    def see_answer_lost(self, direction: str, item: Item, registry: Registry) -> None:
        """Check that a failed call whose upload is complete had lost the response to its last request."""
        requests, record = registry.proxy.requests, f"/{item.kind}s/{item.version}"
        uploads = [number for number, request in enumerate(requests) if request.path.endswith(f"{record}/upload")]
        asked = [
            request
            for number, request in enumerate(requests)
            if (
                request.forwarded
                and (
                    request.path.endswith("/upload")
                    or (request.path.endswith("finish_upload") and b"success" in request.body)
                )
            )
            # A replacement through the registry reads and updates the record after the upload.
            or (request.path.endswith(record) and (request.method == "PATCH" or number > max(uploads, default=number)))
        ]
        if all(request.answered and request.status == HTTPStatus.OK for request in asked):
            self.complain(f"a {direction} failed, {item} is a success, and no response was lost")
        else:
            plural = "copies" if direction == "copy" else f"{direction}es"
            self.counts.others[f"{plural} that failed only by a lost last response"] += 1

    def see_scratch_empty(self, home: Path) -> None:
        """Check that a completed call has left only locks."""
        tmp = home / "tmp"
        left = [str(path.relative_to(tmp)) for path in tmp.rglob("*") if not path.name.startswith("async-bento-lock-")]
        if left:
            self.complain(f"a completed call has left {left}")

    async def see_tidy(self, registry: Registry, side: str = "registry") -> None:
        """Check that a registry has no leftovers."""
        if left := await registry.left_over():
            self.complain(f"the {side} has left {left}")

    # Trees

    def make(self, home: Path, what: str) -> None:
        """Replace the items by new ones; for a forced pull only the first, since a pull never replaces models."""
        for item in self.items[:1] if what.startswith(("local", "replaced")) else self.items:
            self.make_one(item, home, what, [*self.case.sizes] if item == self.main else [2000, 70_000])

    def make_one(self, item: Item, home: Path, what: str, sizes: list[int]) -> None:
        """Make an item with a label of its content, so that its record differs if its bytes differ."""
        random = Random(f"{self.case.number}/{item}/{what}")
        shutil.rmtree(item.path(home), ignore_errors=True)
        files = {f"{'deep/er/' * (n % 2)}file{n}": random.randbytes(size) for n, size in enumerate(sizes)}
        tag = f"{item.name}:{item.version}"
        built, labels = BUILT["older" if what == "older" else "now"], {"what": what.replace(" ", "-")}
        if item.kind == "bento":
            models = [f"{one.name}:{one.version}" for one in self.items[1:]]
            path = make_bento(home, tag, files, models=models, built=built, labels=labels)
        else:
            path = make_model(home, tag, files, built=built, labels=labels)
        (path / "empty").mkdir()
        (path / "link").symlink_to("file0")
        (path / "file0").chmod(0o755)

    def trees(self, home: Path) -> dict[Item, Tree | None]:
        """Return the trees of the items in a home."""
        return {item: tree_of(item.path(home), item.left_out) for item in self.items}
