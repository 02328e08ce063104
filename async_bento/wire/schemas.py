"""The JSON of the registry's API: requests and answers.

Copied from what BentoML 1.4.39 sends and reads (`bentoml/_internal/cloud/schemas/`) and what Yatai answers
(yatai-schemas, `schemasv1/`). Unknown fields are ignored, since servers grow them; a field that one server leaves out
may be absent, null or empty at another, so an answer demands only what no step can do without.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, ClassVar, Generic, Literal, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    SecretStr,
    model_validator,
)

from async_bento.html import facts, table
from async_bento.wire.shown import HEAD, facts_of, row_of

TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
"""The only form of `build_at` that Yatai parses; UTC."""

UPLOADED = "success"
"""The `upload_status` of an item whose bytes are all there."""

TransmissionStrategy = Literal["proxy", "presigned_url"]

JsonObject = dict[str, JsonValue]


def _blank_to_none(value: object) -> object:
    return None if value == "" else value


def _known_or_none(value: object) -> object:
    # Of a way that is not known yet, the registry is asked what it means by it.
    return value if value in get_args(TransmissionStrategy) else None


def _in_utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
    except OverflowError:  # a time that has no place in UTC's years 1 to 9999
        raise ValueError("date value out of range") from None


def _format_time(value: datetime) -> str:
    # As TIME_FORMAT says, but with four digits for every year, which strftime leaves to the C library.
    return _in_utc(value).replace(tzinfo=None).isoformat(" ", "microseconds")


UtcTime = Annotated[datetime, AfterValidator(_in_utc)]
"""A time of an answer, RFC 3339 with up to nanoseconds; without a zone it is UTC."""

OptionalTime = Annotated[UtcTime | None, BeforeValidator(_blank_to_none)]

BuildTime = Annotated[UtcTime, PlainSerializer(_format_time, return_type=str)]
"""A time of a request, in the one form the registry reads."""

PresignedUrl = Annotated[SecretStr, Field(default=SecretStr(""))]
"""Whoever has it, has the bytes: never shown in a repr or a dump."""


class Request(BaseModel):
    """What is said to the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Answer(BaseModel):
    """What the registry says; a null stands for a field that was left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in cast("JsonObject", data).items() if value is not None}


class LabelItemSchema(Answer):
    """A label.

    Attributes:
        key: Its name.
        value: Its value.
    """

    key: str
    value: str = ""


class UserSchema(Answer):
    """Whose token it is.

    Attributes:
        name: The login.
        email: The address.
        first_name: As the user gave it.
        last_name: As the user gave it.
    """

    name: str
    email: str = ""
    first_name: str = ""
    last_name: str = ""


class ResourceSchema(Answer):
    """What every record of the registry has.

    Attributes:
        uid: The registry's own id.
        name: The name: of a repository, or the version of an item.
        resource_type: Which kind of record.
        created_at: When it was registered.
        updated_at: When it was last changed.
        deleted_at: When it was deleted.
        labels: Its labels.
    """

    uid: str = ""
    name: str = ""
    resource_type: str = ""
    created_at: OptionalTime = None
    updated_at: OptionalTime = None
    deleted_at: OptionalTime = None
    labels: list[LabelItemSchema] = []


class BentoManifestSchema(BaseModel):
    """What a bento is, as BentoML's `BentoManifestSchema` has it; the same in requests and answers.

    Attributes:
        service: The import path of the service.
        bentoml_version: The BentoML that built it.
        size_bytes: Its size in bytes, with its models.
        entry_service: The name of the service that answers first.
        name: The bento's name.
        apis: Always empty since BentoML 1.2.
        models: The tags of its models.
        runners: Runners, for a bento of spec 1.
        services: Services, for a bento built by BentoML 1.2 or later.
        envs: Environment variables.
        schema_: The OpenAPI-like schema of its endpoints; `schema` in JSON.
        version: The bento's version.
        dev: Whether it was pushed bare, for development.
        image: How its image is built, for a bento of spec 2.
        spec: The version of the format of bento.yaml.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    service: str = ""
    bentoml_version: str = ""
    size_bytes: int = 0
    entry_service: str = ""
    name: str | None = None
    apis: JsonObject = {}
    models: list[str] = []
    runners: list[JsonObject] | None = []
    services: list[JsonObject] = []
    envs: list[JsonObject] = []
    schema_: JsonObject = Field(default={}, alias="schema")
    version: str | None = None
    dev: bool = False
    image: JsonObject | None = None
    spec: int = 1

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        optional = {"name", "runners", "version", "image"}
        return {k: v for k, v in cast("JsonObject", data).items() if v is not None or k in optional}


class ModelManifestSchema(Answer):
    """What a model is, as BentoML's `ModelManifestSchema` has it; the same in requests and answers.

    Attributes:
        module: The BentoML framework module that saved it.
        api_version: That module's format.
        bentoml_version: The BentoML that saved it.
        size_bytes: Its size in bytes.
        metadata: What was said of it; for a model on a hub, where it is.
        context: The framework's name and versions.
        options: The framework module's options.
    """

    module: str = ""
    api_version: str = ""
    bentoml_version: str = ""
    size_bytes: int = 0
    metadata: JsonObject = {}
    context: JsonObject = {}
    options: JsonObject = {}


