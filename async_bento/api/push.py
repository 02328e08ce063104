"""A push, step by step: the repository, the record, the bytes.

The order is that of BentoML 1.4.39 (`bentoml/_internal/cloud/bento.py`), but that the directory is looked through
before anything is registered: what cannot be read is told before the registry has heard of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from async_bento._core.concurrency import hold_lock, shielded
from async_bento._core.retry import with_retries
from async_bento._core.text import human_size, table
from async_bento.errors import APIError, SourceChangedError, StoreError
from async_bento.rest.request_schemas import FinishUploadSchema
from async_bento.rest.schemas import UPLOADED
from async_bento.transfer.journal import Journal
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.upload import Uploaded, report_failure, upload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable
    from pathlib import Path

    from async_bento.api.kinds import ItemT, Kind, RecordT
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.rest.request_schemas import CreateBentoSchema, CreateModelSchema
    from async_bento.rest.routes import AnyRoutes
    from async_bento.rest.schemas import ItemSchema
    from async_bento.store.locks import Lock
    from async_bento.store.tag import Tag

logger = logging.getLogger(__name__)

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

    def _repr_html_(self) -> str:
        results = (self, *self.models)
        head = ("TAG", "OUTCOME", "SENT", "PARTS", "SECONDS")
        return table(head, map(_row, results), total=len(results), noun="items")


def _row(result: PushResult) -> tuple[str, ...]:
    if result.skipped:
        outcome = "there already"
    elif not result.parts:
        outcome = "only its record"
    else:
        outcome = "resumed" if result.resumed else "pushed"
    sent = human_size(result.bytes_sent) if result.parts else ""
    return str(result.tag), outcome, sent, str(result.parts or ""), f"{result.seconds:.1f}"


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
                await with_retries(routes.session.config.retry, partial(self._create, routes, name))
            self._known.add(key)

    @staticmethod
    async def _create(routes: AnyRoutes, name: str) -> None:
        try:
            await routes.create_repository(name)
        except APIError as error:
            # Another process may have won the race, or only the answer was lost.
            if not await _is_there(routes.get_repository(name)):
                raise error from None


async def is_pushed(routes: AnyRoutes, tag: Tag) -> bool:
    """Ask whether the registry has an item, bytes and all.

    Args:
        routes: The routes of its kind.
        tag: Its tag.

    Returns:
        Whether it has; False also where it could not be asked.
    """
    with suppress(APIError):
        return _is_pushed(await routes.get(tag.name, tag.version or ""))
    return False


async def push_item(
    resources: Resources,
    kind: Kind[ItemT, RecordT],
    item: ItemT,
    *,
    force: bool,
    threads: int,
    repositories: Repositories,
    bare: bool = False,
    is_there: bool = False,
    models: tuple[PushResult, ...] = (),
) -> PushResult:
    """Push one bento or model.

    Args:
        resources: Whose registry, threads and budget.
        kind: Bentos or models.
        item: What to push.
        force: Whether to push it also when the registry has it already.
        threads: Parts in flight at most.
        repositories: Those that are known to be there.
        bare: Whether to push its record alone.
        is_there: Whether it is known that nothing is to be pushed.
        models: What was done with its models.

    Returns:
        What was done.

    Raises:
        BentoError: It failed; the registry has been told.
    """
    began = time.monotonic()
    with resources.progress("push", kind.word, item.tag) as progress:
        progress.note = _count(models)
        async with _undisturbed(resources, kind, item.tag, progress) as journal:
            registered = (
                None if is_there else await _register(resources, kind, item, repositories, force=force, bare=bare)
            )
            if registered is None:
                progress.enter("skipped", "already there")
                if journal is not None:  # of a push that someone else has ended, or that was killed at its very end
                    with suppress(OSError):
                        await resources.threads.run(journal.remove)
                return PushResult(item.tag, skipped=True, seconds=time.monotonic() - began, models=models)
            record, plan = registered
            if plan is None:
                outcome = FinishUploadSchema(status="success", reason=BARE_REASON)
                async with _told(kind.routes, item.tag):
                    await kind.routes.finish_upload(item.tag.name, item.tag.version or "", outcome)
                uploaded = Uploaded(bytes_sent=0, parts=0)
            else:
                uploaded = await upload(
                    plan,
                    kind.routes,
                    record,
                    item.tag.name,
                    resources.transport,
                    progress,
                    threads=threads,
                    journal=journal,
                )
    return PushResult(
        item.tag,
        resumed=uploaded.resumed,
        bytes_sent=uploaded.bytes_sent,
        parts=uploaded.parts,
        seconds=time.monotonic() - began,
        models=models,
    )


@asynccontextmanager
async def _undisturbed(
    resources: Resources, kind: Kind[ItemT, RecordT], tag: Tag, progress: Progress
) -> AsyncGenerator[Journal | None]:
    """Keep other processes from pushing the same meanwhile, and say where to note what has arrived.

    Neither is needed, they spare work: where nothing can be written, a push goes without.
    """
    threads = resources.threads

    def prepare() -> tuple[Lock, Path]:
        endpoint = resources.client.endpoint
        return kind.store.push_lock(tag, endpoint), kind.store.journal(tag, endpoint)

    async with AsyncExitStack() as stack:
        journal: Journal | None = None
        try:
            lock, path = await threads.run(prepare)
            waiting = partial(progress.enter, "planning", "waiting for another process that pushes it")
            await stack.enter_async_context(hold_lock(lock, threads, waiting))
            journal = Journal(path) if resources.config.transfer.resume else None
        except StoreError as error:
            logger.warning("If the push of %s is interrupted, it will start afresh: %s", tag, error)
        yield journal


async def _register(
    resources: Resources,
    kind: Kind[ItemT, RecordT],
    item: ItemT,
    repositories: Repositories,
    *,
    force: bool,
    bare: bool,
) -> tuple[ItemSchema, TarPlan | None] | None:
    """Create the record or renew it, when it is known that its files can be read; None where it is there already."""
    routes, tag, threads = kind.routes, item.tag, resources.threads
    name, version = tag.name, tag.version or ""
    remote = await routes.get(name, version)  # first: of one that is there, nothing else need be asked
    if _is_pushed(remote) and not force:
        return None
    if remote is None:
        await repositories.ensure(routes, name)
    plan = None if bare else await threads.run(TarPlan.scan, item.path, exclude=kind.left_out)
    # Read after that: one that was replaced meanwhile is not pushed with the files of the other.
    current = await threads.run(type(item).from_path, item.path)
    if current.tag != tag:
        path = str(item.path / item.METADATA_FILE)
        raise SourceChangedError(f"{path} was of {tag} and is of {current.tag} now; push it again", path=path)
    record = await threads.run(kind.record, current, bare)
    created: ItemSchema | None = None
    if remote is None:
        # One that is cancelled may be there. One that fails is not: `create` has looked.
        async with _told(routes, tag, asyncio.CancelledError):
            created = await create(routes, tag, record.create)
    if created is None:
        async with nullcontext() if _is_pushed(remote) else _told(routes, tag):
            created = await routes.update(name, version, record.update)
    return created, plan


@asynccontextmanager
async def _told(routes: AnyRoutes, tag: Tag, errors: type[BaseException] = BaseException) -> AsyncGenerator[None]:
    """Tell the registry of what fails within, so that no record waits for bytes that nobody sends."""
    try:
        yield
    except errors as error:
        await shielded(report_failure(routes, tag.name, tag.version or "", error))
        raise


def _is_pushed(remote: ItemSchema | None) -> bool:
    return remote is not None and remote.upload_status == UPLOADED


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

    async def once() -> ItemSchema | None:
        try:
            return await routes.create(tag.name, body)
        except APIError as error:
            if not await _is_there(routes.get(tag.name, tag.version or "")):
                raise error from None
        return None

    return await with_retries(routes.session.config.retry, once)


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
