"""The comparison of a local item with the registry's, and of two items in the registry."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from async_bento._core.concurrency import for_each, shielded
from async_bento._core.s3 import bare_etag, etag_of_parts, is_md5
from async_bento._core.tag import Tag, TaggedItem
from async_bento.api.compare import (
    PERMISSIONS,
    Contents,
    Difference,
    compare,
    equal_sizes,
    scan_copy,
    tree_of,
)
from async_bento.api.records import get_record
from async_bento.api.remote_item import RemoteItem, refuse_hub_model
from async_bento.errors import (
    ArchiveError,
    InvalidTagError,
    NotFoundError,
    SourceChangedError,
    TransferError,
    with_message,
)
from async_bento.rest.schemas import ChecksumsSchema
from async_bento.store.directory import TEMPORARY_NAMES
from async_bento.store.errors import as_store_error
from async_bento.transfer.http import ByteRange
from async_bento.transfer.source import choose_part_size
from async_bento.transfer.tar.digests import FileDigests, digest_files
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.tar.reader import TarReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from async_bento.api.compare import Node
    from async_bento.api.kinds import Kind
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.store.items import Item
    from async_bento.transfer.remote import RemoteTar

T = TypeVar("T")

logger = logging.getLogger(__package__)

HASHES_AT_ONCE = 4
"""Files or parts that are hashed at once: MD5 takes one core for each, and other calls need threads, too."""

_MAX_BATCH, _MIN_BATCHES = 64, 32  # files that one call of a thread hashes, and calls for a few large files

_COMPARE = "compare"  # for messages
_PUSH_THREADS = 10  # the default of a push, by which it chooses its part size

Method = Literal["checksums", "index", "content"]


@dataclass(frozen=True)
class VerifyResult:
    """The outcome of a verification.

    Attributes:
        tag: The tag of the bento or model.
        method: How it was decided: by `checksums` of the whole tar, by the `index` (names, types, sizes, times,
            executable bits and targets of links), or by `content`.
        differences: What differs, sorted by path. `added` is what only the local copy has.
    """

    tag: Tag
    method: Method
    differences: tuple[Difference, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


@dataclass(frozen=True)
class DiffResult:
    """The differences between two bentos or models in the registry.

    Attributes:
        tag: The tag of the first.
        other: The tag of the second.
        method: How it was decided: by `checksums` of the whole tars, by the `index` (names, types, sizes, times, modes
            and targets of links), or by `content`.
        differences: What differs, sorted by path. `added` is what only the second has.
    """

    tag: Tag
    other: Tag
    method: Method
    differences: tuple[Difference, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


class _RemoteTree(NamedTuple):
    """The files of a tar at one time."""

    tar: RemoteTar
    nodes: dict[str, Node]


class _OtherPartError(Exception):
    """A part of the local tar has another MD5 than that of the registry."""


async def verify(resources: Resources, kind: Kind[Any, Any], item: Item, *, full: bool) -> VerifyResult:
    """Compare a local item with the registry's; `full`: by content."""
    remote, run = RemoteItem(resources, kind, item.tag), resources.threads.run
    with resources.progress("verify", kind.word, item.tag) as progress:
        if not full and await _has_checksums(remote, item, progress):
            return VerifyResult(item.tag, "checksums")
        progress.bytes_done, progress.bytes_total = 0, None
        progress.enter("planning")
        tree = await _load(remote, "verify")
        exclude = {*TEMPORARY_NAMES, *kind.excluded}.difference(tree.nodes)
        local = await run(scan_copy, item.path, exclude, tree.nodes, tree.tar.index)
        tree = tree._replace(nodes=local.remote)
        if not full:
            return VerifyResult(item.tag, "index", await run(compare, *local))
        paths = await run(equal_sizes, local.remote, local.nodes)
        digests = await _together(
            partial(_remote_digests, remote, tree, paths, progress), partial(_local_digests, resources, item, paths)
        )
        return VerifyResult(item.tag, "content", await run(compare, *local, Contents(*digests)))


