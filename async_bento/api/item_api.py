"""ItemAPI: what the APIs of bentos and of models have in common."""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Generic

from async_bento._core.tag import Tag, is_path, refuse_pattern
from async_bento.api.copy import Copier
from async_bento.api.files import AsyncRemoteFiles
from async_bento.api.kinds import ItemT, RecordT
from async_bento.api.labels import change_labels, check_changes
from async_bento.api.paging import PAGE_SIZE, read_first, walk
from async_bento.api.push import Pusher
from async_bento.api.push_list import StoredItem
from async_bento.api.records import record_exists
from async_bento.api.verify import diff, refuse_hub_tag, verify
from async_bento.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from async_bento._core.tag import AnyTag
    from async_bento.api.kinds import Kind
    from async_bento.api.paging import Fetch
    from async_bento.api.push import PushOptions
    from async_bento.api.push_list import AnyItem
    from async_bento.api.resources import Resources
    from async_bento.api.verify import DiffResult, VerifyResult
    from async_bento.rest.schemas import ListSchema
    from async_bento.transfer.copy import CopyReads


class ItemAPI(Generic[ItemT, RecordT]):
    """What the APIs of bentos and of models have in common."""

    def __init__(self, resources: Resources, kind: Kind[ItemT, RecordT]) -> None:
        self._resources = resources
        self._kind: Kind[ItemT, RecordT] = kind

    async def iter(self, *, search: str | None = None, query: str | None = None) -> AsyncGenerator[RecordT]:
        """Iterate over the records in the registry, newest first, one page per request.

        The route is GET `/api/v1/bentos` or `/api/v1/models`. Every record that exists from the first request to the
        last appears once, also if others are added or deleted meanwhile. Records that are added meanwhile may appear.

        Args:
            search: A part of the name.
            query: A query in the registry's language, like `label:key=value`, `sort:size-desc`, or a word.

        Yields:
            The next record.

        Raises:
            APIError: The registry could not be reached, or refused the request.
        """
        async with aclosing(self._pages(search=search, query=query)) as pages:
            async for page in pages:
                for record in page:
                    yield record

    def files(self, tag: AnyTag) -> AsyncRemoteFiles:
        """Read files of an item in the registry without a pull. No local store is used.

        Args:
            tag: The tag. Without a version, or with `latest`, the newest that was uploaded.

        Returns:
            The files: `list`, `read`, `open` and `extract` request what they need.

        Raises:
            InvalidTagError: The tag is invalid.

        Examples:
            >>> files = api.files("iris_classifier:v1")
            >>> print(await files.read("src/service.py"))
        """
        return AsyncRemoteFiles(self._resources, self._kind, Tag.parse(tag))

    async def verify(self, item: AnyItem, *, full: bool = False) -> VerifyResult:
        """Compare a local item with the registry's. Nothing is written.

        The MD5s of the tar that a push would send are compared with those of the registry, without a download. If they
        differ or are unknown, as after a pull of what another client pushed, the list of files decides: names, types,
        sizes, times, executable bits and targets of links. Modes follow the umask, so that other bits do not count, nor
        do the bytecode of Python and the models in an exported bento.

        Args:
            item: A tag, a directory or an object, as in a push. A tag without a version means the local newest.
            full: Compare the contents of all files instead, whatever their times: reads them from the registry.

        Returns:
            How it was decided, and what differs.

        Raises:
            NotFoundError: The store has no such item, or the registry has none, or only its record.
            ConfigError: The model is on the Hugging Face Hub.
            BentoError: The local copy or the registry's could not be read.

        Examples:
            >>> result = await api.verify("iris_classifier:v1")
            >>> print(result.is_same, [difference.path for difference in result.differences])
        """
        async with self._resources.call():
            try:
                found = await self._find(item, "verify")
            except NotFoundError:
                await refuse_hub_tag(self._kind, item)
                raise
            return await verify(self._resources, self._kind, found, full=full)

    async def diff(self, tag: AnyTag, other: AnyTag, *, full: bool = False) -> DiffResult:
        """Compare two items in the registry by their lists of files. No local store is used.

        Args:
            tag: The tag of the first. Without a version, or with `latest`, the newest that was uploaded.
            other: The tag of the second.
            full: Compare the contents of files that have the same size, whatever their times: reads both items.

        Returns:
            What was added, removed or changed from the first to the second.

        Raises:
            NotFoundError: The registry has no such item, or only its record.
            ConfigError: A model is on the Hugging Face Hub.
            BentoError: An item could not be read.

        Examples:
            >>> result = await api.diff("iris_classifier:v1", "iris_classifier:latest")
            >>> print([(difference.kind, difference.path) for difference in result.differences])
        """
        tags = Tag.parse(tag), Tag.parse(other)
        async with self._resources.call():
            return await diff(self._resources, self._kind, tags, full=full)

    async def exists(self, tag: AnyTag) -> bool:
        """Check whether the registry has an item, with its upload complete.

        Args:
            tag: The tag. Without a version, or with `latest`, any version counts.

        Returns:
            True if a pull would find the item; False if there is no record of it, or its upload did not finish.

        Raises:
            APIError: The registry could not be reached, or refused the request.
        """
        async with self._resources.call():
            return await record_exists(self._kind.routes, Tag.parse(tag))

    async def set_labels(self, tag: AnyTag, labels: Mapping[str, str | None]) -> RecordT:
        """Set and remove labels of an item in the registry, such as `stage=prod`; the rest of its record is kept.

        The route is PATCH on the record, which replaces all labels: they are read, changed and written. A change that
        another client makes at the same time may be lost.

        Args:
            tag: The tag. Without a version, or with `latest`, the newest that was uploaded; the record names it.
            labels: The values by key; None removes a label, if there is one. Other labels are kept.

        Returns:
            The record, with all its labels.

        Raises:
            ConfigError: A key or a value is invalid: it is not text, has more than 128 characters, or a key has spaces,
                commas or `=`.
            NotFoundError: The registry has no such record.
            APIError: The registry could not be reached, or refused the change.

        Examples:
            >>> changes = {"stage": "prod", "candidate": None}
            >>> record = await api.set_labels("iris_classifier:v1", changes)
            >>> print({label.key: label.value for label in record.labels})
        """
        changes = check_changes(labels)
        async with self._resources.call():
            return (await change_labels(self._kind.routes, Tag.parse(tag), changes)).record

    def _copier(
        self, target: ItemAPI[ItemT, RecordT], options: PushOptions, reads: CopyReads
    ) -> Copier[ItemT, RecordT]:
        pusher = Pusher(target._resources, target._kind, options)
        return Copier(self._resources, self._kind, pusher, reads)

    async def _first(self, limit: int | None, search: str | None, query: str | None) -> tuple[list[RecordT], int]:
        """The first records in the registry, and how many there are."""
        return await read_first(self._fetch(search, query), PAGE_SIZE, limit)

    async def _pages(self, *, search: str | None, query: str | None) -> AsyncGenerator[Sequence[RecordT]]:
        """Iterate over the records in the registry by the page."""
        async with aclosing(walk(self._fetch(search, query), PAGE_SIZE)) as pages:
            async for page in pages:
                yield page

    def _fetch(self, search: str | None, query: str | None) -> Fetch[RecordT]:
        async def fetch(*, start: int, count: int) -> ListSchema[RecordT] | None:
            async with self._resources.call():
                return await self._kind.routes.list(start=start, count=count, search=search, query=query)

        return fetch

    async def _find(self, item: AnyItem, verb: str = "push") -> ItemT:
        """The local item: itself, at a path, or in the store."""
        item_type, threads = self._kind.store.item_type, self._resources.threads
        if isinstance(item, item_type):
            return item
        refuse_pattern(item, verb, f"{item_type.__name__}Store().list()")
        if isinstance(item, StoredItem):
            item = item.path
        elif isinstance(item, str) and not is_path(item):
            return await threads.run(self._kind.store.get, item)
        if isinstance(item, (str, os.PathLike)):
            return await threads.run(item_type.from_path, item)
        return await threads.run(self._kind.store.get, item)
