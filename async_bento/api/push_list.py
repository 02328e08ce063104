"""Push several items concurrently. A failed item does not stop the others; all failures are raised at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from async_bento._core.concurrency import for_each
from async_bento._core.tag import TaggedItem
from async_bento.errors import BentoError, PushesError, summarize

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento._core.tag import AnyTag
    from async_bento.api.push import PushResult

T = TypeVar("T")

ITEMS_AT_ONCE = 8
"""Items of a list that are pushed at once, each with its models; `Transfer.concurrency` bounds their parts."""


@runtime_checkable
class StoredItem(TaggedItem, Protocol):
    """Anything with a tag and a directory, like BentoML's own `Bento` and `Model`; its `Tag` has a `path` too."""

    @property
    def path(self) -> str | os.PathLike[str]:
        """The directory."""
        ...


if TYPE_CHECKING:
    AnyItem: TypeAlias = AnyTag | os.PathLike[str]


def as_list(items: object) -> tuple[list[Any], bool]:
    """The items, and whether several were passed. A record is one item, though pydantic's classes are iterable."""
    if isinstance(items, (str, bytes, os.PathLike, TaggedItem)) or not isinstance(items, Iterable):
        return [items], False
    return [*cast("Iterable[object]", items)], True


async def push_each(
    push_one: Callable[[T], Awaitable[PushResult]], items: list[T], verb: str, word: str
) -> list[PushResult]:
    """Push or copy each item, and return the results in the order of the items."""
    results: dict[int, PushResult] = {}
    failures: dict[int, BentoError] = {}

    async def attempt(numbered: tuple[int, T]) -> None:
        number, item = numbered
        try:
            results[number] = await push_one(item)
        except BentoError as error:
            failures[number] = error

    await for_each(attempt, enumerate(items), ITEMS_AT_ONCE)
    if failures:
        named = [(_name(items[number]), failures[number]) for number in sorted(failures)]
        message = f"cannot {verb} {len(named)} of {len(items)} {word}s:{summarize(named)}"
        raise PushesError(message, failures=dict(named)) from named[0][1]
    return [results[number] for number in range(len(items))]


def _name(item: object) -> str:
    return str(item.tag if isinstance(item, TaggedItem) else item)