async def diff(resources: Resources, kind: Kind[Any, Any], tags: tuple[Tag, Tag], *, full: bool) -> DiffResult:
    """Compare two items in the registry; `full`: by content."""
    items, run = [RemoteItem(resources, kind, tag) for tag in tags], resources.threads.run

    def result(method: Method, differences: tuple[Difference, ...] = ()) -> DiffResult:
        return DiffResult(items[0].tag, items[1].tag, method, differences)

    if not full:
        one, other = await _together(*(partial(item.run, _COMPARE, partial(_checksums, item)) for item in items))
        if one and other and (one.size, bare_etag(one.etag)) == (other.size, bare_etag(other.etag)):
            return result("checksums")
    old, new = await _together(*(partial(_load, item, _COMPARE) for item in items))
    if not full:
        return result("index", await run(compare, old.nodes, new.nodes, PERMISSIONS))
    paths = await run(equal_sizes, old.nodes, new.nodes)

    async def read(item: RemoteItem, tree: _RemoteTree) -> Mapping[str, bytes]:
        with resources.progress("diff", kind.word, item.tag) as progress:
            return await _remote_digests(item, tree, paths, progress)

    digests = await _together(partial(read, items[0], old), partial(read, items[1], new))
    return result("content", await run(compare, old.nodes, new.nodes, PERMISSIONS, Contents(*digests)))


async def refuse_hub_tag(kind: Kind[Any, Any], item: object) -> None:
    """Raise ConfigError for the tag of a model that is on the Hugging Face Hub: no local store has such a model."""
    if isinstance(item, (str, TaggedItem)):
        with suppress(InvalidTagError, NotFoundError):
            tag = Tag.parse(item)
            refuse_hub_model("verify", tag, await get_record(kind.routes, tag))


async def _checksums(remote: RemoteItem, tar: RemoteTar) -> ChecksumsSchema | None:
    """The size and the ETag of a tar, with the MD5s of its parts if the registry knows them; None if unknown."""
    if remote.record is not None and remote.record.checksums is not None:
        return remote.record.checksums
    await tar.load("")  # its first member is the root
    # A weak ETag (RFC 9110, 8.8.1) does not identify the bytes.
    if tar.total is None or not tar.etag or tar.etag.startswith("W/"):
        return None
    return ChecksumsSchema(size=tar.total, etag=tar.etag, parts=[])


async def _has_checksums(remote: RemoteItem, item: Item, progress: Progress) -> bool:
    """Whether the tar that a push of a local item would send has the checksums of the registry's."""
    expected = await remote.run("verify", partial(_checksums, remote))
    if expected is None:
        return False
    threads, tag = remote.resources.threads, item.tag
    try:
        plan = await threads.run(TarPlan.scan, item.path, exclude={*TEMPORARY_NAMES, *remote.kind.excluded})
    except ArchiveError as error:
        logger.info("%s: its list of files is compared, since %s", tag, error)
        return False
    parts = _parts(expected, remote.resources) if plan.size == expected.size else ()
    if not parts:
        return False
    progress.enter("transferring", bytes_total=plan.size)
    try:
        return await _has_parts(plan, parts, expected.etag, remote.resources, progress)
    except SourceChangedError as error:
        raise SourceChangedError(
            f"cannot verify {tag}: {error.path} changed meanwhile. Verify again.", path=error.path
        ) from error
    except ArchiveError as error:
        raise with_message(error, f"cannot verify {tag}: {error}") from error.__cause__


