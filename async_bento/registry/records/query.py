"""What a list asks for: `start`, `count`, `search` and the small language of `q`; and what it finds.

As Yatai reads it (yatai-schemas `schemasv1/q.go`; Yatai `controllersv1/bento.go`, `services/base.go`,
`services/label.go`): words look into names, `in:` says where else, `label:` and `sort:` do what they say, and what is
not understood is ignored. One thing Yatai reads and then forgets is done here: `-label:`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast, get_args

from async_bento.registry.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")

SortField = Literal["build_at", "created_at", "size"]
KeywordField = Literal["name", "description"]

_SORT_FIELDS: tuple[str, ...] = get_args(SortField)
_KEYWORD_FIELDS: tuple[str, ...] = get_args(KeywordField)
_MAX_DIGITS = 9

Label = tuple[str, str]
"""A key and a value; an empty value stands for any."""


@dataclass(frozen=True)
class ListQuery:
    """What a list asks for.

    Attributes:
        start: How many items to skip.
        count: How many items at most; 0 for all.
        search: Must be part of one of the fields; empty for anything.
        keywords: All must be part of the same field.
        fields: Where `search` and `keywords` look.
        labels: Of each group, one label must be there.
        lacking: None of these labels must be there.
        sort: What to sort by.
        descending: Whether the largest comes first.
    """

    start: int = 0
    count: int = 0
    search: str = ""
    keywords: tuple[str, ...] = ()
    fields: tuple[KeywordField, ...] = ("name",)
    labels: tuple[tuple[Label, ...], ...] = ()
    lacking: tuple[Label, ...] = ()
    sort: SortField = "build_at"
    descending: bool = True


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What a list looks at in an item. Times are texts of one width, which sort as time does.

    Attributes:
        item: Whatever the records know the item by.
        registered: Which item was registered before which.
        name: Its repository's name.
        description: Its repository's description and its own.
        labels: Its labels.
        build_at: When it was built.
        created_at: When it was registered.
        size: Its size in bytes.
    """

    item: T
    registered: tuple[int, str]
    name: str
    description: str
    labels: Mapping[str, str]
    build_at: str
    created_at: str
    size: int

    def by(self, field: SortField) -> str | int:
        """What it is sorted by.

        Args:
            field: The field.

        Returns:
            Its value.
        """
        values: Mapping[SortField, str | int] = {
            "build_at": self.build_at,
            "created_at": self.created_at,
            "size": self.size,
        }
        return values[field]


def select(query: ListQuery, entries: Iterable[Entry[T]]) -> tuple[list[T], int]:
    """Find what a list asks for.

    Args:
        query: What it asks for.
        entries: What there is.

    Returns:
        The items of the page, in order, and how many there are on all pages.
    """
    # What was registered when breaks ties, or an item could stand on two pages and another on none.
    found = sorted(
        (entry for entry in entries if _matches(query, entry)),
        key=lambda entry: (entry.by(query.sort), entry.registered),
        reverse=query.descending,
    )
    stop = query.start + query.count if query.count else None
    return [entry.item for entry in found[query.start : stop]], len(found)


def _matches(query: ListQuery, entry: Entry[T]) -> bool:
    looked_at: Mapping[KeywordField, str] = {"name": entry.name, "description": entry.description}
    texts = [looked_at[field].lower() for field in query.fields]
    return (
        all(
            any(all(word.lower() in text for word in words) for text in texts)
            for words in ((query.search,), query.keywords)
        )
        and all(_has_one(entry.labels, group) for group in query.labels)
        and not _has_one(entry.labels, query.lacking)
    )


def _has_one(labels: Mapping[str, str], wanted: Iterable[Label]) -> bool:
    return any(key in labels and value in {"", labels[key]} for key, value in wanted)


def parse_list_query(parameters: Mapping[str, str]) -> ListQuery:
    """Read the query of a list.

    Args:
        parameters: The query's parameters. Without `count`, or with 0, all items are asked for, as at Yatai:
            BentoML's own `list()` sends none and reads one page only.

    Returns:
        What is asked for.

    Raises:
        BadRequestError: `start` or `count` is no number, or negative.
    """
    said = _split(parameters.get("q", ""))
    field, _, order = said.get("sort", [""])[0].rpartition("-")
    sorted_by = field in _SORT_FIELDS and order in {"asc", "desc"}
    fields = tuple(field for field in said.get("in", []) if field in _KEYWORD_FIELDS)
    groups = tuple(_labels(group) for group in said.get("label", []))
    return ListQuery(
        start=_number(parameters, "start"),
        count=_number(parameters, "count"),
        search=parameters.get("search", ""),
        keywords=tuple(said.get("", [])),
        fields=cast("tuple[KeywordField, ...]", fields) or ("name",),
        labels=tuple(group for group in groups if group),
        lacking=tuple(label for group in said.get("-label", []) for label in _labels(group)),
        sort=cast("SortField", field) if sorted_by else "build_at",
        descending=order == "desc" if sorted_by else True,
    )


def _split(q: str) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for word in q.split():
        key, colon, value = word.partition(":")
        if not colon:
            said.setdefault("", []).append(word)
        elif key and value:
            said.setdefault(key, []).append(value)
    return said


def _labels(group: str) -> tuple[Label, ...]:
    pairs = (piece.partition("=") for piece in group.split(",") if piece)
    return tuple((key, value) for key, _, value in pairs)


def _number(parameters: Mapping[str, str], name: str) -> int:
    text = parameters.get(name) or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise BadRequestError(f"{name}={text[:20]!r} is no count of items")
    return int(text)
