"""A copy between registries, step by step: the record, the models, the bytes. Nothing is written to the disk.

The target receives the bytes as in a push of a directory: in parts, which the copy after a killed one finds there. An
existing record is updated after the bytes.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Generic

from async_bento._core.retry import is_missing
from async_bento._core.tag import Tag
from async_bento.api.bento_models import for_each_model
from async_bento.api.kinds import ItemT, RecordT
from async_bento.api.pull import is_bare, upload_facts
from async_bento.api.push import Prepared, PushResult, count_models
from async_bento.api.records import get_record, hub_metadata
from async_bento.errors import ConfigError, NotFoundError, TransferError, prefix_errors
from async_bento.rest.schemas import UNFINISHED, BentoManifestSchema
from async_bento.transfer.copy import CopyReads, CopySource
from async_bento.transfer.copy_bodies import SourceReadError
from async_bento.transfer.download_source import DownloadSource
from async_bento.transfer.verify import DamagedPartError, ObjectChangedError

if TYPE_CHECKING:
    from async_bento.api.kinds import Kind
    from async_bento.api.push import Pusher
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.rest.schemas import BentoWithRepositorySchema, ItemSchema, ModelWithRepositorySchema
    from async_bento.store.items import Bento, Model


class Copier(Generic[ItemT, RecordT]):
    """Copies items of one kind from a registry to that of a pusher, for one call of `copy`."""

    def __init__(
        self, resources: Resources, kind: Kind[ItemT, RecordT], pusher: Pusher[ItemT, RecordT], reads: CopyReads
    ) -> None:
        self.resources = resources
        self.kind: Kind[ItemT, RecordT] = kind
        self.pusher: Pusher[ItemT, RecordT] = pusher
        self._reads = reads

    async def find(self, tag: Tag) -> RecordT:
        """Find the record of a tag; of one without a version, the newest that was uploaded."""
        endpoint = await self.kind.routes.session.find_endpoint()
        if endpoint == await self.pusher.kind.routes.session.find_endpoint():
            raise ConfigError(
                f"cannot copy within one registry: source and target are both {endpoint}. Name another target."
            )
        record = await get_record(self.kind.routes, tag)
        # While an item is pushed again, the bytes of the push before are still there.
        is_replaced = record.upload_status == "uploading" and record.upload_finished_at is not None
        if record.upload_status in UNFINISHED and not is_replaced and hub_metadata(record) is None:
            raise NotFoundError(
                f"cannot copy {tag.name}:{record.version}: its upload never finished ({upload_facts(record)}). "
                "Push it again."
            )
        return record

    async def copy(self, tag: Tag, record: RecordT, models: tuple[PushResult, ...] = ()) -> PushResult:
        """Copy the item of a record; once more from the start if it is replaced or damaged on the way."""
        with self.resources.progress("copy", self.kind.word, tag) as progress:
            progress.note = count_models(models)
            if hub_metadata(record) is not None:
                return await self._copy_record(tag, record, progress)
            is_again = False
            while True:
                try:
                    async with AsyncExitStack() as stack:
                        prepare = partial(self._prepare, tag, record, stack)
                        return await self.pusher.send(tag, prepare, progress, models)
                except SourceReadError as error:
                    # The source's own error: SourceReadError only keeps the upload from retrying it.
                    with prefix_errors(f"cannot copy {tag}"):
                        raise error.error from error.error.__cause__
                except (ObjectChangedError, DamagedPartError) as error:
                    if is_again:
                        raise TransferError(
                            f"cannot copy {tag}: {error}, twice. Copy again; if it is damaged in {self.kind.endpoint}, "
                            "push it again with force (`--force`)."
                        ) from error
                    progress.restart(f": {error}")
                    is_again, record = True, await self.find(tag)

    async def _prepare(self, tag: Tag, record: RecordT, stack: AsyncExitStack) -> Prepared:
        """Make the bodies of the record, and find the bytes; None for a record that was pushed without files."""
        routes, identity = self.kind.routes, _identity(record)

        async def check() -> None:
            current = await routes.get(tag.name, record.version)
            if current is None or _identity(current) != identity:
                raise ObjectChangedError("the item was pushed again during the copy")

        download = DownloadSource(
            routes, tag.name, record, action="copy", verify=self._reads.pool.config.transfer.verify
        )
        source = CopySource(download, self._reads, check, identity)
        stack.push_async_callback(source.aclose)
        bodies = self.kind.copied_bodies(record)
        try:
            await source.open()
        except SourceReadError as error:
            if not is_missing(error.error):
                raise
            if is_bare(record):
                return Prepared(None, bodies)
            raise NotFoundError(
                f"cannot copy {tag}: {self.kind.endpoint} has a record of the {self.kind.word}, but not its files. "
                "Push it again."
            ) from error.error
        return Prepared(source, bodies)

    async def _copy_record(self, tag: Tag, record: RecordT, progress: Progress) -> PushResult:
        """Copy the record of a model on the Hugging Face Hub, which has its files."""
        started = time.monotonic()
        routes = self.pusher.kind.routes
        if await routes.get(tag.name, record.version) is not None:
            progress.enter("skipped", "already pushed")
            return PushResult(tag, skipped=True, seconds=time.monotonic() - started)
        await self.pusher.ensure_repository(tag.name)
        await self.pusher.create_record(tag, self.kind.copied_bodies(record).create)
        progress.note = "its files stay on the Hugging Face Hub"
        return PushResult(tag, seconds=time.monotonic() - started)


async def copy_item(copier: Copier[ItemT, RecordT], tag: Tag) -> PushResult:
    """Copy one item, once per call."""
    record = await copier.find(tag)
    exact = Tag(tag.name, record.version)
    return await copier.pusher.once(exact, partial(copier.copy, exact, record))


async def copy_with_models(
    bentos: Copier[Bento, BentoWithRepositorySchema], models: Copier[Model, ModelWithRepositorySchema], tag: Tag
) -> PushResult:
    """Copy a bento after its models."""
    started = time.monotonic()
    record = await bentos.find(tag)
    exact = Tag(tag.name, record.version)
    manifest = record.manifest or BentoManifestSchema()
    wanted = {each: each for each in map(Tag.parse, manifest.models)}
    results: dict[Tag, PushResult] = {}

    async def copy_model(model: Tag) -> None:
        results[model] = await copy_item(models, model)

    async def copy() -> PushResult:
        await for_each_model(models.resources, wanted, copy_model, f"cannot copy {exact}: {{}} failed")
        return await bentos.copy(exact, record, tuple(results[model] for model in wanted))

    result = await bentos.pusher.once(exact, copy)
    return replace(result, seconds=time.monotonic() - started)


def _identity(record: ItemSchema) -> str:
    """What changes when a push of an item succeeds."""
    return f"{record.uid} {record.upload_finished_at}"
