"""A push, step by step: repository, record, bytes.

The order is that of BentoML 1.4.39 (`bentoml/_internal/cloud/bento.py`), but that the directory is looked through
before anything is registered: what cannot be read is told before the registry has heard of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from async_bento.archive.plan import TarPlan
from async_bento.errors import APIError
from async_bento.transfer.upload import upload
from async_bento.wire.schemas import UPLOADED, FinishUploadSchema

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from async_bento.kind import ItemT, Kind, Record, RecordT
    from async_bento.progress import Progress
    from async_bento.store.tag import Tag
    from async_bento.transfer.http import Transport
    from async_bento.wire.routes import AnyRoutes
    from async_bento.wire.schemas import ItemSchema

BARE_REASON = "bento for development"
"""What BentoML says when a record is pushed without bytes."""


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        tag: What was pushed.
        skipped: Whether it was on the registry already.
        resumed: Whether an interrupted push was taken up again.
        bytes_sent: Bytes of its tar that were sent.
        parts: Requests they were sent in.
        seconds: How long it took, its models included.
        models: The same for each model of a bento.
    """

    tag: Tag
    skipped: bool = False
    resumed: bool = False
    bytes_sent: int = 0
    parts: int = 0
    seconds: float = 0.0
    models: tuple[PushResult, ...] = ()


@dataclass
class Repositories:
    """Sees to it that a repository is created once, however many items of it are pushed at the same time."""

    _known: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]], init=False)
    _locks: defaultdict[tuple[str, str], asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock), init=False
    )

    async def ensure(self, routes: AnyRoutes, name: str) -> None:
        """Get a repository, and create it where there is none.

        Args:
            routes: The routes of its kind.
            name: The repository.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        key = (routes.kind, name)
        async with self._locks[key]:
            if key in self._known:
                return
            if await routes.get_repository(name) is None:
                try:
                    await routes.create_repository(name)
                except APIError as error:
                    # Another process may have won the race, or only the answer was lost.
                    if not await _is_there(routes.get_repository(name)):
                        raise error from None
            self._known.add(key)


async def push_item(
    kind: Kind[ItemT, RecordT],
    item: ItemT,
    *,
    force: bool,
    bare: bool,
    threads: int,
    repositories: Repositories,
    transport: Transport,
    progress: Progress,
) -> PushResult:
    """Push one bento or model.

    Args:
        kind: Which of the two.
        item: What to push.
        force: Whether to push what the registry has already.
        bare: Whether to push the record alone.
        threads: Parts in flight at most.
        repositories: Those that are known to be there.
        transport: What all transfers share.
        progress: Where to count.

    Returns:
        What it did.

    Raises:
        BentoError: It failed.
    """
    began = time.monotonic()
    name, version = item.tag.name, item.tag.version or ""
    await repositories.ensure(kind.routes, name)
    remote = await kind.routes.get(name, version)
    if remote is not None and remote.upload_status == UPLOADED and not force:
        progress.enter("skipped", "already there")
        return PushResult(item.tag, skipped=True, seconds=time.monotonic() - began)
    record = await transport.threads.run(kind.record, item, bare)
    if bare:
        await _register(kind.routes, name, version, remote, record)
        outcome = FinishUploadSchema(status="success", reason=BARE_REASON)
        await kind.routes.finish_upload(name, version, outcome)
        progress.enter("done", "the record alone")
        return PushResult(item.tag, seconds=time.monotonic() - began)
    plan = await transport.threads.run(TarPlan.scan, item.path, exclude=kind.left_out)
    registered = await _register(kind.routes, name, version, remote, record)
    uploaded = await upload(plan, kind.routes, registered, name, transport, progress, threads=threads)
    return PushResult(item.tag, bytes_sent=uploaded.bytes_sent, parts=uploaded.parts, seconds=time.monotonic() - began)


async def _register(
    routes: AnyRoutes, name: str, version: str, remote: ItemSchema | None, record: Record
) -> ItemSchema:
    """Create the record, or update the one that is there."""
    if remote is None:
        try:
            return await routes.create(name, record.create)
        except APIError as error:
            if not await _is_there(routes.get(name, version)):
                raise error from None
    return await routes.update(name, version, record.update)


async def _is_there(question: Awaitable[object | None]) -> bool:
    """Whether what could not be created is there all the same: made by another process, or its answer was lost."""
    with suppress(APIError):
        return await question is not None
    return False
