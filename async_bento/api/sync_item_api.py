"""BlockingItemAPI: what the blocking APIs of bentos and of models have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from async_bento.api.blocking import iterate
from async_bento.api.item_api import ItemAPI
from async_bento.api.kinds import RecordT
from async_bento.api.sync_files import RemoteFiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import TypeAlias

    from async_bento._core.tag import AnyTag
    from async_bento.api.loop_thread import LoopThread
    from async_bento.api.push import PushResult

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
