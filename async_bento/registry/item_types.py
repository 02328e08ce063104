"""Bentos and models share every route and handler; an `ItemType` holds the names in which they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from async_bento._core.tag import MAX_LENGTH, PART
from async_bento.registry.errors import BadRequestError


@dataclass(frozen=True)
class ItemType:
    """The names that the API uses for bentos or models."""

    item: str
    """The `resource_type` of an item."""

    items: str
    """The path segment of items."""

    repositories: str
    """The path segment of repositories."""

    repository: str
    """The `resource_type` of a repository."""

    repository_uid: str
    """The field of an item with its repository's id."""

    latest: str
    """The field of a repository with its newest item."""


BENTO = ItemType(
    item="bento",
    items="bentos",
    repositories="bento_repositories",
    repository="bento_repository",
    repository_uid="bento_repository_uid",
    latest="latest_bento",
)

MODEL = ItemType(
    item="model",
    items="models",
    repositories="model_repositories",
    repository="model_repository",
    repository_uid="model_uid",
    latest="latest_model",
)

ITEM_TYPES = (BENTO, MODEL)


class ItemRef(NamedTuple):
    """The item that a route names."""

    item_type: ItemType
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.item_type.item} {self.name}:{self.version}"


def check_tag_part(field: str, value: str) -> str:
    """Return a tag's `name` or `version` if it follows BentoML's rules, so that it is safe as a file name."""
    if len(value) > MAX_LENGTH or not PART.fullmatch(value):
        raise BadRequestError(
            f"invalid {field} {value[:80]!r}: it breaks BentoML's rules for tags. Use at most {MAX_LENGTH} of "
            "a-z, 0-9, '-', '_' and '.', with a letter or digit at both ends."
        )
    return value
