"""A pull, step by step: which version, the local copy, the bytes, the commit."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from async_bento.archive.extract import Extractor
from async_bento.concurrency import finish
from async_bento.errors import APIStatusError, ArchiveError, NotFoundError, PartError, StoreError
from async_bento.store.tag import LATEST, Tag
from async_bento.transfer.download import download
from async_bento.wire.schemas import ModelManifestSchema

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from async_bento.concurrency import Threads
    from async_bento.connection import Connection
    from async_bento.kind import ItemT, Kind, RecordT
    from async_bento.progress import Progress
    from async_bento.store.scratch import Lock
    from async_bento.transfer.http import Transport
    from async_bento.wire.schemas import ItemSchema

SECONDS_BETWEEN_LOOKS = 0.2
"""How often a pull looks whether another process is done pulling the same."""


async def pull_item(
    connection: Connection,
    kind: Kind[ItemT, RecordT],
    tag: Tag,
    *,
    force: bool = False,
    query: str | None = None,
) -> ItemT | None:
    """Pull one bento or model into the local store.

    Args:
        connection: Whose registry, threads and budget.
        kind: Bentos or models.
        tag: What to pull; without a version, or with `latest`, the newest.
        force: Whether to replace the local copy.
        query: What the newest must match.

    Returns:
        The local item; None for a model that has no bytes on the registry.

    Raises:
        NotFoundError: The registry has no such item.
        BentoError: It failed; the local copy is as it was.
    """
    threads = connection.threads
    with connection.progress("pull", kind.word, tag) as progress:
        if not wants_newest(tag) and not force and (local := await _local(kind, tag, threads)):
            progress.enter("skipped", "already here")
            return local
        remote = await get_item(kind, tag, query)
        exact = Tag(tag.name, remote.version)
        progress.tag = str(exact)
        if wants_newest(tag) and not force and (kept := await _as_new(kind, exact, remote, query, threads)):
            progress.enter("skipped", f"{kept.tag} is here already")
            return kept
        if hub := _hub_of(remote):
            progress.enter("skipped", f"its files live at {hub}")
            return None
        with _naming(exact):
            return await _fetch(kind, exact, remote, force=force, transport=connection.transport, progress=progress)


def wants_newest(tag: Tag) -> bool:
    """Whether a tag leaves the version to the registry.

    Args:
        tag: A tag.

    Returns:
        True without a version, and for `latest`.
    """
    return tag.version in {None, LATEST}


async def get_item(kind: Kind[ItemT, RecordT], tag: Tag, query: str | None = None) -> RecordT:
    """Find a record on the registry.

    Args:
        kind: A bento or a model.
        tag: Its tag; without a version, or with `latest`, the newest.
        query: What the newest must match.

    Returns:
        The record.

    Raises:
        NotFoundError: There is none.
        APIError: The registry was not reached, or refused.
    """
    if not wants_newest(tag):
        found = await kind.routes.get(tag.name, tag.version or "")
    else:
        page = await kind.routes.list(tag.name, count=1, query=query)
        found = page.items[0] if page and page.items else None
    if found is None:
        matching = f" that matches {query!r}" if query else ""
        raise NotFoundError(
            f"no {kind.word} {tag}{matching} on the registry at {kind.routes.client.endpoint}; "
            f"`{kind.command.removesuffix('pull')}list` shows what is there"
        )
    return found


async def _local(kind: Kind[ItemT, RecordT], tag: Tag, threads: Threads) -> ItemT | None:
    try:
        return await threads.run(kind.store.get, tag, prefix=False)
    except NotFoundError:
        return None
    except StoreError as error:
        raise StoreError(f"{error}; pulling it by force replaces it") from error


async def _as_new(
    kind: Kind[ItemT, RecordT], exact: Tag, remote: ItemSchema, query: str | None, threads: Threads
) -> ItemT | None:
    """The local item, where it is the registry's newest or newer."""
    if query is None:
        newest = await _local(kind, Tag(exact.name), threads)
        if newest and remote.build_at and newest.creation_time >= remote.build_at:
            return newest
    return await _local(kind, exact, threads)


def _hub_of(remote: ItemSchema) -> str | None:
    manifest = getattr(remote, "manifest", None)
    if not isinstance(manifest, ModelManifestSchema) or manifest.metadata.get("registry") != "huggingface":
        return None
    return str(manifest.metadata.get("url") or manifest.metadata.get("model_id") or "the Hugging Face Hub")


async def _fetch(
    kind: Kind[ItemT, RecordT], tag: Tag, remote: ItemSchema, *, force: bool, transport: Transport, progress: Progress
) -> ItemT:
    """Unpack it beside the store, and move it there in one step when it is whole; one process at a time."""
    threads, store = transport.threads, kind.store
    async with _alone(await threads.run(store.lock, tag), threads):
        if not force and (local := await _local(kind, tag, threads)):
            progress.enter("skipped", "another process has just pulled it")
            return local
        async with threads.entered(store.stage()) as staged:
            unpacking = await threads.run(Unpacking, staged, threads)  # it looks whether the directory is empty
            try:
                await _download(kind, tag, remote, unpacking, transport, progress)
                progress.enter("finishing")
                await threads.run(unpacking.extractor.close)
            finally:
                await threads.run(unpacking.extractor.abort)
            return await threads.run(store.commit, staged, tag, replace=force)


@contextmanager
def _naming(tag: Tag) -> Generator[None]:
    """Let what is wrong with a tar, or with the disk, say whose it is."""
    try:
        yield
    except (ArchiveError, StoreError) as error:
        error.args = (f"cannot pull {tag}: {error}",)
        raise


async def _download(
    kind: Kind[ItemT, RecordT],
    tag: Tag,
    remote: ItemSchema,
    unpacking: Unpacking,
    transport: Transport,
    progress: Progress,
) -> None:
    try:
        await download(kind.routes, remote, tag.name, unpacking, transport, progress)
    except (APIStatusError, PartError) as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        raise NotFoundError(
            f"the {kind.word} {tag} is on the registry, but its files are not (its upload: {remote.upload_status}); "
            "whoever has it must push it again"
        ) from error


@asynccontextmanager
async def _alone(lock: Lock, threads: Threads) -> AsyncGenerator[None]:
    """Hold a lock; asked for again and again, since a thread that waits for it could not be cancelled."""
    try:
        while not await threads.run(lock.acquire, timeout=0):  # noqa: ASYNC110 - no event crosses processes
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        yield
    finally:
        await finish(threads.run(lock.release))


@dataclass
class Unpacking:
    """Extracts what arrives into a staging directory.

    Attributes:
        directory: The staging directory.
        threads: Where it is done.
        extractor: What does it.
    """

    directory: Path
    threads: Threads
    extractor: Extractor = field(init=False)

    def __post_init__(self) -> None:
        self.extractor = Extractor(self.directory)

    async def feed(self, data: bytearray) -> None:
        """Extract some more.

        Args:
            data: The next bytes of the tar.

        Raises:
            ArchiveError: They are no part of a tar, or of one that is not safe.
            StoreError: The disk is full, or refuses.
        """
        await self.threads.run(self.extractor.feed, data)

    async def restart(self) -> None:
        """Remove what was extracted: the tar comes again from its first byte."""
        await self.threads.run(self._restart)

    def _restart(self) -> None:
        self.extractor.abort()
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        self.extractor = Extractor(self.directory)
