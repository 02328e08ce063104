"""The JSON of the registry's API: requests, and responses with every field that Yatai sends."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from async_bento._core.s3 import MAX_PARTS
from async_bento._core.validation import TIME_FORMAT, JsonObject, first_error, format_time
from async_bento.registry.errors import BadRequestError
from async_bento.registry.item_types import BENTO
from async_bento.rest.schemas import LabelItemSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.base import Item, Repository
    from async_bento.rest.schemas import TransmissionStrategy

RequestT = TypeVar("RequestT", bound="Request")

_BUILD_AT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")

_EPOCH = "1970-01-01T00:00:00.000000Z"
"""The creation time of the user and the organization, which have no records."""


def _parse_build_at(value: object) -> datetime:
    # strptime accepts fewer digits after the point than Go's time.Parse, and Yatai accepts Go's form only.
    if not isinstance(value, str) or not _BUILD_AT.fullmatch(value):
        raise ValueError(f"must look like {TIME_FORMAT}")
    return datetime.strptime(value, TIME_FORMAT).replace(tzinfo=timezone.utc)


def _null_to_empty(value: object) -> object:
    return "" if value is None else value


BuildTime = Annotated[datetime, BeforeValidator(_parse_build_at)]
Text = Annotated[str, BeforeValidator(_null_to_empty)]
PartNumber = Annotated[int, Field(ge=1, le=MAX_PARTS)]


class Request(BaseModel):
    """The body of a request; unknown fields are ignored, as Yatai does."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RepositoryRequest(Request):
    """Create a repository."""

    name: str
    description: Text = ""


class UpdateRequest(Request):
    """Change an item's record; None leaves a field unchanged."""

    description: str | None = None
    manifest: JsonObject | None = None
    labels: list[LabelItemSchema] | None = None


class CreateRequest(UpdateRequest):
    """Create an item's record."""

    version: str
    build_at: BuildTime


class PresignPartRequest(Request):
    """Presign the URL of a part."""

    upload_id: str
    part_number: PartNumber


class PartRequest(Request):
    """A part in `CompleteRequest`."""

    part_number: PartNumber
    etag: str


class CompleteRequest(Request):
    """Complete a multipart upload."""

    upload_id: str
    parts: list[PartRequest]


class FinishRequest(Request):
    """Report the outcome of an upload."""

    status: Literal["success", "failed"]
    reason: Text = ""


def parse_request(schema: type[RequestT], raw: bytes) -> RequestT:
    """Parse the JSON of a request; raise `BadRequestError` naming the first invalid field."""
    try:
        # JSON has neither NaN nor lone surrogates; they could not be stored or sent.
        return schema.model_validate(from_json(raw, allow_inf_nan=False))
    except ValidationError as error:
        first = first_error(error)
        raise BadRequestError(f"invalid request: {first.field or 'body'}: {first.message}") from error
    except ValueError as error:
        raise BadRequestError(f"invalid request: the body is not JSON: {error}") from error


class TransferFields(TypedDict, total=False):
    """The fields of an item that answer a request about its bytes."""

    presigned_upload_url: str
    presigned_download_url: str
    upload_id: str


def item_response(
    item_type: ItemType, item: Item, strategy: TransmissionStrategy | None, **transfer: Unpack[TransferFields]
) -> JsonObject:
    """Build the JSON of a bento or model."""
    return {
        **_resource(item.uid, item.version, item_type.item),
        "created_at": _format_time(item.created_at),
        "updated_at": _format_time(item.updated_at),
        "labels": [{"key": label.key, "value": label.value} for label in item.labels],
        item_type.repository_uid: item.repository_uid,
        "creator": user_response(),
        "version": item.version,
        "description": item.description,
        "image_build_status": "pending",
        "upload_status": item.upload_status,
        "upload_started_at": _format_optional_time(item.upload_started_at),
        "upload_finished_at": _format_optional_time(item.upload_finished_at),
        "upload_finished_reason": item.upload_finished_reason,
        "presigned_upload_url": transfer.get("presigned_upload_url", ""),
        "presigned_download_url": transfer.get("presigned_download_url", ""),
        "presigned_urls_deprecated": False,
        "transmission_strategy": strategy,
        "upload_id": transfer.get("upload_id", ""),
        "manifest": item.manifest,
        "build_at": _format_time(item.build_at),
    }


def repository_response(
    item_type: ItemType, repository: Repository, strategy: TransmissionStrategy | None
) -> JsonObject:
    """Build the JSON of a repository."""
    latest = None if repository.latest is None else item_response(item_type, repository.latest, strategy)
    response: JsonObject = {
        **_resource(repository.uid, repository.name, item_type.repository),
        "created_at": _format_time(repository.created_at),
        "updated_at": _format_time(repository.updated_at),
        "description": repository.description,
        "creator": user_response(),
        "organization": organization_response(),
        item_type.latest: latest,
    }
    if item_type is BENTO:
        response |= {"n_bentos": repository.n_items, "n_deployments": 0}
    return response


def list_response(start: int, count: int, total: int, items: Sequence[JsonObject]) -> JsonObject:
    """Build the JSON of a page: `count` is what was requested, `total` the number of items on all pages."""
    return {"start": start, "count": count, "total": total, "items": [*items]}


def user_response() -> JsonObject:
    """Build the JSON of the only user."""
    return {
        **_resource("user", "admin", "user"),
        "email": "admin@localhost",
        "first_name": "",
        "last_name": "",
        "avatar_url": "",
        "is_super_admin": True,
    }


def organization_response() -> JsonObject:
    """Build the JSON of the only organization, which `bentoml cloud login` requests."""
    return {**_resource("organization", "default", "organization"), "description": ""}


def _resource(uid: str, name: str, resource_type: str) -> JsonObject:
    return {
        "uid": uid,
        "created_at": _EPOCH,
        "updated_at": _EPOCH,
        "deleted_at": None,
        "name": name,
        "resource_type": resource_type,
        "labels": [],
    }


def _format_time(time: datetime) -> str:
    return f"{format_time(time).replace(' ', 'T')}Z"


def _format_optional_time(time: datetime | None) -> str | None:
    return None if time is None else _format_time(time)
