"""The JSON bodies of requests to the registry, which `api` and `transfer` build and `routes.py` sends."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

from async_bento._core.s3 import MAX_PARTS
from async_bento._core.validation import JsonObject, RequestTime
from async_bento.rest.schemas import BentoManifestSchema, LabelItemSchema, ModelManifestSchema


class RequestModel(BaseModel):
    """The body of a request; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class CreateRepositorySchema(RequestModel):
    """The body of POST `/bento_repositories`."""

    name: str
    description: str = ""


class UpdateBentoSchema(RequestModel):
    """The body of PATCH on a bento; `description` is its README."""

    description: str
    manifest: BentoManifestSchema
    labels: list[LabelItemSchema] = []


class CreateBentoSchema(UpdateBentoSchema):
    """The body of POST `…/bentos`."""

    version: str
    build_at: RequestTime


class UpdateModelSchema(RequestModel):
    """The body of PATCH on a model; BentoML leaves `description` empty."""

    description: str = ""
    manifest: ModelManifestSchema
    labels: list[LabelItemSchema] = []


class CreateModelSchema(UpdateModelSchema):
    """The body of POST `…/models`."""

    version: str
    build_at: RequestTime


class UpdateLabelsSchema(RequestModel):
    """The body of PATCH on an item that changes its labels alone: the rest is what the registry sent."""

    description: str
    manifest: JsonObject | None
    labels: list[LabelItemSchema]


class PreSignMultipartUploadUrlSchema(RequestModel):
    """The body of PATCH `…/presign_multipart_upload_url`."""

    upload_id: str
    part_number: int = Field(ge=1, le=MAX_PARTS)


class CompletePartSchema(RequestModel):
    """A part of a multipart upload, with its ETag as the storage sent it, including quotes."""

    part_number: int = Field(ge=1, le=MAX_PARTS)
    etag: str


class CompleteMultipartUploadSchema(RequestModel):
    """The body of PATCH `…/complete_multipart_upload`: all parts, in ascending order."""

    parts: list[CompletePartSchema]
    upload_id: str


class FinishUploadSchema(RequestModel):
    """The body of PATCH `…/finish_upload`; `reason` is empty on success."""

    status: Literal["success", "failed"]
    reason: str = ""
