"""The records of repositories and items, and the interface of a store of records."""

from __future__ import annotations

import uuid
from collections.abc import Sequence  # noqa: TC003 - pydantic reads the annotations of `Item`
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, Protocol

from async_bento._core.validation import JsonObject, format_time
from async_bento.rest.schemas import LabelItemSchema  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.query import ListQuery

UploadStatus = Literal["pending", "uploading", "success", "failed"]


@dataclass(frozen=True)
class Item:
    """The record of a bento or model; the upload fields describe its bytes."""

    uid: str
    repository: str
    repository_uid: str
    version: str
    description: str
    manifest: JsonObject | None
    labels: Sequence[LabelItemSchema]
    build_at: datetime
    upload_status: UploadStatus
    upload_started_at: datetime | None
    upload_finished_at: datetime | None
    upload_finished_reason: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Repository:
    """The record of a repository; `latest` is its last registered item, as in Yatai, and `n_items` counts all."""

    uid: str
    name: str
    description: str
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


def new_item(repository: str, repository_uid: str, new: NewItem) -> Item:
    """Create the record of an item that is registered now, with the status `pending`."""
    now = utc_now()
    return Item(
        uid=new_uid(),
        repository=repository,
        repository_uid=repository_uid,
        version=new.version,
        description=new.description,
        manifest=new.manifest,
        labels=_last_per_key(new.labels),
        build_at=new.build_at,
        upload_status="pending",
        upload_started_at=None,
        upload_finished_at=None,
        upload_finished_reason="",
        created_at=now,
        updated_at=now,
    )


def apply_change(item: Item, change: Change) -> Item:
    """Return an item's record after a change."""
    changes = {name: value for name, value in vars(change).items() if value is not None}
    if change.labels is not None:
        changes["labels"] = _last_per_key(change.labels)
    return replace(item, **changes, updated_at=utc_now())


def size_of(manifest: JsonObject | None) -> int:
    """Return the size in bytes that lists sort by; 0 if the manifest has no valid size."""
    size = (manifest or {}).get("size_bytes")
    return size if isinstance(size, int) and 0 <= size < 2**63 else 0


def time_text(time: datetime) -> str:
    """Format a time in UTC, to the microsecond, at a fixed width, so that texts sort as times do."""
    return format_time(time).replace(" ", "T")


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(timezone.utc)


def new_uid() -> str:
    """Generate a unique id."""
    return uuid.uuid4().hex


def _last_per_key(labels: Sequence[LabelItemSchema]) -> list[LabelItemSchema]:
    return [*{label.key: label for label in labels}.values()]


@dataclass(frozen=True)
class Page:
    """A page of a list; `total` counts the items of all pages."""

    items: Sequence[Item] = field(default_factory=tuple)
    total: int = 0


class Records(Protocol):
    """A store of records; names and versions passed to it are valid."""

    async def create_repository(self, item_type: ItemType, name: str, description: str) -> Repository:
        """Create a repository; raise `DuplicateError` if the name is taken."""
        ...

    async def repositories(self, item_type: ItemType, names: Collection[str]) -> Mapping[str, Repository]:
        """Return the repositories that exist among these names, by name."""
        ...

    async def create_item(self, item_type: ItemType, repository: str, new: NewItem) -> Item:
        """Register an item as `pending`.

        Raise `RecordNotFoundError` without its repository, `DuplicateError` if the version is taken.
        """
        ...

    async def update_item(self, item_type: ItemType, repository: str, version: str, change: Change) -> Item:
        """Change an item's record; raise `RecordNotFoundError` if it does not exist."""
        ...

    async def items(self, item_type: ItemType, tags: Collection[tuple[str, str]]) -> Sequence[Item]:
        """Return the items that exist among these names and versions, in this order."""
        ...

    async def list_items(self, item_type: ItemType, query: ListQuery, repository: str | None = None) -> Page:
        """Return a page of all items or of one repository's; raise `RecordNotFoundError` without the repository."""
        ...
