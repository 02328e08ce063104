"""Parsing list queries: `start`, `count`, `search` and the syntax of `q`.

The syntax is Yatai's (yatai-schemas `schemasv1/q.go`; Yatai `controllersv1/bento.go`, `services/base.go`,
`services/label.go`): words search names, `in:` chooses other fields, `label:` filters, `sort:` sorts, and unknown terms
are ignored. Unlike Yatai, which parses `-label:` without using it, this module applies `-label:`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from async_bento.registry.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

SortField = Literal["build_at", "created_at", "size"]
KeywordField = Literal["name", "description"]

_SORT_FIELDS: tuple[str, ...] = get_args(SortField)
_KEYWORD_FIELDS: tuple[str, ...] = get_args(KeywordField)
_MAX_DIGITS = 9
_MAX_TERMS = 50
_MAX_QUERY_LENGTH = 1000

MAX_PAGE = 1000
"""Items on a page, also without `count`."""

Label = tuple[str, str]
"""A key and a value; an empty value matches any."""


@dataclass(frozen=True)
class ListQuery:
    """A parsed list query."""

    start: int = 0
    requested: int = 0
    """The page size that the client asked for; 0 for the largest."""

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
    prefix: str = ""
    """What the names of the repositories begin with that the client may see."""

    @property
    def count(self) -> int:
        """The page size."""
        return min(self.requested or MAX_PAGE, MAX_PAGE)


def parse_list_query(parameters: Mapping[str, str], prefix: str = "") -> ListQuery:
    """Parse the query parameters of a list; raise `BadRequestError` if one is invalid or too long.

    Without `count`, or with 0, the page is the largest: BentoML's `list()` sends none and reads one page.
    """
    for name in ("q", "search"):
        if len(parameters.get(name, "")) > _MAX_QUERY_LENGTH:
            raise BadRequestError(f"invalid {name}: it is too long. Use at most {_MAX_QUERY_LENGTH} characters.")
    terms = _split(parameters.get("q", ""))
    if sum(len(values) for values in terms.values()) > _MAX_TERMS:
        raise BadRequestError(f"invalid q: it has too many terms. Use at most {_MAX_TERMS}.")
    sort_field, _, order = terms.get("sort", [""])[0].rpartition("-")
    has_sort = sort_field in _SORT_FIELDS and order in {"asc", "desc"}
    fields = tuple(field for field in terms.get("in", []) if field in _KEYWORD_FIELDS)
    groups = tuple(_labels(group) for group in terms.get("label", []))
    return ListQuery(
        start=_number(parameters, "start"),
        requested=_number(parameters, "count"),
        search=parameters.get("search", ""),
        keywords=tuple(terms.get("", [])),
        fields=cast("tuple[KeywordField, ...]", fields) or ("name",),
        labels=tuple(group for group in groups if group),
        excluded_labels=tuple(label for group in terms.get("-label", []) for label in _labels(group)),
        sort=cast("SortField", sort_field) if has_sort else "build_at",
        descending=order == "desc" if has_sort else True,
        prefix=prefix,
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
