"""Parsing and running list queries: `start`, `count`, `search` and the syntax of `q`.

The syntax is Yatai's (yatai-schemas `schemasv1/q.go`; Yatai `controllersv1/bento.go`, `services/base.go`,
`services/label.go`): words search names, `in:` chooses other fields, `label:` filters, `sort:` sorts, and unknown terms
are ignored. Unlike Yatai, which parses `-label:` without using it, this module applies `-label:`.
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
"""A key and a value; an empty value matches any."""


@dataclass(frozen=True)
class ListQuery:
    """A parsed list query."""

    start: int = 0
    count: int = 0
    """The page size; 0 for all items."""

    search: str = ""
    """A substring that one of `fields` must contain."""

    keywords: tuple[str, ...] = ()
    """Substrings that one of `fields` must contain together."""

    fields: tuple[KeywordField, ...] = ("name",)
    labels: tuple[tuple[Label, ...], ...] = ()
    """Groups; of each group, the item must have one label."""

    excluded_labels: tuple[Label, ...] = ()
    sort: SortField = "build_at"
    descending: bool = True


@dataclass(frozen=True)
class Entry(Generic[T]):
    """The fields of an item that a query uses; times are texts of one width, `size` is in bytes.

    `description` is that of the repository and of the item. `item` is whatever the store identifies the item by.
    """

    item: T
    registration_order: tuple[int, str]
    name: str
    description: str
    labels: Mapping[str, str]
    build_at: str
    created_at: str
    size: int

    def sort_key(self, field: SortField) -> str | int:
        """Return the value of a sort field."""
        values: Mapping[SortField, str | int] = {
            "build_at": self.build_at,
            "created_at": self.created_at,
            "size": self.size,
        }
        return values[field]


def select(query: ListQuery, entries: Iterable[Entry[T]]) -> tuple[list[T], int]:
    """Return the items of the requested page in order, and the number of items on all pages."""
    # The order of registration breaks ties; otherwise an item could be on two pages and another on none.
    found = sorted(
        (entry for entry in entries if _matches(query, entry)),
        key=lambda entry: (entry.sort_key(query.sort), entry.registration_order),
        reverse=query.descending,
    )
    stop = query.start + query.count if query.count else None
    return [entry.item for entry in found[query.start : stop]], len(found)


def _matches(query: ListQuery, entry: Entry[T]) -> bool:
    searched: Mapping[KeywordField, str] = {"name": entry.name, "description": entry.description}
    texts = [searched[field].lower() for field in query.fields]
    return (
        all(
            any(all(word.lower() in text for word in words) for text in texts)
            for words in ((query.search,), query.keywords)
        )
        and all(_has_any(entry.labels, group) for group in query.labels)
        and not _has_any(entry.labels, query.excluded_labels)
    )


def _has_any(labels: Mapping[str, str], wanted: Iterable[Label]) -> bool:
    return any(key in labels and value in {"", labels[key]} for key, value in wanted)


def parse_list_query(parameters: Mapping[str, str]) -> ListQuery:
    """Parse the query parameters of a list; raise `BadRequestError` if `start` or `count` is invalid.

    Without `count`, or with 0, the page has all items, as in Yatai: BentoML's `list()` sends none and reads one page.
    """
    terms = _split(parameters.get("q", ""))
    sort_field, _, order = terms.get("sort", [""])[0].rpartition("-")
    has_sort = sort_field in _SORT_FIELDS and order in {"asc", "desc"}
    fields = tuple(field for field in terms.get("in", []) if field in _KEYWORD_FIELDS)
    groups = tuple(_labels(group) for group in terms.get("label", []))
    return ListQuery(
        start=_number(parameters, "start"),
        count=_number(parameters, "count"),
        search=parameters.get("search", ""),
        keywords=tuple(terms.get("", [])),
        fields=cast("tuple[KeywordField, ...]", fields) or ("name",),
        labels=tuple(group for group in groups if group),
        excluded_labels=tuple(label for group in terms.get("-label", []) for label in _labels(group)),
        sort=cast("SortField", sort_field) if has_sort else "build_at",
        descending=order == "desc" if has_sort else True,
    )


def _split(q: str) -> dict[str, list[str]]:
    terms: dict[str, list[str]] = {}
    for word in q.split():
        key, colon, value = word.partition(":")
        if not colon:
            terms.setdefault("", []).append(word)
        elif key and value:
            terms.setdefault(key, []).append(value)
    return terms


def _labels(group: str) -> tuple[Label, ...]:
    pairs = (piece.partition("=") for piece in group.split(",") if piece)
    return tuple((key, value) for key, _, value in pairs)


def _number(parameters: Mapping[str, str], name: str) -> int:
    text = parameters.get(name) or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise BadRequestError(f"invalid {name} {text[:20]!r}: it is not a number. Use at most {_MAX_DIGITS} digits.")
    return int(text)
