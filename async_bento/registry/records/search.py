"""The SQL of a list query, which `query.py` has parsed and `Records` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, false, func, or_, select

from async_bento.registry.records.tables import items, labels, repositories

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement, Select

    from async_bento.registry.records.query import Label, ListQuery

_LENGTH = func.length(items.c.description) + func.coalesce(func.length(items.c.manifest), 0)
"""Of the texts of an item, in characters."""

_SORT_COLUMNS = {"build_at": items.c.build_at, "created_at": items.c.created_at, "size": items.c.size}


def select_page(query: ListQuery, scope: ColumnElement[bool]) -> Select[int, int]:
    """Select the ids of a page of the items within a scope, in order, and the length of their longest texts."""
    sort = _SORT_COLUMNS[query.sort]
    # The order of registration breaks ties; otherwise an item could be on two pages and another on none.
    order = (sort.desc(), items.c.id.desc()) if query.descending else (sort, items.c.id)
    found = select(items.c.id).where(scope, *_conditions(query)).order_by(*order)
    ids = found.limit(query.count).offset(query.start).subquery()  # from an index alone
    return select(items.c.id, _LENGTH).join(ids, items.c.id == ids.c.id).order_by(*order)


def select_total(
    query: ListQuery, scope: ColumnElement[bool], repository_scope: ColumnElement[bool] | None
) -> Select[int]:
    """Select the number of items on all pages; both scopes are the same, of items and of whole repositories."""
    if repository_scope is None or "description" in query.fields or query.labels or query.excluded_labels:
        return select(func.count()).select_from(items).where(scope, *_conditions(query))
    # All items of a repository match by its name, or none.
    return select(func.coalesce(func.sum(repositories.c.n_items), 0)).where(
        repository_scope, *_name_conditions(_words(query)), *_visible(query)
    )


def select_repositories(query: ListQuery, scope: ColumnElement[bool]) -> tuple[Select[str, int], Select[int]]:
    """Select a page of repositories, in the order of registration, and the number on all pages.

    Of each repository, the page has the name and the length of its texts, those of its newest item included.
    """
    conditions = [scope, *_visible(query)]
    if words := _words(query):
        texts = {"name": repositories.c.name, "description": repositories.c.folded_description}
        conditions.append(
            or_(*(and_(*(texts[field].contains(word, autoescape=True) for word in words)) for field in query.fields))
        )
    order = repositories.c.id.desc() if query.descending else repositories.c.id
    of_repository = items.c.repository_id == repositories.c.id
    length = select(_LENGTH).where(of_repository).order_by(items.c.id.desc()).limit(1).scalar_subquery()
    whole = func.length(repositories.c.description) + func.coalesce(length, 0)
    page = select(repositories.c.name, whole).where(*conditions)
    page = page.order_by(order).limit(query.count).offset(query.start)
    return page, select(func.count()).select_from(repositories).where(*conditions)


def _conditions(query: ListQuery) -> list[ColumnElement[bool]]:
    conditions = [_has_label(group) for group in query.labels]
    if query.prefix:
        conditions.append(items.c.repository_id.in_(select(repositories.c.id).where(*_visible(query))))
    if query.excluded_labels:
        conditions.append(~_has_label(query.excluded_labels))
    words = _words(query)
    if words:
        conditions.append(or_(*(_has_words(field, words) for field in query.fields)))
    return conditions


def _visible(query: ListQuery) -> list[ColumnElement[bool]]:
    """Select the repositories that the client may see."""
    return [repositories.c.name.startswith(query.prefix, autoescape=True)] if query.prefix else []


def _words(query: ListQuery) -> list[str]:
    return [word.lower() for word in (query.search, *query.keywords) if word]


def _has_words(field: str, words: Sequence[str]) -> ColumnElement[bool]:
    if field == "name":
        named = select(repositories.c.id).where(*_name_conditions(words))
        return items.c.repository_id.in_(named)
    described = select(repositories.c.folded_description).where(repositories.c.id == items.c.repository_id)
    described_text = described.scalar_subquery() + "\n" + items.c.folded_description
    return and_(*(described_text.contains(word, autoescape=True) for word in words))


def _name_conditions(words: Sequence[str]) -> list[ColumnElement[bool]]:
    return [repositories.c.name.contains(word, autoescape=True) for word in words]


def _has_label(wanted: Iterable[Label]) -> ColumnElement[bool]:
    """Whether an item has one of these labels."""
    alternatives = [
        labels.c.key == key if not value else and_(labels.c.key == key, labels.c.value == value)
        for key, value in wanted
    ]
    # `or_` of nothing is no condition; with `false`, it matches nothing.
    return items.c.id.in_(select(labels.c.item_id).where(or_(false(), *alternatives)))
