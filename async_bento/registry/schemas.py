"""The JSON of the registry's routes: request bodies, and answers with every field that Yatai has."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from async_bento._core.s3 import MAX_PARTS
from async_bento._core.validation import TIME_FORMAT, JsonObject, first_error
from async_bento.registry.errors import BadRequestError
from async_bento.registry.kinds import BENTO
from async_bento.rest.schemas import LabelItemSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento.registry.kinds import Kind
    from async_bento.registry.records.base import Item, Repository
    from async_bento.rest.schemas import TransmissionStrategy

_BUILD_AT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")

BodyT = TypeVar("BodyT", bound="Body")


def _build_at(value: object) -> datetime:
    # Python's strptime takes fewer digits after the point than Go's time.Parse, and Yatai's is the form to hold to.
    if not isinstance(value, str) or not _BUILD_AT.fullmatch(value):
        raise ValueError(f"must look like {TIME_FORMAT}")
    return datetime.strptime(value, TIME_FORMAT).replace(tzinfo=timezone.utc)


def _null_is_empty(value: object) -> object:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_null_is_empty)]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RepositoryBody(Body):
    """A repository to be created."""

    name: str
    description: Text = ""


class UpdateBody(Body):
    """What changes of an item's record; None leaves it as it is."""

    description: str | None = None
    manifest: JsonObject | None = None
    labels: list[LabelItemSchema] | None = None


class CreateBody(UpdateBody):
    """An item's record."""

    version: str
    build_at: Annotated[datetime, BeforeValidator(_build_at)]


class PresignPartBody(Body):
    """A part that is about to be sent."""

    upload_id: str
    part_number: int = Field(ge=1, le=MAX_PARTS)


class PartBody(Body):
    """A part that has been sent."""

    part_number: int = Field(ge=1, le=MAX_PARTS)
    etag: str


class CompleteBody(Body):
    """All parts of an upload."""

    upload_id: str
    parts: list[PartBody]


class FinishBody(Body):
    """How an upload ended."""

    status: Literal["success", "failed"]
    reason: Text = ""


def read_body(form: type[BodyT], raw: bytes) -> BodyT:
    """Read the JSON of a request.

    Args:
        form: What is expected.
        raw: The request's body.

    Returns:
        What it says.

    Raises:
        BadRequestError: It is no JSON, or does not fit; the message names the first field that does not.
    """
    try:
        # NaN and lone surrogates are no JSON, and could be neither stored nor answered.
        return form.model_validate(from_json(raw, allow_inf_nan=False))
    except ValidationError as error:
        first = first_error(error)
        raise BadRequestError(f"{first.field or 'body'}: {first.message}") from error
    except ValueError as error:
        raise BadRequestError(f"the body is no JSON: {error}") from error


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
