"""A pull, step by step: the version, the local copy, the bytes, the commit."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Generic

from async_bento._core.concurrency import hold_lock
from async_bento.api.kinds import ItemT, RecordT
from async_bento.errors import APIStatusError, ArchiveError, NotFoundError, PartError, StoreError, prefix_errors
from async_bento.rest.schemas import BentoManifestSchema, ModelManifestSchema
from async_bento.store.tag import LATEST, Tag
from async_bento.transfer.download import DownloadSource, download
from async_bento.transfer.resumable_extract import resumable_extract

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.api.kinds import Kind
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.rest.schemas import ItemSchema


def wants_newest(tag: Tag) -> bool:
    """Whether a tag leaves the version to the registry: it has none, or `latest`."""
    return tag.version in {None, LATEST}


async def find_record(kind: Kind[ItemT, RecordT], tag: Tag, query: str | None = None) -> RecordT:
    """Get a record from the registry; of a tag without a version, the newest one that matches `query`."""
    if not wants_newest(tag):
        found = await kind.routes.get(tag.name, tag.version or "")
    else:
        page = await kind.routes.list(tag.name, count=1, query=query)
        found = page.items[0] if page and page.items else None
    if found is None:
        matching = f" that matches {query!r}" if query else ""
        raise NotFoundError(
            f"no {kind.word} {tag}{matching} in the registry at {kind.endpoint}. "
            f"`{kind.store.item_type.PULL_COMMAND.removesuffix('pull')}list` shows its {kind.word}s."
        )
    return found


class Puller(Generic[ItemT, RecordT]):
    """Pulls items of one kind into its store."""

    def __init__(self, resources: Resources, kind: Kind[ItemT, RecordT]) -> None:
        self.resources = resources
        self.kind: Kind[ItemT, RecordT] = kind

    async def pull(self, tag: Tag, *, force: bool = False, query: str | None = None) -> ItemT | None:
        """Pull one item; None for a model that has no bytes in the registry. `query` narrows the newest version."""
        newest = wants_newest(tag)
        with self.resources.progress("pull", self.kind.word, tag) as progress:
            if not newest and not force and (local := await self._local(tag)):
                progress.enter("skipped", "already pulled")
                return local
            record = await find_record(self.kind, tag, query)
            exact = Tag(tag.name, record.version)
            progress.tag = str(exact)
            if newest and not force and (local := await self._local_is_current(exact, record, query)):
                progress.enter("skipped", f"{local.tag} is already pulled")
                return local
            if hub := _hub_of(record):
                progress.enter("skipped", f"its files are at {hub}")
                return None
            with prefix_errors(f"cannot pull {exact}", ArchiveError, StoreError):
                return await self._fetch(exact, record, force, progress)

    async def _local(self, tag: Tag) -> ItemT | None:
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
            raise StoreError(f"{error}. Pull with force to replace the local copy.") from error

    async def _local_is_current(self, exact: Tag, record: ItemSchema, query: str | None) -> ItemT | None:
        """The local item, if it is as new as the registry's newest."""
        if query is None:
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

    async def _commit(self, tag: Tag, staged: Path, force: bool, progress: Progress) -> ItemT:
        threads = self.resources.threads
        commit = await threads.run(self.kind.store.start_commit, staged, tag, replace=force)
        async with hold_lock(
            commit.lock, threads, lambda: progress.enter("finishing", f"waiting: another process changes {tag.name}")
        ):
            item = await threads.run(commit.run)
        await threads.run(commit.finish)
        return item

    async def _extract(self, tag: Tag, record: ItemSchema, staged: Path, progress: Progress) -> None:
        pool = self.resources.pool
        state = self.kind.store.state_of(staged) if pool.config.transfer.resume else None
        opened = resumable_extract(staged, state, self.kind.endpoint, pool.config.limits, _announced_size(record))
        try:
            async with pool.threads.entered(opened) as extract:
                await download(DownloadSource(self.kind.routes, tag.name, record), extract, pool, progress)
                progress.enter("finishing")
                await pool.threads.run(extract.close)
        except (APIStatusError, PartError) as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise NotFoundError(
                    f"cannot pull {tag}: the {self.kind.word} exists in the registry but was never fully uploaded "
                    f"(upload_status={record.upload_status}). Push it again."
                ) from error
            raise


def _hub_of(record: ItemSchema) -> str | None:
    manifest = getattr(record, "manifest", None)
    if not isinstance(manifest, ModelManifestSchema) or manifest.metadata.get("registry") != "huggingface":
        return None
    return str(manifest.metadata.get("url") or manifest.metadata.get("model_id") or "the Hugging Face Hub")


def _announced_size(record: ItemSchema) -> int:
    """The size by the record, in bytes; 0 where the record states none."""
    manifest = getattr(record, "manifest", None)
    return manifest.size_bytes if isinstance(manifest, (BentoManifestSchema, ModelManifestSchema)) else 0
