"""What is known of repositories and items, and what any store of such records must be able to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from async_bento.registry.kinds import Kind
    from async_bento.registry.query import ListQuery
    from async_bento.wire.schemas import JsonObject, LabelItemSchema

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
