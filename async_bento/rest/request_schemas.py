"""The JSON of requests to the registry."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

from async_bento._core.s3 import MAX_PARTS
from async_bento._core.validation import RequestTime
from async_bento.rest.schemas import BentoManifestSchema, LabelItemSchema, ModelManifestSchema


class RequestModel(BaseModel):
    """What is said to the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class CreateRepositorySchema(RequestModel):
    """A repository to be created.

    Attributes:
        name: Its name.
        description: What it is for.
    """

    name: str
    description: str = ""


class UpdateBentoSchema(RequestModel):
    """What changes of a bento's record.

    Attributes:
        description: The README.
        manifest: What the bento is.
        labels: Its labels.
    """

    description: str
    manifest: BentoManifestSchema
    labels: list[LabelItemSchema] = []


class CreateBentoSchema(UpdateBentoSchema):
    """A bento's record.

    Attributes:
        version: The version.
        build_at: When it was built.
    """

    version: str
    build_at: RequestTime


class UpdateModelSchema(RequestModel):
    """What changes of a model's record.

    Attributes:
        description: Always empty at BentoML.
        manifest: What the model is.
        labels: Its labels.
    """

    description: str = ""
    manifest: ModelManifestSchema
    labels: list[LabelItemSchema] = []


class CreateModelSchema(UpdateModelSchema):
    """A model's record.

    Attributes:
        version: The version.
        build_at: When it was saved.
    """

    version: str
    build_at: RequestTime


class PreSignMultipartUploadUrlSchema(RequestModel):
    """A part that is about to be sent.

    Attributes:
        upload_id: The multipart upload.
        part_number: Which part, from 1 to 10,000.
    """

    upload_id: str
    part_number: int = Field(ge=1, le=MAX_PARTS)


class CompletePartSchema(RequestModel):
    """A part that has been sent.

    Attributes:
        part_number: Which part, from 1 to 10,000.
        etag: Its ETag as the storage gave it, quotes and all.
    """

    part_number: int = Field(ge=1, le=MAX_PARTS)
    etag: str


class CompleteMultipartUploadSchema(RequestModel):
    """All parts of an upload, in ascending order.

    Attributes:
        parts: The parts.
        upload_id: The multipart upload.
    """

    parts: list[CompletePartSchema]
    upload_id: str


class FinishUploadSchema(RequestModel):
    """How an upload ended.

    Attributes:
        status: `success` or `failed`.
        reason: Why it failed; empty otherwise.
    """

    status: Literal["success", "failed"]
    reason: str = ""
