"""BlockingItemAPI: what the blocking APIs of bentos and of models have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from async_bento.api.blocking import iterate
from async_bento.api.item_api import ItemAPI
from async_bento.api.kinds import RecordT
from async_bento.api.sync_files import RemoteFiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from typing import TypeAlias

    from async_bento._core.tag import AnyTag
    from async_bento.api.loop_thread import LoopThread
    from async_bento.api.push import PushResult
    from async_bento.api.push_list import AnyItem
    from async_bento.api.verify import DiffResult, VerifyResult

    Push: TypeAlias = Callable[..., Awaitable[PushResult | list[PushResult]]]

ApiT = TypeVar("ApiT", bound=ItemAPI[Any, Any])


class BlockingItemAPI(Generic[ApiT, RecordT]):
    """What the blocking APIs of bentos and of models have in common; its docstrings are those of `ItemAPI`."""

    _async: ApiT
    _loop: LoopThread

    def iter(self, *, search: str | None = None, query: str | None = None) -> Iterator[RecordT]:
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
        return iterate(self._async, self._loop, search, query)

    def files(self, tag: AnyTag) -> RemoteFiles:
        """Read files of an item in the registry without a pull. No local store is used.

        Args:
            tag: The tag. Without a version, or with `latest`, the newest that was uploaded.

        Returns:
            The files: `list`, `read`, `open` and `extract` request what they need.

        Raises:
            InvalidTagError: The tag is invalid.

        Examples:
            >>> files = api.files("iris_classifier:v1")
            >>> print(files.read("src/service.py"))
        """
        return RemoteFiles(self._async.files(tag), self._loop)

    def verify(self, item: AnyItem, *, full: bool = False) -> VerifyResult:
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
            >>> result = api.verify("iris_classifier:v1")
            >>> print(result.is_same, [difference.path for difference in result.differences])
        """
        return self._loop.run(self._async.verify, item, full=full)

    def diff(self, tag: AnyTag, other: AnyTag, *, full: bool = False) -> DiffResult:
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
            >>> result = api.diff("iris_classifier:v1", "iris_classifier:latest")
            >>> print([(difference.kind, difference.path) for difference in result.differences])
        """
        return self._loop.run(self._async.diff, tag, other, full=full)

    def exists(self, tag: AnyTag) -> bool:
        """Check whether the registry has an item, with its upload complete.

        Args:
            tag: The tag. Without a version, or with `latest`, any version counts.

        Returns:
            True if a pull would find the item; False if there is no record of it, or its upload did not finish.

        Raises:
            APIError: The registry could not be reached, or refused the request.
        """
        return self._loop.run(self._async.exists, tag)

    def set_labels(self, tag: AnyTag, labels: Mapping[str, str | None]) -> RecordT:
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
            >>> record = api.set_labels("iris_classifier:v1", changes)
            >>> print({label.key: label.value for label in record.labels})
        """
        record: RecordT = self._loop.run(self._async.set_labels, tag, labels)
        return record
