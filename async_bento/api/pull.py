"""A pull, step by step: which version, the local copy, the bytes, the commit."""

from __future__ import annotations

from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from async_bento._core.concurrency import hold_lock, shielded
from async_bento.errors import APIStatusError, ArchiveError, NotFoundError, PartError, StoreError
from async_bento.rest.schemas import BentoManifestSchema, ModelManifestSchema
from async_bento.store.tag import LATEST, Tag
from async_bento.transfer.download import download
from async_bento.transfer.resumable_extract import Unpacking

if TYPE_CHECKING:
    from collections.abc import Generator

    from async_bento._core.concurrency import Threads
    from async_bento.api.kinds import ItemT, Kind, RecordT
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.rest.schemas import ItemSchema
    from async_bento.transfer.http import Transport


async def pull_item(
    resources: Resources,
    kind: Kind[ItemT, RecordT],
    tag: Tag,
    *,
    force: bool = False,
    query: str | None = None,
) -> ItemT | None:
    """Pull one bento or model into the local store.

    Args:
        resources: Whose registry, threads and budget.
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
    threads = resources.threads
    with resources.progress("pull", kind.word, tag) as progress:
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
            return await _fetch(kind, exact, remote, force=force, transport=resources.transport, progress=progress)


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
            f"no {kind.word} {tag}{matching} on the registry at {kind.routes.session.endpoint}; "
            f"`{kind.command.removesuffix('pull')}list` shows what is there"
        )
    return found


async def _local(kind: Kind[ItemT, RecordT], tag: Tag, threads: Threads) -> ItemT | None:
    def find() -> ItemT:
        item = kind.store.get(tag, prefix=False)
        kind.store.recover(item.tag)  # one that was killed as it ended has left something, and no other does so for it
        return item

    try:
        return await threads.run(find)
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


def _announced(remote: ItemSchema) -> int:
    """The size the registry has of an item, in bytes; 0 where it has none."""
    manifest = getattr(remote, "manifest", None)
    return manifest.size_bytes if isinstance(manifest, (BentoManifestSchema, ModelManifestSchema)) else 0


async def _fetch(
    kind: Kind[ItemT, RecordT], tag: Tag, remote: ItemSchema, *, force: bool, transport: Transport, progress: Progress
) -> ItemT:
    """Unpack it beside the store, and move it there in one step when it is whole; one process at a time."""
    threads, store = transport.threads, kind.store
    lock = await threads.run(store.lock, tag)
    async with hold_lock(lock, threads, lambda: progress.enter("planning", "waiting for another process")):
        if not force and (local := await _local(kind, tag, threads)):
            progress.enter("skipped", "another process has just pulled it")
            return local
        resume = tag if transport.config.transfer.resume else None
        async with threads.entered(store.stage(resume)) as staged:
            unpacking = await threads.run(
                Unpacking,
                staged,
                None if resume is None else store.state_of(staged),
                kind.routes.session.endpoint,
                threads,
                transport.config.limits,
                _announced(remote),
            )
            try:
                await _download(kind, tag, remote, unpacking, transport, progress)
                progress.enter("finishing")
                await unpacking.close()
            except BaseException as error:
                await shielded(unpacking.give_up(keep=not isinstance(error, (ArchiveError, StoreError))))
                raise
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
