"""A pull, step by step: the version, the local copy, the bytes, the commit."""

from __future__ import annotations

import logging
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from async_bento._core.concurrency import hold_lock
from async_bento._core.retry import causes, is_missing
from async_bento._core.tag import Tag
from async_bento.api.kinds import BARE_REASON, ItemT, RecordT
from async_bento.api.records import ANY, get_record, hub_metadata, newest_records, not_found, wants_newest
from async_bento.errors import (
    APIStatusError,
    ArchiveError,
    ConfigError,
    NotFoundError,
    PartError,
    StoreError,
    prefix_errors,
    with_message,
)
from async_bento.integrations.huggingface.client import download as download_from_hub
from async_bento.integrations.huggingface.model import HubModel, HuggingFaceModel
from async_bento.rest.schemas import (
    UNFINISHED,
    UPLOADED,
    BentoManifestSchema,
    ModelManifestSchema,
    failure_reason,
)
from async_bento.transfer.download import download
from async_bento.transfer.download_source import DownloadSource
from async_bento.transfer.resumable_extract import resumable_extract

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.api.kinds import Kind
    from async_bento.api.records import Selector
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.rest.schemas import ItemSchema
    from async_bento.store.directory import TargetDirectory

logger = logging.getLogger(__package__)


class Puller(Generic[ItemT, RecordT]):
    """Pulls items of one kind into its store, or one item into a directory.

    `complete`, if set, gets the staged item in a directory before it is moved to its place.
    """

    complete: Callable[[Path], Awaitable[None]] | None = None

    def __init__(
        self, resources: Resources, kind: Kind[ItemT, RecordT], directory: TargetDirectory[ItemT] | None = None
    ) -> None:
        self.resources = resources
        self.kind: Kind[ItemT, RecordT] = kind
        self.directory: TargetDirectory[ItemT] | None = directory

    async def pull(self, tag: Tag, *, force: bool = False, selector: Selector = ANY) -> ItemT | HuggingFaceModel:
        """Pull one item. `selector` narrows the newest version."""
        if self.directory is not None:
            await self.resources.threads.run(self.directory.check, force=force)
        with self.resources.progress("pull", self.kind.word, tag) as progress:
            if wants_newest(tag):
                return await self._pull_newest(tag, force, selector, progress)
            if not force and (local := await self._local(tag)):
                progress.enter("skipped", "already pulled")
                return local
            return await self._pull_record(await get_record(self.kind.routes, tag), tag, force, progress)

    async def _pull_newest(
        self, tag: Tag, force: bool, selector: Selector, progress: Progress
    ) -> ItemT | HuggingFaceModel:
        """Pull the newest version that was uploaded, unless the local newest is as new."""
        passed_over: list[str] = []
        missing: NotFoundError | None = None
        async with aclosing(newest_records(self.kind.routes, tag, selector, passed_over)) as records:
            async for record in records:
                exact = Tag(tag.name, record.version)
                progress.tag = str(exact)
                progress.note = f"passed over {', '.join(passed_over)}" if passed_over else ""
                if not force and (local := await self._local_is_current(exact, record, selector)):
                    message = "already pulled" if local.tag == exact else f"{local.tag} is already pulled"
                    progress.enter("skipped", f"{message}, {progress.note}" if progress.note else message)
                    return local
                try:
                    return await self._pull_record(record, exact, force, progress)
                except NotFoundError as error:
                    if not is_bare(record):
                        raise
                    missing = missing or error
                    passed_over.append(f"{record.version} (without files)")
                    logger.info("%s %s: passed over %s, which has no files", self.kind.word, tag.name, record.version)
        raise missing or not_found(self.kind.routes, tag, selector)

    async def _pull_record(
        self, record: RecordT, exact: Tag, force: bool, progress: Progress
    ) -> ItemT | HuggingFaceModel:
        if (metadata := hub_metadata(record)) is not None:
            if self.directory is not None:
                raise refuse_hub_model(exact, self.directory.path)
            return await pull_from_hub(self.resources, HubModel.of_record(exact, metadata), progress)
        with prefix_errors(f"cannot pull {exact}", ArchiveError, StoreError):
            if self.directory is not None:
                return await self._fetch_into(self.directory, exact, record, force, progress)
            return await self._fetch(exact, record, force, progress)

    async def _local(self, tag: Tag) -> ItemT | None:
        if self.directory is not None:  # its files were checked, and those of the store do not count
            return None
        store = self.kind.store

        def find() -> ItemT:
            item = store.get(tag, prefix=False)
            store.recover(item.tag)  # finishes a commit whose process was killed at its end; nothing else would
            return item

        try:
            return await self.resources.threads.run(find)
        except NotFoundError:
            return None
        except StoreError as error:
            is_denied = any(isinstance(cause, PermissionError) for cause in causes(error))
            remedy = "Make it readable for this user" if is_denied else "Pull with force to replace the local copy"
            raise StoreError(f"{error}. {remedy}.") from error

    async def _local_is_current(self, exact: Tag, record: ItemSchema, selector: Selector) -> ItemT | None:
        """The local item, if it is as new as the registry's newest."""
        if selector.terms is None:
            newest: ItemT | None = None
            with suppress(StoreError):  # a broken version must not hide another one
                newest = await self._local(Tag(exact.name))
            if newest and record.build_at and newest.creation_time >= record.build_at:
                return newest
        return await self._local(exact)

    async def _fetch(self, tag: Tag, record: ItemSchema, force: bool, progress: Progress) -> ItemT:
        """Extract into a staging directory and commit by one rename; one process at a time."""
        threads, store = self.resources.threads, self.kind.store
        lock = await threads.run(store.lock, tag)
        async with hold_lock(
            lock, threads, lambda: progress.enter("planning", "waiting: another process is pulling this version")
        ):
            if not force and (local := await self._local(tag)):
                progress.enter("skipped", "already pulled by another process")
                return local
            resume = tag if self.resources.config.transfer.resume else None
            async with threads.entered(store.stage(resume)) as staged:
                await self._extract(tag, record, staged, progress)
                return await self._commit(tag, staged, force, progress)

    async def _fetch_into(
        self, directory: TargetDirectory[ItemT], tag: Tag, record: ItemSchema, force: bool, progress: Progress
    ) -> ItemT:
        """Extract into a staging directory and move that into a directory; an interrupted pull starts again."""
        threads = self.resources.threads
        async with threads.entered(directory.stage()) as staged:
            await self._extract(tag, record, staged, progress)
            if self.complete is not None:
                await self.complete(staged)
            return await threads.run(directory.commit, staged, tag, force=force)

    async def _commit(self, tag: Tag, staged: Path, force: bool, progress: Progress) -> ItemT:
        threads = self.resources.threads
        commit = await threads.run(self.kind.store.start_commit, staged, tag, replace=force)
        async with hold_lock(
            commit.lock,
            threads,
            lambda: progress.enter("finishing", f"waiting: another pull or delete uses {tag.name}"),
        ):
            item = await threads.run(commit.run)
        # Removes the replaced item, which may take a while: after the lock.
        await threads.run(commit.finish)
        return item

    async def _extract(self, tag: Tag, record: ItemSchema, staged: Path, progress: Progress) -> None:
        pool = self.resources.pool
        resumes = self.directory is None and pool.config.transfer.resume
        state = self.kind.store.state_of(staged) if resumes else None
        opened = resumable_extract(staged, state, self.kind.endpoint, pool.config.limits, _announced_size(record))
        try:
            async with pool.threads.entered(opened) as extract:
                if extract.not_resumed is not None:
                    logger.warning("an interrupted pull of %s cannot be resumed: %s", tag, extract.not_resumed)
                source = DownloadSource(
                    self.kind.routes, tag.name, record, action="pull", verify=pool.config.transfer.verify
                )
                await download(source, extract, pool, progress)
                progress.enter("finishing")
                await pool.threads.run(extract.close)
        except (APIStatusError, PartError) as error:
            if is_missing(error):
                raise NotFoundError(
                    f"cannot pull {tag}: the {self.kind.word} exists in the registry but was never fully uploaded "
                    f"({upload_facts(record)}). Push it again."
                ) from error
            if record.upload_status in UNFINISHED and error.status:
                unfinished = f"cannot pull {tag}: its upload never finished ({upload_facts(record)})"
                raise with_message(error, f"{unfinished}: {error}") from error.__cause__
            raise


