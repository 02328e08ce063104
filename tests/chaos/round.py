"""The pushes and pulls of a case, and the comparison of each outcome with the registry and the store."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from tests.chaos.copies import Copies
from tests.chaos.disk import Disk
from tests.chaos.items import Item
from tests.chaos.registry import running_registry
from tests.chaos.silence import SilentProxy
from tests.chaos.stage import NAME, Stage
from tests.chaos.truth import Tree, difference

if TYPE_CHECKING:
    from tests.chaos.case import Turn


class Round(Stage):
    """A case with its own registry: a push, a pull, and maybe a copy to a second registry."""

    async def play(self) -> None:
        """Run the case."""
        case = self.case
        self.client_disk = Disk(self.work / "client", self.disk_size)
        self.author, self.puller = self.client_disk.path / "author", self.client_disk.path / "puller"
        self.before: dict[Item, list[Tree | None]] = {item: [None] for item in self.items}
        options: dict[str, object] = {"transmission": case.transmission, "url_expiry": case.url_expiry}
        try:
            async with AsyncExitStack() as stack:
                enter = stack.enter_async_context
                self.registry = await enter(
                    running_registry(self.zygote, self.work, "registry", self.disk_size, options, self.counts.faults)
                )
                self.silent = await enter(SilentProxy(*self.registry.proxy.address, self.registry.proxy.counts))
                await self._push()
                await self._pull()
                if case.copy:
                    await Copies(self, case.copy, self.registry, self.author).play()
                await self.see_tidy(self.registry)
        finally:
            self.client_disk.unmount()
            await asyncio.to_thread(shutil.rmtree, self.work, ignore_errors=True)

    # The push

    async def _push(self) -> None:
        case = self.case
        forced = case.pushed_before
        if forced:
            await asyncio.to_thread(self.make, self.author, "before")
            await self._calm("push", force=True)
        await asyncio.to_thread(self.make, self.author, "now")
        for turn in case.pushes:
            result = await self._call("push", turn, force=forced)
            await self._check_push(result["outcome"])
            if result["outcome"] == "interrupted" and turn.is_calm:
                await self._see_failure_reported()
            if result["outcome"] == "done":
                self.see_scratch_empty(self.author)
                break
            if case.changed:
                forced = True  # a push whose last response was lost would skip the item otherwise
                await asyncio.to_thread(self.make, self.author, "changed")
                self.counts.others["files changed before the push was repeated"] += 1
        else:
            await self._calm("push", force=forced)
            self.see_scratch_empty(self.author)
        self.pushed = await asyncio.to_thread(self.trees, self.author)

    async def _check_push(self, outcome: str) -> None:
        """Compare the outcome of a push with the registry."""
        here = await asyncio.to_thread(self.trees, self.author)
        for item, tree in here.items():
            record = await self.registry.record(item)
            if outcome == "done" and record.status != "success":
                self.complain(f"a push was done, and {item} is {record.status}")
            if record.status != "success":
                continue
            if record.broken:
                self.complain(f"{item} is a success, and its tar is broken: {record.broken}")
                continue
            known = [tree] if outcome == "done" else [tree, *self.before[item]]
            if not any(record.tree is not None and record.tree == one for one in known):
                why = difference(tree, record.tree)
                self.complain(f"{item} is a success after a push was {outcome}, with wrong bytes: {why}")
            if outcome == "error" and item == self.main and record.tree == tree and tree not in self.before[item]:
                self.see_answer_lost("push", item, self.registry)
            if record.tree == tree and tree not in self.before[item]:
                self.before[item].append(tree)

    async def _see_failure_reported(self) -> None:
        """Check that the registry has a final status after an interrupted push."""
        record = await self.registry.record(self.main)
        if record.status in {"uploading", "pending"}:
            self.complain(f"a push was interrupted, and {self.main} is {record.status}")

    # The pull

    async def _pull(self) -> None:
        case = self.case
        tag, forced = f"{NAME}:{self.main.version}", False
        latest: str | None = None
        if case.pulled_before == "same tag":
            forced, latest = True, self.main.version
            await asyncio.to_thread(self.make, self.puller, "local")
        elif case.pulled_before == "older version":
            tag, latest = NAME, "older"
            older = Item(self.main.kind, NAME, "older")
            await asyncio.to_thread(self.make_one, older, self.puller, "older", [1000])
        if latest:
            (self.puller / f"{case.kind}s" / NAME / "latest").write_text(latest)
        self.latest = {latest}
        self.stood = await asyncio.to_thread(self.trees, self.puller)
        for turn in case.pulls:
            result = await self._call("pull", turn, tag, force=forced)
            await self._check_pull(result["outcome"])
            if result["outcome"] == "done":
                break
            if case.replaced:
                await asyncio.to_thread(self.make, self.author, "replaced")
                await self._calm("push", force=True)
                self.pushed = await asyncio.to_thread(self.trees, self.author)
                self.counts.others["item pushed again before the pull was repeated"] += 1
                # A killed pull may have committed the old item, which only a forced pull replaces.
                forced = True
        else:
            await self._calm("pull", tag, force=forced)
            await self._check_pull("done")
        self.see_scratch_empty(self.puller)
        self._see_store_tidy()

    async def _check_pull(self, outcome: str) -> None:
        """Compare the outcome of a pull with the store."""
        found = await asyncio.to_thread(self.trees, self.puller)
        for item, tree in found.items():
            # A pull killed after its commit, and models pulled before their bento failed, leave complete items.
            came = difference(tree, self.pushed[item]) == "" and tree is not None
            if outcome == "done" and not came:
                self.complain(f"a pull was done, and {item} is not: {difference(tree, self.pushed[item])}")
            if outcome != "done" and not came and tree != self.stood[item]:
                self.complain(f"a pull was {outcome}, and {item} has changed: {difference(tree, self.stood[item])}")
            if outcome == "error" and item == self.main and came and tree != self.stood[item] and len(self.items) == 1:
                self.complain(f"a pull failed, and {item} is complete")
            if came:
                self.stood[item] = tree
                self.latest |= {item.version} if item == self.main else set()
        latest = self.puller / f"{self.case.kind}s" / NAME / "latest"
        content = latest.read_text() if latest.exists() else None
        wanted = {self.main.version} if outcome == "done" else self.latest
        if content not in wanted:
            self.complain(f"a pull was {outcome}, and `latest` contains {content!r} instead of {wanted}")

    # One call

    async def _calm(self, direction: str, tag: str | None = None, **options: object) -> None:
        """Run a call without faults, which must succeed."""
        result = await self._call(direction, None, tag, **options)
        if result["outcome"] != "done":
            self.complain(f"a {direction} without faults was {result['outcome']}")
        self.counts.others[f"{direction}es without a fault".replace("pulles", "pulls")] += 1
        if direction == "push":
            trees = await asyncio.to_thread(self.trees, self.author)
            await self._check_push("done")
            for item, tree in trees.items():
                self.before[item].append(tree)

    async def _call(
        self, direction: str, turn: Turn | None, tag: str | None = None, **options: object
    ) -> dict[str, Any]:
        if direction == "push":
            options["threads"] = self.case.threads
        elif self.main.kind == "bento":
            options["with_models"] = True
        return await self.call(
            direction,
            turn,
            self.author if direction == "push" else self.puller,
            {"registry": self.registry},
            self.silent,
            tag=tag or f"{NAME}:{self.main.version}",
            options=options,
        )

    # The store

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
                    self.complain(f"the store has unexpected entries in {name}: {sorted(inside - known)}")