def _parts(expected: ChecksumsSchema, resources: Resources) -> Sequence[tuple[int, str]]:
    """The sizes of the parts of a tar, with their MD5s if these are known; none where the sizes are unknown."""
    size, etag = expected.size, bare_etag(expected.etag)
    if expected.parts:
        is_valid = all(part > 0 for part, _ in expected.parts) and sum(part for part, _ in expected.parts) == size
        return expected.parts if is_valid else ()
    if is_md5(etag):
        return [(size, etag)]
    digest, _, count = etag.partition("-")
    if not is_md5(digest):
        return ()
    # The storage does not know the size of the parts. A tar of another client has other headers anyway.
    part_size = choose_part_size(size, resources.config.transfer.part_size, _PUSH_THREADS)
    starts = range(0, size, part_size)
    return [(min(part_size, size - start), "") for start in starts] if count == str(len(starts)) else ()


async def _has_parts(
    plan: TarPlan, parts: Sequence[tuple[int, str]], etag: str, resources: Resources, progress: Progress
) -> bool:
    """Whether the parts of a local tar have their MD5s, or else the ETag; stops at the first that has another one."""
    digests = [""] * len(parts)
    ends = [*accumulate(size for size, _ in parts)]

    async def check(number: int) -> None:
        size, expected = parts[number]
        digests[number] = await _md5(plan, ByteRange(ends[number] - size, ends[number]), resources, progress)
        if expected and digests[number] != expected.lower():
            raise _OtherPartError

    try:
        await for_each(check, range(len(parts)), HASHES_AT_ONCE)
    except _OtherPartError:
        return False
    return all(expected for _, expected in parts) or bare_etag(etag_of_parts(digests) or "") == bare_etag(etag)


async def _md5(plan: TarPlan, byte_range: ByteRange, resources: Resources, progress: Progress) -> str:
    io_chunk, run = resources.config.transfer.io_chunk, resources.threads.run
    reader = TarReader(plan, byte_range.start, byte_range.stop, io_chunk=io_chunk, digest=True)
    try:
        while chunk := await run(reader.read):
            progress.advance(len(chunk))
    finally:
        await shielded(run(reader.close))
    assert reader.md5 is not None
    return reader.md5.hexdigest()


async def _load(item: RemoteItem, action: str) -> _RemoteTree:
    async def load(tar: RemoteTar) -> _RemoteTree:
        await tar.load()
        return _RemoteTree(tar, await item.resources.threads.run(tree_of, tar.index))

    return await item.run(action, load)


async def _remote_digests(
    item: RemoteItem, tree: _RemoteTree, paths: Sequence[str], progress: Progress
) -> Mapping[str, bytes]:
    """The digests of files in the registry, by path."""
    entries = {path: entry for path in paths if (entry := tree.nodes[path].entry)}
    if not entries:
        return {}

    async def read(tar: RemoteTar) -> dict[int, bytes]:
        if tar is not tree.tar:
            raise TransferError(f"cannot compare {item.tag}: the item was pushed again meanwhile. Try again.")
        digests = await item.resources.threads.run(FileDigests, tar.index, entries.values())
        await tar.copy(digests.pieces, digests, progress)
        return digests.digests

    digests = await item.run(_COMPARE, read)
    return {path: digests[entry.content] for path, entry in entries.items()}


async def _local_digests(resources: Resources, item: Item, paths: Sequence[str]) -> Mapping[str, bytes]:
    """The digests of files on disk, by path."""
    digests: dict[str, bytes] = {}

    async def read(batch: Sequence[str]) -> None:
        with as_store_error(f"verify {item.tag}"):
            digests.update(await resources.threads.run(digest_files, item.path, batch))

    # A thread for each of many small files would cost more than the hashing.
    size = min(_MAX_BATCH, -(-len(paths) // _MIN_BATCHES))
    await for_each(read, [paths[start : start + size] for start in range(0, len(paths), size or 1)], HASHES_AT_ONCE)
    return digests


async def _together(*calls: Callable[[], Awaitable[T]]) -> list[T]:
    """Await calls concurrently; the first error cancels the others and is raised."""
    results: dict[int, T] = {}

    async def run(number: int) -> None:
        results[number] = await calls[number]()

    await for_each(run, range(len(calls)), len(calls))
    return [results[number] for number in range(len(calls))]
