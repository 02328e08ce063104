"""A push, step by step: the models, the repository, the record, the bytes.

The order is that of BentoML 1.4.39 (`bentoml/_internal/cloud/bento.py`), but that the directory is looked through
before anything is registered: what cannot be read is told before the registry has heard of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from async_bento.archive.plan import TarPlan
from async_bento.concurrency import for_each
from async_bento.errors import APIError, NotFoundError
from async_bento.huggingface import HubModel, freeze, measure
from async_bento.store.store import ModelStore
from async_bento.transfer.upload import Uploaded, upload
from async_bento.wire.schemas import UPLOADED, CreateModelSchema, FinishUploadSchema, ModelManifestSchema

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from async_bento.connection import Connection
    from async_bento.kind import ItemT, Kind, Record, RecordT
    from async_bento.store.info import BentoModelInfo
    from async_bento.store.items import Bento, Model
    from async_bento.store.store import Store
    from async_bento.store.tag import Tag
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


async def push_models(
    connection: Connection,
    kind: Kind[Model, RecordT],
    bento: Bento,
    *,
    force: bool,
    threads: int,
    repositories: Repositories,
) -> tuple[PushResult, ...]:
    """Push a bento's models, all at once. Those that live on the Hub are registered, and no bytes are sent.

    Args:
        connection: Whose registry, threads and budget.
        kind: Models.
        bento: The bento.
        force: Whether to push those too that the registry has already.
        threads: Parts in flight at most, for each model.
        repositories: Those that are known to be there.

    Returns:
        What was done with each, in the bento's order.

    Raises:
        NotFoundError: A model is neither here nor on the registry.
        BentoError: One failed; the others have been stopped.
    """
    results: dict[Tag, PushResult] = {}

    async def push_one(wanted: BentoModelInfo) -> None:
        if wanted.is_huggingface:
            results[wanted.tag] = await _push_hub_model(connection, kind, wanted, repositories)
            return
        model = await connection.threads.run(_find_model, wanted.tag, bento, kind.store)
        results[wanted.tag] = (
            await push_item(connection, kind, model, force=force, threads=threads, repositories=repositories)
            if model is not None
            else await _do_without(connection, kind, wanted, bento)
        )

    await for_each(push_one, bento.models, connection.config.transfer.concurrency)
    return tuple(results[wanted.tag] for wanted in bento.models)


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
        registered = await _register(kind.routes, name, version, remote, record)
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


def _find_model(tag: Tag, bento: Bento, store: Store[Model]) -> Model | None:
    """A bento's model: in its own directory, where it was exported with its models, or in the store."""
    for place in (ModelStore(bento.path / "models"), store):
        with suppress(NotFoundError):
            return place.get(tag, prefix=False)
    return None


async def _do_without(
    connection: Connection, kind: Kind[Model, RecordT], wanted: BentoModelInfo, bento: Bento
) -> PushResult:
    """Go on without a model that is not here, where the registry has it."""
    with connection.progress("push", kind.word, wanted.tag) as progress:
        remote = await kind.routes.get(wanted.tag.name, wanted.tag.version or "")
        if remote is None or remote.upload_status != UPLOADED:
            raise NotFoundError(
                f"{bento.tag} needs the model {wanted.tag}, which is neither in {kind.store.path} nor on the registry "
                f"at {connection.client.endpoint}; `bentoml models list` shows what is here"
            )
        progress.enter("skipped", "not here, but on the registry")
    return PushResult(wanted.tag, skipped=True)


async def _push_hub_model(
    connection: Connection, kind: Kind[Model, RecordT], wanted: BentoModelInfo, repositories: Repositories
) -> PushResult:
    """Register a model that lives on the Hub; the Hub is asked only where the registry does not have it.

    A record that is there is left as it is, also by force, as BentoML does: its version says what it is.
    """
    began = time.monotonic()
    routes, tag, model = kind.routes, wanted.tag, HubModel.of(wanted)
    with connection.progress("push", kind.word, tag) as progress:
        remote = await routes.get(tag.name, tag.version or "")
        if remote is None:
            model = await freeze(model, connection.hub_threads)
            if model.tag != tag:  # an older BentoML gave it another version
                tag = model.tag
                remote = await routes.get(tag.name, tag.version or "")
        if remote is not None:
            progress.enter("skipped", "already there")
            return PushResult(tag, skipped=True, seconds=time.monotonic() - began)
        size = await measure(model, connection.hub_threads)
        manifest = ModelManifestSchema.model_validate(model.manifest(size))
        create = CreateModelSchema(manifest=manifest, version=tag.version or "", build_at=datetime.now(timezone.utc))
        await repositories.ensure(routes, tag.name)
        try:
            await routes.create(tag.name, create)
        except APIError as error:
            if not await _is_there(routes.get(tag.name, tag.version or "")):
                raise error from None
        progress.note = f"its files stay at {model.url}"
    return PushResult(tag, seconds=time.monotonic() - began)


def _count(models: tuple[PushResult, ...]) -> str:
    if not models:
        return ""
    skipped = sum(model.skipped for model in models)
    return f"{len(models)} model{'s' if len(models) > 1 else ''}" + (f", {skipped} skipped" if skipped else "")
