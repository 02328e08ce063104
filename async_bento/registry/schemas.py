"""The JSON of the registry's API: requests, and responses with every field that Yatai sends."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json

from async_bento._core.s3 import MAX_PARTS
from async_bento._core.validation import TIME_FORMAT, JsonObject, first_error, format_time
from async_bento.config import KiB, MiB
from async_bento.registry.errors import BadRequestError
from async_bento.registry.item_types import BENTO
from async_bento.rest.schemas import LabelItemSchema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Unpack

    from async_bento.registry.blobs.base import Content
    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.base import Item, Repository
    from async_bento.rest.schemas import TransmissionStrategy

RequestT = TypeVar("RequestT", bound="Request")

_BUILD_AT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", re.ASCII)

_MIN_YEAR = 1970

_MAX_MANIFEST_SIZE = MiB
"""Of the JSON, in bytes."""

_MAX_MANIFEST_DEPTH = 64
_MAX_DESCRIPTION_LENGTH = 3 * MiB
"""Of a bento or a model, in characters: clients send a README of up to 3 MiB."""

_MAX_REPOSITORY_DESCRIPTION_LENGTH = 256 * KiB
"""Shorter, since a list of bentos has the description of the repository with each of them."""

_MAX_REASON_LENGTH = 4 * KiB
_MAX_LABELS = 256
_MAX_LABEL_LENGTH = KiB
"""Of a key or a value, in characters."""

_EPOCH = "1970-01-01T00:00:00.000000Z"
"""The creation time of the user and the organization, which have no records."""


def _parse_build_at(value: object) -> datetime:
    # strptime accepts fewer digits after the point than Go's time.Parse, and Yatai accepts Go's form only.
    if not isinstance(value, str) or not _BUILD_AT.fullmatch(value):
        raise ValueError(f"must look like {TIME_FORMAT}")
    time = datetime.strptime(value, TIME_FORMAT).replace(tzinfo=timezone.utc)
    if time.year < _MIN_YEAR:
        raise ValueError(f"must not be before {_MIN_YEAR}")
    return time


def _null_to_empty(value: object) -> object:
    return "" if value is None else value


def _check_text(value: str) -> str:
    if "\0" in value:  # PostgreSQL cannot store it
        raise ValueError("must not contain a NUL character")
    return value


def _check_manifest(manifest: JsonObject) -> JsonObject:
    if _is_deeper(manifest, _MAX_MANIFEST_DEPTH):
        raise ValueError(f"must not be nested deeper than {_MAX_MANIFEST_DEPTH} levels")
    try:
        size = len(json.dumps(manifest, allow_nan=False))
    except ValueError as error:  # JSON has no infinity, which 1e999 becomes
        raise ValueError("must not have numbers above 1.7e308") from error
    if size > _MAX_MANIFEST_SIZE:
        raise ValueError(f"must not be larger than {_MAX_MANIFEST_SIZE} bytes")
    return manifest


def _is_deeper(value: JsonValue, depth: int) -> bool:
    inner: Iterable[JsonValue] = ()
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
    return depth < 0 or any(_is_deeper(each, depth - 1) for each in inner)


def _check_labels(labels: list[LabelItemSchema]) -> list[LabelItemSchema]:
    for label in labels:
        for text in (label.key, label.value):
            if len(_check_text(text)) > _MAX_LABEL_LENGTH:
                raise ValueError(f"must not have a key or value longer than {_MAX_LABEL_LENGTH} characters")
    return labels


BuildTime = Annotated[datetime, BeforeValidator(_parse_build_at)]
Text = Annotated[str, BeforeValidator(_null_to_empty), AfterValidator(_check_text)]
Description = Annotated[str, AfterValidator(_check_text), Field(max_length=_MAX_DESCRIPTION_LENGTH)]
Manifest = Annotated[JsonObject, AfterValidator(_check_manifest)]
Labels = Annotated[list[LabelItemSchema], AfterValidator(_check_labels), Field(max_length=_MAX_LABELS)]
PartNumber = Annotated[int, Field(ge=1, le=MAX_PARTS)]


class Request(BaseModel):
    """The body of a request; unknown fields are ignored, as Yatai does."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RepositoryRequest(Request):
    """Create a repository."""

    name: str
    description: Annotated[Text, Field(max_length=_MAX_REPOSITORY_DESCRIPTION_LENGTH)] = ""


