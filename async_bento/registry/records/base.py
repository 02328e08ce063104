"""The records of repositories and items as the API sees them; `sql.py` loads and changes them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from async_bento.registry.errors import BadRequestError
from async_bento.registry.item_types import check_tag_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from async_bento._core.validation import JsonObject
    from async_bento.registry.blobs.base import Content
    from async_bento.registry.records.blobs import Publication
    from async_bento.rest.schemas import LabelItemSchema

UploadStatus = Literal["pending", "uploading", "success", "failed"]

_MAX_MODELS = 1000
"""Per bento. Further names of its manifest are ignored."""


@dataclass(frozen=True)
class Item:
    """The record of a bento or model; `manifest` is JSON, and the upload fields describe its bytes.

    `size` is that of the files in bytes, by the manifest; 0 if it has none. `creator` is the name of the token that
    registered it.
    """

    id: int
    repository_id: int
    uid: str
    repository: str
    repository_uid: str
    version: str
    description: str
    manifest: str | None
    size: int
    labels: Sequence[LabelItemSchema]
    build_at: datetime
    upload_status: UploadStatus
    upload_started_at: datetime | None
    upload_finished_at: datetime | None
    upload_finished_reason: str
    creator: str
    last_pulled_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Repository:
    """The record of a repository; `latest` is its last registered item, as in Yatai, and `n_items` counts all."""

    uid: str
    name: str
    description: str
    creator: str
    created_at: datetime
    updated_at: datetime
    n_items: int
    latest: Item | None


@dataclass(frozen=True)
class NewItem:
    """An item to register; of several labels with one key, the last is kept."""

    version: str
    build_at: datetime
    description: str = ""
    manifest: JsonObject | None = None
    labels: Sequence[LabelItemSchema] = ()


@dataclass(frozen=True)
class Change:
    """A change of an item's record; None leaves a field unchanged, and `labels` replaces all labels."""

    description: str | None = None
    manifest: JsonObject | None = None
    labels: Sequence[LabelItemSchema] | None = None
    upload_status: UploadStatus | None = None
    upload_started_at: datetime | None = None
    upload_finished_at: datetime | None = None
    upload_finished_reason: str | None = None
    publish: Publication | None = None
    """The bytes that become those of the item."""

    uid: str | None = None
    """The id of the item to change; None for that which now has the version."""


@dataclass(frozen=True)
class Found:
    """Items with their repositories, by name; `total` counts the items of all pages of a list."""

    items: Sequence[Item]
    repositories: Mapping[str, Repository]
    total: int = 0


@dataclass(frozen=True)
class Whole:
    """An item with its repository, the models that exist among those that it names, in its order, and its bytes."""

    item: Found
    models: Found
    content: Content | None


def size_of(manifest: JsonObject | None) -> int:
    """Return the size in bytes that lists sort by; 0 if the manifest has no valid size."""
    size = (manifest or {}).get("size_bytes")
    return size if isinstance(size, int) and 0 <= size < 2**63 else 0


def model_tags(manifest: JsonObject | None) -> list[tuple[str, str]]:
    """Return the names and versions of the models that a bento's manifest names, each once; skip what is no tag."""
    named = (manifest or {}).get("models")
    found: dict[tuple[str, str], None] = {}
    for tag in named if isinstance(named, list) else ():
        name, _, version = tag.partition(":") if isinstance(tag, str) else ("", "", "")
        try:
            found[check_tag_part("name", name), check_tag_part("version", version)] = None
        except BadRequestError:
            continue
    return [*found][:_MAX_MODELS]


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(timezone.utc)


def new_uid() -> str:
    """Generate a unique id."""
    return uuid.uuid4().hex
