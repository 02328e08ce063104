"""What the registry answers, with every field Yatai has: BentoML's client refuses an answer that lacks one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_bento.registry.kinds import BENTO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from async_bento.registry.kinds import Kind
    from async_bento.registry.records import Item, Repository
    from async_bento.wire.schemas import JsonObject, TransmissionStrategy

_SINCE_EVER = "1970-01-01T00:00:00.000000Z"


def _resource(uid: str, name: str, resource_type: str) -> JsonObject:
    return {
        "uid": uid,
        "created_at": _SINCE_EVER,
        "updated_at": _SINCE_EVER,
        "deleted_at": None,
        "name": name,
        "resource_type": resource_type,
        "labels": [],
    }


def user_answer() -> JsonObject:
    """Whose token it is: there is one, and so one user."""
    return {
        **_resource("user", "admin", "user"),
        "email": "admin@localhost",
        "first_name": "",
        "last_name": "",
        "avatar_url": "",
        "is_super_admin": True,
    }


def organization_answer() -> JsonObject:
    """Whose registry it is; `bentoml cloud login` asks for it."""
    return {**_resource("organization", "default", "organization"), "description": ""}


def item_answer(
    kind: Kind,
    item: Item,
    strategy: TransmissionStrategy | None,
    *,
    presigned_upload_url: str = "",
    presigned_download_url: str = "",
    upload_id: str = "",
) -> JsonObject:
    """An item.

    Args:
        kind: What it is.
        item: Its record.
        strategy: Which way its bytes go.
        presigned_upload_url: Where to PUT, when that was asked for.
        presigned_download_url: Where to GET, when that was asked for.
        upload_id: The multipart upload, when one was begun.

    Returns:
        Its JSON.
    """
    return {
        **_resource(item.uid, item.version, kind.item),
        "created_at": _time(item.created_at),
        "updated_at": _time(item.updated_at),
        "labels": [{"key": label.key, "value": label.value} for label in item.labels],
        kind.repository_uid: item.repository_uid,
        "creator": user_answer(),
        "version": item.version,
        "description": item.description,
        "image_build_status": "pending",
        "upload_status": item.upload_status,
        "upload_started_at": _optional_time(item.upload_started_at),
        "upload_finished_at": _optional_time(item.upload_finished_at),
        "upload_finished_reason": item.upload_finished_reason,
        "presigned_upload_url": presigned_upload_url,
        "presigned_download_url": presigned_download_url,
        "presigned_urls_deprecated": False,
        "transmission_strategy": strategy,
        "upload_id": upload_id,
        "manifest": item.manifest,
        "build_at": _time(item.build_at),
    }


def repository_answer(kind: Kind, repository: Repository, strategy: TransmissionStrategy | None) -> JsonObject:
    """A repository.

    Args:
        kind: What it holds.
        repository: Its record.
        strategy: Which way the bytes of its items go.

    Returns:
        Its JSON.
    """
    latest = None if repository.latest is None else item_answer(kind, repository.latest, strategy)
    answer: JsonObject = {
        **_resource(repository.uid, repository.name, kind.repository),
        "created_at": _time(repository.created_at),
        "updated_at": _time(repository.updated_at),
        "description": repository.description,
        "creator": user_answer(),
        "organization": organization_answer(),
        kind.latest: latest,
    }
    if kind is BENTO:
        answer |= {"n_bentos": repository.n_items, "n_deployments": 0}
    return answer


def list_answer(start: int, count: int, total: int, items: Sequence[JsonObject]) -> JsonObject:
    """A page of a list.

    Args:
        start: How many items were skipped.
        count: How many were asked for.
        total: How many there are.
        items: The items.

    Returns:
        Its JSON.
    """
    return {"start": start, "count": count, "total": total, "items": [*items]}


def _time(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _optional_time(time: datetime | None) -> str | None:
    return None if time is None else _time(time)
