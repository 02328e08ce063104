"""What is known of repositories and items, how it changes, and what any store of such records must be able to do."""

from __future__ import annotations

import uuid
from collections.abc import Sequence  # noqa: TC003 - pydantic reads the annotations of `Item`
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, Protocol

from async_bento._core.validation import JsonObject  # noqa: TC001 - as above
from async_bento.rest.schemas import LabelItemSchema  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from async_bento.registry.kinds import Kind
    from async_bento.registry.records.query import ListQuery

UploadStatus = Literal["pending", "uploading", "success", "failed"]


@dataclass(frozen=True)
class Item:
    """A bento or a model.

    Attributes:
        uid: Its id.
        repository: Its repository's name.
        repository_uid: Its repository's id.
        version: Its version.
        description: Its README.
        manifest: What it is, as the client sent it.
        labels: Its labels.
        build_at: When it was built.
        upload_status: How far its bytes are.
        upload_started_at: When their upload began.
        upload_finished_at: When it ended.
        upload_finished_reason: Why it failed.
        created_at: When it was registered.
        updated_at: When its record last changed.
    """

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
    """All versions of one bento or model.

    Attributes:
        uid: Its id.
        name: Its name.
        description: What it is for.
        created_at: When it was created.
        updated_at: When its record last changed.
        n_items: How many versions there are.
        latest: The version that was registered last, which is Yatai's notion of it.
    """

    uid: str
    name: str
    description: str
    created_at: datetime
    updated_at: datetime
    n_items: int
    latest: Item | None


@dataclass(frozen=True)
class NewItem:
    """An item to be registered.

    Attributes:
        version: Its version.
        build_at: When it was built.
        description: Its README.
        manifest: What it is.
        labels: Its labels; of two with one key the last one counts.
    """

    version: str
    build_at: datetime
    description: str = ""
    manifest: JsonObject | None = None
    labels: Sequence[LabelItemSchema] = ()


@dataclass(frozen=True)
class Change:
    """What changes of an item's record; None leaves a field as it is.

    Attributes:
        description: Its README.
        manifest: What it is.
        labels: All its labels.
        upload_status: How far its bytes are.
        upload_started_at: When their upload began.
        upload_finished_at: When it ended.
        upload_finished_reason: Why it failed.
    """

    description: str | None = None
    manifest: JsonObject | None = None
    labels: Sequence[LabelItemSchema] | None = None
    upload_status: UploadStatus | None = None
    upload_started_at: datetime | None = None
    upload_finished_at: datetime | None = None
    upload_finished_reason: str | None = None


def new_item(repository: str, repository_uid: str, new: NewItem) -> Item:
    """The record of an item that is registered now, as `pending`.

    Args:
        repository: Its repository's name.
        repository_uid: Its repository's id.
        new: What is said of it.

    Returns:
        The record.
    """
    now = utc_now()
    return Item(
        uid=new_uid(),
        repository=repository,
        repository_uid=repository_uid,
        version=new.version,
        description=new.description,
        manifest=new.manifest,
        labels=_last_of_each(new.labels),
        build_at=new.build_at,
        upload_status="pending",
        upload_started_at=None,
        upload_finished_at=None,
        upload_finished_reason="",
        created_at=now,
        updated_at=now,
    )


def changed(item: Item, change: Change) -> Item:
    """An item's record after a change.

    Args:
        item: The record.
        change: What changes.

    Returns:
        The new record.
    """
    said = {name: value for name, value in vars(change).items() if value is not None}
    if change.labels is not None:
        said["labels"] = _last_of_each(change.labels)
    return replace(item, **said, updated_at=utc_now())


def size_of(manifest: JsonObject | None) -> int:
    """What a list sorts by as an item's size.

    Args:
        manifest: What the item is.

    Returns:
        Its size in bytes; 0 for one that is not known, or too strange to be one.
    """
    size = (manifest or {}).get("size_bytes")
    return size if isinstance(size, int) and 0 <= size < 2**63 else 0


def time_text(time: datetime) -> str:
    """A time in UTC as a text, always of one width, so that text sorts as time does.

    Args:
        time: The time.

    Returns:
        The text, to the microsecond.
    """
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(timezone.utc)


def new_uid() -> str:
    """An id that nothing else has."""
    return uuid.uuid4().hex


def _last_of_each(labels: Sequence[LabelItemSchema]) -> list[LabelItemSchema]:
    return [*{label.key: label for label in labels}.values()]


@dataclass(frozen=True)
class Page:
    """A part of a list.

    Attributes:
        items: The items.
        total: How many there are in all.
    """

    items: Sequence[Item] = field(default_factory=tuple)
    total: int = 0


class Records(Protocol):
    """A store of records. Names and versions that come in have been checked."""

    async def create_repository(self, kind: Kind, name: str, description: str) -> Repository:
        """Create a repository.

        Raises:
            DuplicateError: There is one of this name.
        """
        ...

    async def repositories(self, kind: Kind, names: Collection[str]) -> Mapping[str, Repository]:
        """The repositories of these names, as far as there are any, by name."""
        ...

    async def create_item(self, kind: Kind, repository: str, new: NewItem) -> Item:
        """Register an item, as `pending`.

        Raises:
            RecordNotFoundError: There is no such repository.
            DuplicateError: It has an item of this version.
        """
        ...

    async def update_item(self, kind: Kind, repository: str, version: str, change: Change) -> Item:
        """Change an item's record.

        Raises:
            RecordNotFoundError: There is no such item.
        """
        ...

    async def items(self, kind: Kind, tags: Collection[tuple[str, str]]) -> Sequence[Item]:
        """The items of these names and versions, in their order, as far as there are any."""
        ...

    async def list_items(self, kind: Kind, query: ListQuery, repository: str | None = None) -> Page:
        """A part of all items, or of one repository's.

        Raises:
            RecordNotFoundError: There is no such repository.
        """
        ...
