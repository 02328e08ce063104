"""What clients say.

Read with more patience than our own client is held to: fields that are not known are ignored, and a manifest is kept as
it came, so that what a newer BentoML adds to it comes back on a pull.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from async_bento.registry.refusals import BadRequestError
from async_bento.wire.schemas import TIME_FORMAT, JsonObject, LabelItemSchema

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
    part_number: int = Field(ge=1, le=10_000)


class PartBody(Body):
    """A part that has been sent."""

    part_number: int = Field(ge=1, le=10_000)
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
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise BadRequestError(f"{where}: {first['msg']}") from error
    except ValueError as error:
        raise BadRequestError(f"the body is no JSON: {error}") from error
