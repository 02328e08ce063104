"""The copies of a case to a second registry, compared directly with the current and earlier items of the source."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.chaos.case import CopyTurn, Turn
from tests.chaos.registry import Registry, running_registry
from tests.chaos.stage import Stage
from tests.chaos.truth import difference

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence
    from pathlib import Path

    from tests.chaos.case import CopyPlan, Moment
    from tests.chaos.items import Item
    from tests.chaos.processes import Process
    from tests.chaos.proxy import ChaosProxy
    from tests.chaos.truth import Record

    Records = dict[Item, Record]


class Copies(Stage):
    """Copies the items of another stage from its registry; `author` is the home that pushed the items."""

    def __init__(self, stage: Stage, plan: CopyPlan, source: Registry, author: Path) -> None:
        super().__init__(
            stage.case, stage.zygote, stage.work, stage.counts, stage.own_disks, stage.complaints, stage.story
        )
        self.client_disk = stage.client_disk
        self._plan = plan
        self._source = source
        self._author = author
        self._copier = stage.client_disk.path / "copier"
        self._pushing: Process | None = None  # pushes the item again

    async def play(self) -> None:
        """Run the copies to a new registry."""
        options: dict[str, object] = {"transmission": self._plan.transmission, "url_expiry": self._plan.url_expiry}
        self._source.proxy.streams = self._plan.streams
        async with running_registry(
            self.zygote, self.work, "target", self.disk_size, options, self.counts.faults
        ) as self._target:
            await self._prepare()
            await self._copy()
            await self.see_tidy(self._target, "target")

    async def _prepare(self) -> None:
        self._now = await self._records(self._source)
        self._had: list[Records] = [self._now]  # all records that the source ever had
        if self._plan.copied_before:
            other = self.client_disk.path / "other"
            await asyncio.to_thread(self.make, other, "elsewhere")
            await self._pushed(self.start_client("push", other, {"registry": self._target.direct}))
        self._stood: list[Records] = [await self._records(self._target)]  # all records that the target ever had

    async def _copy(self) -> None:
        """Copy until a copy succeeds, then once without faults, unless the target equals the source."""
        forced, is_current = self._plan.copied_before, False
        for number, turn in enumerate(self._plan.turns):
            if turn.push_again:
                await asyncio.to_thread(self.make, self._author, f"replaced {number}")
            outcome = await self._call(turn, force=forced)
            possible = [self._now]
            if turn.push_again:
                when = "between copies" if self._pushing is None else "during a copy"
                self.counts.others[f"item pushed again {when}"] += 1
                await self._pushed(self._pushing or self._push_again())
                self._pushing = None
                self._now, forced = await self._records(self._source), True
                self._had.append(self._now)
                possible += [self._now] if when == "during a copy" else []
            await self._check(outcome, possible)
            if outcome == "interrupted" and turn.is_calm:
                await self._see_failure_reported()
            if outcome == "done":
                self.see_scratch_empty(self._copier)
                is_current = not turn.push_again
                break
        if not is_current:
            outcome = await self._call(None, force=forced)
            if outcome != "done":
                self.complain(f"a copy without faults was {outcome}")
            self.counts.others["copies without a fault"] += 1
            await self._check("done", [self._now])
            self.see_scratch_empty(self._copier)

    async def _call(self, turn: CopyTurn | None, **options: object) -> str:
        registries = {"source": self._source, "target": self._target}
        result = await self.call(
            "copy", turn, self._copier, registries, options={"threads": self.case.threads, **options}
        )
        changes = [
            request
            for request in self._source.proxy.requests
            if request.method != "GET" and not request.path.endswith("/presign_download_url")
        ]
        if changes:
            self.complain(f"a copy has changed its source: {[(one.method, one.path) for one in changes]}")
        return str(result["outcome"])

    def events(self, turn: Turn, client: Process, registries: Mapping[str, Registry]) -> list[Awaitable[None]]:
        """Add to the events of `Stage` a direct push of the item to the source."""
        doing = super().events(turn, client, registries)

        async def push_again(proxy: ChaosProxy, moment: Moment) -> None:
            await proxy.reached(moment)
            self._pushing = self._push_again()

        if isinstance(turn, CopyTurn) and turn.push_again:
            doing.append(push_again(registries[turn.side].proxy, turn.push_again))
        return doing

    def _push_again(self) -> Process:
        endpoints = {"registry": self._source.direct}
        return self.start_client("push", self._author, endpoints, options={"force": True})

    async def _pushed(self, pushing: Process) -> None:
        await pushing.ended.wait()
        if pushing.report.get("outcome") != "done":
            self.complain(f"a push without the proxy was {pushing.report}")

    async def _check(self, outcome: str, possible: Sequence[Records]) -> None:
        """Compare a copy's outcome with both registries; `possible` are the source's records during the copy."""
        here, there = await self._records(self._source), await self._records(self._target)
        for item in self.items:
            if here[item] != self._now[item] or here[item].status != "success":
                why = difference(here[item].tree, self._now[item].tree)
                self.complain(f"a copy was {outcome}, and {item} of its source is {here[item].status}: {why}")
            found = there[item]
            if outcome == "done" and found.status != "success":
                self.complain(f"a copy was done, and {item} is {found.status}")
            if found.status != "success":
                continue
            if found.broken:
                self.complain(f"{item} is a success, and its tar is broken: {found.broken}")
                continue
            known = [records[item] for records in (possible if outcome == "done" else [*self._had, *self._stood])]
            if found.tree not in [record.tree for record in known]:
                why = difference(self._now[item].tree, found.tree)
                self.complain(f"{item} is a success after a copy was {outcome}, with wrong bytes: {why}")
            elif outcome == "done" and found not in known:
                self.complain(f"a copy was done, and {item} has the record of other bytes: {found.facts}")
            is_new = found.tree not in [records[item].tree for records in self._stood]
            if outcome == "error" and item == self.main and is_new:
                self.see_answer_lost("copy", item, self._target)
        self._stood.append(there)

    async def _see_failure_reported(self) -> None:
        """Check that the target has a final status after an interrupted copy."""
        for item, record in (await self._records(self._target)).items():
            if record.status in {"uploading", "pending"}:
                self.complain(f"a copy was interrupted, and the target's {item} is {record.status}")

    async def _records(self, registry: Registry) -> Records:
        return {item: await registry.record(item) for item in self.items}
