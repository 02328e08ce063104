"""The JSON of the registry's API: requests and answers.

Copied from what BentoML 1.4.39 sends and reads (`bentoml/_internal/cloud/schemas/`) and what Yatai answers
(yatai-schemas, `schemasv1/`). Unknown fields are ignored, since servers grow them; a field that one server leaves out
may be absent, null or empty at another, so an answer demands only what no step can do without.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Generic, Literal, TypeVar, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from async_bento._core.text import facts, human_size, table
from async_bento._core.validation import JsonObject, UtcTime

UPLOADED = "success"
"""The `upload_status` of an item whose bytes are all there."""

TransmissionStrategy = Literal["proxy", "presigned_url"]


def _blank_to_none(value: object) -> object:
    return None if value == "" else value


def _known_or_none(value: object) -> object:
    # Of a way that is not known yet, the registry is asked what it means by it.
    return value if value in get_args(TransmissionStrategy) else None


OptionalTime = Annotated[UtcTime | None, BeforeValidator(_blank_to_none)]

PresignedUrl = Annotated[SecretStr, Field(default=SecretStr(""))]
"""Whoever has it, has the bytes: never shown in a repr or a dump."""


class ResponseModel(BaseModel):
    """What the registry says; a null stands for a field that was left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in cast("JsonObject", data).items() if value is not None}


class LabelItemSchema(ResponseModel):
    """A label.

    Attributes:
        key: Its name.
        value: Its value.
    """

    key: str
    value: str = ""


class UserSchema(ResponseModel):
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


class ResourceSchema(ResponseModel):
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


class ModelManifestSchema(ResponseModel):
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


class ListSchema(ResponseModel, Generic[ItemT]):
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


HEAD = ("TAG", "SIZE", "BUILT (UTC)", "UPLOAD")
"""The columns of a list."""


def tag_of(item: ItemSchema) -> str:
    """Say which item a record is of.

    Args:
        item: The record.

    Returns:
        Its tag; the version alone where the registry does not say the name.
    """
    repository = getattr(item, "repository", None)
    name = repository.name if repository is not None else getattr(_manifest(item), "name", None)
    return f"{name}:{item.version}" if name else item.version


def row_of(item: ItemSchema) -> tuple[str, ...]:
    """Say of a record what a list has room for.

    Args:
        item: The record.

    Returns:
        A cell for each column of `HEAD`.
    """
    return tag_of(item), _size(item), f"{item.build_at:%Y-%m-%d %H:%M}" if item.build_at else "", item.upload_status


def facts_of(item: ItemSchema, tag: str | None = None) -> list[tuple[str, str]]:
    """Say what a person wants to know of a record.

    Args:
        item: The record.
        tag: Its tag, where that is known better.

    Returns:
        The name of each fact and the fact, which may be empty.
    """
    manifest = _manifest(item)
    return [
        ("Tag", tag or tag_of(item)),
        ("Upload", " ".join(filter(None, (item.upload_status, item.upload_finished_reason)))),
        ("Built (UTC)", f"{item.build_at:%Y-%m-%d %H:%M:%S}" if item.build_at else ""),
        ("Size", _size(item)),
        ("BentoML", manifest.bentoml_version if manifest else ""),
        ("Models", ", ".join(getattr(manifest, "models", []))),
        ("Labels", ", ".join(f"{label.key}={label.value}" for label in item.labels)),
    ]


def _manifest(item: ItemSchema) -> BentoManifestSchema | ModelManifestSchema | None:
    return getattr(item, "manifest", None)


def _size(item: ItemSchema) -> str:
    manifest = _manifest(item)
    return human_size(manifest.size_bytes) if manifest else ""
