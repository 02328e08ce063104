"""A push, step by step: the repository, the record, the bytes.

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
from async_bento.transfer.upload import Uploaded, upload
from async_bento.wire.schemas import UPLOADED, FinishUploadSchema

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from async_bento.connection import Connection
    from async_bento.kind import ItemT, Kind, RecordT
    from async_bento.store.tag import Tag
    from async_bento.wire.routes import AnyRoutes
    from async_bento.wire.schemas import CreateBentoSchema, CreateModelSchema, ItemSchema

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
    connection: Connection,
    kind: Kind[ItemT, RecordT],
    item: ItemT,
    *,
    force: bool,
    threads: int,
    repositories: Repositories,
    bare: bool = False,
    models: tuple[PushResult, ...] = (),
) -> PushResult:
    """Push one bento or model.

    Args:
        connection: Whose registry, threads and budget.
        kind: Bentos or models.
        item: What to push.
        force: Whether to push it also when the registry has it already.
        threads: Parts in flight at most.
        repositories: Those that are known to be there.
        bare: Whether to push its record alone.
        models: What was done with its models.

    Returns:
        What was done.

    Raises:
        BentoError: It failed; the registry has been told.
    """
    began = time.monotonic()
    name, version = item.tag.name, item.tag.version or ""
    with connection.progress("push", kind.word, item.tag) as progress:
        progress.note = _count(models)
        await repositories.ensure(kind.routes, name)
        remote = await kind.routes.get(name, version)
        if remote is not None and remote.upload_status == UPLOADED and not force:
            progress.enter("skipped", "already there")
            return PushResult(item.tag, skipped=True, seconds=time.monotonic() - began, models=models)
        record = await connection.threads.run(kind.record, item, bare)
        plan = None if bare else await connection.threads.run(TarPlan.scan, item.path, exclude=kind.left_out)
        created = await create(kind.routes, item.tag, record.create) if remote is None else None
        registered = created or await kind.routes.update(name, version, record.update)
        if plan is None:
            outcome = FinishUploadSchema(status="success", reason=BARE_REASON)
            await kind.routes.finish_upload(name, version, outcome)
            uploaded = Uploaded(bytes_sent=0, parts=0)
        else:
            uploaded = await upload(
                plan, kind.routes, registered, name, connection.transport, progress, threads=threads
            )
    return PushResult(
        item.tag,
        bytes_sent=uploaded.bytes_sent,
        parts=uploaded.parts,
        seconds=time.monotonic() - began,
        models=models,
    )


async def create(routes: AnyRoutes, tag: Tag, body: CreateBentoSchema | CreateModelSchema) -> ItemSchema | None:
    """Create a record.

    Args:
        routes: The routes of its kind.
        tag: Its tag.
        body: What it says.

    Returns:
        The record, or None where it is there all the same: another process made it, or the answer was lost.

    Raises:
        APIError: The registry was not reached, or refused.
    """
    try:
        return await routes.create(tag.name, body)
    except APIError as error:
        if not await _is_there(routes.get(tag.name, tag.version or "")):
            raise error from None
    return None


async def _is_there(question: Awaitable[object | None]) -> bool:
    """Whether what could not be created is there all the same: made by another process, or its answer was lost."""
    with suppress(APIError):
        return await question is not None
    return False


def _count(models: tuple[PushResult, ...]) -> str:
    if not models:
        return ""
    skipped = sum(model.skipped for model in models)
    return f"{len(models)} model{'s' if len(models) > 1 else ''}" + (f", {skipped} skipped" if skipped else "")