class ItemSchema(ResourceSchema):
    """What bentos and models have in common.

    Attributes:
        version: The version.
        description: The README, for a bento.
        image_build_status: How far the image is built.
        upload_status: `pending`, `uploading`, `success` or `failed`.
        upload_started_at: When the upload began.
        upload_finished_at: When it ended.
        upload_finished_reason: Why it failed.
        presigned_upload_url: Where to PUT, when that was asked for.
        presigned_download_url: Where to GET, when that was asked for.
        presigned_urls_deprecated: Yatai's own.
        transmission_strategy: Which way the bytes go; None where that must be asked.
        upload_id: The multipart upload, when one was begun.
        build_at: When it was built.
        creator: Who registered it.
    """

    version: str
    description: str = ""
    image_build_status: str = ""
    upload_status: str = ""
    upload_started_at: OptionalTime = None
    upload_finished_at: OptionalTime = None
    upload_finished_reason: str = ""
    presigned_upload_url: PresignedUrl
    presigned_download_url: PresignedUrl
    presigned_urls_deprecated: bool = False
    transmission_strategy: Annotated[TransmissionStrategy | None, BeforeValidator(_known_or_none)] = None
    upload_id: str = ""
    build_at: OptionalTime = None
    creator: UserSchema | None = None

    def _repr_html_(self) -> str:
        return facts(facts_of(self))


class BentoSchema(ItemSchema):
    """A bento on the registry.

    Attributes:
        bento_repository_uid: Its repository's id.
        manifest: What it is.
    """

    bento_repository_uid: str = ""
    manifest: BentoManifestSchema | None = None


class ModelSchema(ItemSchema):
    """A model on the registry.

    Attributes:
        model_uid: Its repository's id, under Yatai's name for it.
        manifest: What it is.
    """

    model_uid: str = ""
    manifest: ModelManifestSchema | None = None


class RepositorySchema(ResourceSchema):
    """What repositories of bentos and of models have in common.

    Attributes:
        description: What it is for.
        creator: Who created it.
    """

    description: str = ""
    creator: UserSchema | None = None


class BentoRepositorySchema(RepositorySchema):
    """All versions of one bento.

    Attributes:
        latest_bento: The newest version.
        n_bentos: How many versions there are.
        n_deployments: How many deployments use them.
    """

    latest_bento: BentoSchema | None = None
    n_bentos: int = 0
    n_deployments: int = 0


class ModelRepositorySchema(RepositorySchema):
    """All versions of one model.

    Attributes:
        latest_model: The newest version.
    """

    latest_model: ModelSchema | None = None


class ModelWithRepositorySchema(ModelSchema):
    """A model in a list of all models.

    Attributes:
        repository: Its repository.
    """

    repository: ModelRepositorySchema | None = None


class BentoWithRepositorySchema(BentoSchema):
    """A bento in a list of all bentos.

    Attributes:
        repository: Its repository.
    """

    repository: BentoRepositorySchema | None = None


class BentoFullSchema(BentoWithRepositorySchema):
    """A bento as Yatai answers for one: with its models.

    Attributes:
        models: Its models that are on the registry.
    """

    models: list[ModelWithRepositorySchema] = []


ItemT = TypeVar("ItemT", bound=ItemSchema)


class ListSchema(Answer, Generic[ItemT]):
    """A page of a list, or all its pages.

    Attributes:
        start: The first item's place in the whole, from 0.
        count: How many were asked for.
        total: How many there are.
        items: The items.
    """

    _WHAT: ClassVar[str] = "items"

    start: int = 0
    count: int = 0
    total: int = 0
    items: list[ItemT] = []

    def _repr_html_(self) -> str:
        return table(HEAD, map(row_of, self.items), total=len(self.items), what=self._WHAT)


class BentoWithRepositoryListSchema(ListSchema[BentoWithRepositorySchema]):
    """Bentos, newest first."""

    _WHAT = "bentos"


class ModelWithRepositoryListSchema(ListSchema[ModelWithRepositorySchema]):
    """Models, newest first."""

    _WHAT = "models"


class CreateRepositorySchema(Request):
    """A repository to be created.

    Attributes:
        name: Its name.
        description: What it is for.
    """

    name: str
    description: str = ""


class UpdateBentoSchema(Request):
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
    build_at: BuildTime


class UpdateModelSchema(Request):
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
    build_at: BuildTime


class PreSignMultipartUploadUrlSchema(Request):
    """A part that is about to be sent.

    Attributes:
        upload_id: The multipart upload.
        part_number: Which part, from 1 to 10,000.
    """

    upload_id: str
    part_number: int = Field(ge=1, le=10_000)


class CompletePartSchema(Request):
    """A part that has been sent.

    Attributes:
        part_number: Which part, from 1 to 10,000.
        etag: Its ETag as the storage gave it, quotes and all.
    """

    part_number: int = Field(ge=1, le=10_000)
    etag: str


class CompleteMultipartUploadSchema(Request):
    """All parts of an upload, in ascending order.

    Attributes:
        parts: The parts.
        upload_id: The multipart upload.
    """

    parts: list[CompletePartSchema]
    upload_id: str


class FinishUploadSchema(Request):
    """How an upload ended.

    Attributes:
        status: `success` or `failed`.
        reason: Why it failed; empty otherwise.
    """

    status: Literal["success", "failed"]
    reason: str = ""
