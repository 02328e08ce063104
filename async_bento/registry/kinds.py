"""Bentos and models: the same steps, other words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from async_bento.registry.errors import BadRequestError

_TAG_PART = re.compile(r"[a-z0-9](?:[-._a-z0-9]*[a-z0-9])?")
_TAG_PART_LENGTH = 63


@dataclass(frozen=True)
class Kind:
    """The words of one kind of item.

    Attributes:
        item: One of it; its `resource_type`.
        items: Many of it, as in a route.
        repositories: Many of its repositories, as in a route.
        repository: One of its repositories; that one's `resource_type`.
        repository_uid: The field of an item that holds its repository's id.
        latest: The field of a repository that holds its newest item.
    """

    item: str
    items: str
    repositories: str
    repository: str
    repository_uid: str
    latest: str


BENTO = Kind(
    item="bento",
    items="bentos",
    repositories="bento_repositories",
    repository="bento_repository",
    repository_uid="bento_repository_uid",
    latest="latest_bento",
)

MODEL = Kind(
    item="model",
    items="models",
    repositories="model_repositories",
    repository="model_repository",
    repository_uid="model_uid",
    latest="latest_model",
)

KINDS = (BENTO, MODEL)


def check_tag_part(what: str, value: str) -> str:
    """Check a name or a version by BentoML's rules for tags (`bentoml/_internal/tag.py`), so that it may name a file.

    Args:
        what: `name` or `version`, for the message.
        value: The name or the version.

    Returns:
        The value.

    Raises:
        BadRequestError: It breaks the rules.
    """
    if len(value) > _TAG_PART_LENGTH or not _TAG_PART.fullmatch(value):
        raise BadRequestError(
            f"{value[:80]!r} is no {what}: it must be at most {_TAG_PART_LENGTH} of a-z, 0-9, '-', '_' and '.', and "
            "start and end with a letter or a digit"
        )
    return value