class RepositoryUpdateRequest(Request):
    """Change a repository."""

    description: Annotated[Text, Field(max_length=_MAX_REPOSITORY_DESCRIPTION_LENGTH)]


class UpdateRequest(Request):
    """Change an item's record; None leaves a field unchanged."""

    description: Description | None = None
    manifest: Manifest | None = None
    labels: Labels | None = None


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
    reason: Annotated[Text, AfterValidator(lambda text: text[:_MAX_REASON_LENGTH])] = ""


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
    checksums: JsonObject | None


def checksums(content: Content | None) -> JsonObject | None:
    """Return size, ETag, and size and MD5 of each part of an item's bytes; None if they are unknown."""
    if content is None or not content.parts:
        return None
    return {"size": content.size, "etag": content.etag, "parts": [[part.size, part.md5] for part in content.parts]}


def item_json(
    item_type: ItemType,
    item: Item,
    strategy: TransmissionStrategy | None,
    *,
    repository: JsonObject | None = None,
    **transfer: Unpack[TransferFields],
) -> str:
    """Write a bento or model as JSON, and its repository with it."""
    fields = _item_fields(item_type, item, strategy, **transfer)
    if "checksums" in transfer:
        fields["checksums"] = transfer["checksums"]
    if repository is not None:
        fields["repository"] = repository
    return to_json(fields, manifest=item.manifest or "null")


def repository_fields(item_type: ItemType, repository: Repository, strategy: TransmissionStrategy | None) -> JsonObject:
    """Return the fields of a repository, with its newest item if that was loaded."""
    latest: JsonObject | None = None
    if repository.latest is not None:
        manifest = repository.latest.manifest
        # BentoML accepts no item without a manifest.
        latest = {**_item_fields(item_type, repository.latest, strategy), "manifest": manifest and json.loads(manifest)}
    fields: JsonObject = {
        **_resource(repository.uid, repository.name, item_type.repository),
        "created_at": _format_time(repository.created_at),
        "updated_at": _format_time(repository.updated_at),
        "description": repository.description,
        "creator": user_response(repository.creator),
        "organization": organization_response(),
        item_type.latest: latest,
    }
    if item_type is BENTO:
        fields |= {"n_bentos": repository.n_items, "n_deployments": 0}
    return fields


def to_json(fields: JsonObject, **raw: str) -> str:
    """Write an object as JSON; `raw` fields are JSON already."""
    members = "".join(f', "{name}": {text}' for name, text in raw.items())
    return f"{json.dumps(fields)[:-1]}{members}}}"


def _item_fields(
    item_type: ItemType, item: Item, strategy: TransmissionStrategy | None, **transfer: Unpack[TransferFields]
) -> JsonObject:
    """Return the fields of an item but its manifest."""
    return {
        **_resource(item.uid, item.version, item_type.item),
        "created_at": _format_time(item.created_at),
        "updated_at": _format_time(item.updated_at),
        "labels": [{"key": label.key, "value": label.value} for label in item.labels],
        item_type.repository_uid: item.repository_uid,
        "creator": user_response(item.creator),
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
        "build_at": _format_time(item.build_at),
    }


def user_response(token: str, *, is_admin: bool = False) -> JsonObject:
    """Build the JSON of a token, which stands for a user."""
    return {
        **_resource(f"user-{token}", token, "user"),
        "email": f"{token}@localhost",
        "first_name": "",
        "last_name": "",
        "avatar_url": "",
        "is_super_admin": is_admin,
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