def refuse_hub_model(tag: Tag, path: Path) -> ConfigError:
    """Build the error for a model that huggingface_hub downloads, which has directories of its own."""
    return ConfigError(
        f"cannot pull {tag} to {path}: its files are on the Hugging Face Hub. "
        "Pull without a directory: the files are downloaded to the Hugging Face cache."
    )


async def pull_from_hub(resources: Resources, model: HubModel, progress: Progress) -> HuggingFaceModel:
    """Download a model from the Hub into the cache of Hugging Face, where the bento's code looks for it."""
    path = Path(await download_from_hub(model, resources.hub_slots, progress))
    if progress.bytes_done == 0:
        progress.enter("skipped", f"nothing to download: its files are in {path}")
    progress.note = f"its files are in {path}"
    return HuggingFaceModel(model.named, path, model.model_id, path.name)


def upload_facts(record: ItemSchema) -> str:
    """What the registry recorded of an upload: status, start, user, and the reason of a failure."""
    facts = "pushed without its files" if is_bare(record) else f"upload_status={record.upload_status}"
    if started := record.upload_started_at or record.created_at:
        facts += f", started at {started:%Y-%m-%d %H:%M} UTC"
    if record.creator:
        facts += f" by {record.creator.name}"
    reason = failure_reason(record)
    return f"{facts}: {reason}" if reason else facts


def is_bare(record: ItemSchema) -> bool:
    """Whether a record was pushed without files. It can still have the files of another push."""
    manifest = getattr(record, "manifest", None)
    is_dev = isinstance(manifest, BentoManifestSchema) and manifest.dev
    return record.upload_status == UPLOADED and (is_dev or record.upload_finished_reason == BARE_REASON)


def _announced_size(record: ItemSchema) -> int:
    """The size by the record, in bytes; 0 where the record states none."""
    manifest = getattr(record, "manifest", None)
    return manifest.size_bytes if isinstance(manifest, (BentoManifestSchema, ModelManifestSchema)) else 0
