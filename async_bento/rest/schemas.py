"""The JSON of the registry's responses, and its display in notebooks.

Fields are those that BentoML 1.4.39 reads (`bentoml/_internal/cloud/schemas/`) and Yatai sends (yatai-schemas,
`schemasv1/`). Unknown fields are ignored, since servers add them. A field that one server omits may be null or empty at
another, so only the fields that a step needs are required.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Literal, TypeVar, cast, get_args, overload

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from async_bento._core.tag import Tag
from async_bento._core.text import MAX_ROWS, facts, human_size, table
from async_bento._core.validation import JsonObject, UtcTime
from async_bento.errors import APIResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import ValidatorFunctionWrapHandler

UPLOADED = "success"
"""The `upload_status` of an item whose upload is complete."""

UNFINISHED = frozenset({"pending", "uploading", "failed"})
"""The `upload_status` of an item whose upload is not complete."""

TransmissionStrategy = Literal["proxy", "presigned_url"]


def _blank_to_none(value: object) -> object:
    return None if value == "" else value


def _known_or_none(value: object) -> object:
    # None makes the client ask for a presigned URL, which a registry with a newer strategy can answer.
    return value if value in get_args(TransmissionStrategy) else None


def _known_checksums_or_none(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    # Another registry may give the name another meaning.
    try:
        return validate(value)
    except ValidationError:
        return None


OptionalTime = Annotated[UtcTime | None, BeforeValidator(_blank_to_none)]

PresignedUrl = Annotated[SecretStr, Field(default=SecretStr(""))]
"""Grants access to the bytes without a token, so that no repr and no dump shows it."""


class ResponseModel(BaseModel):
    """A JSON object of a response; null means the same as a missing field."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in cast("JsonObject", data).items() if value is not None}


class LabelItemSchema(ResponseModel):
    """A label of a bento or a model.

    Attributes:
        key: The name of the label.
        value: The value; empty if the registry sends none.
    """

    key: str
    value: str = ""


class UserSchema(ResponseModel):
    """A user of the registry.

    Attributes:
        name: The login name.
        email: The email address.
        first_name: The first name.
        last_name: The last name.
    """

    name: str
    email: str = ""
    first_name: str = ""
    last_name: str = ""


class ResourceSchema(ResponseModel):
    """The fields of every record."""

    uid: str = ""
    name: str = ""  # of a repository; the version of an item
    resource_type: str = ""
    created_at: OptionalTime = None
    updated_at: OptionalTime = None
    deleted_at: OptionalTime = None
    labels: list[LabelItemSchema] = []


class BentoManifestSchema(BaseModel):
    """The manifest of a bento, with the fields of BentoML's `BentoManifestSchema`; the same in requests and responses.

    Attributes:
        service: The import path of the service.
        bentoml_version: The version of BentoML that built the bento.
        size_bytes: The size of the bento in bytes, including its models.
        entry_service: The name of the service that receives requests first.
        name: The name of the bento.
        apis: Always empty since BentoML 1.2.
        models: The tags of its models.
        runners: The runners of a bento of spec 1.
        services: The services of a bento built by BentoML 1.2 or later.
        envs: Environment variables.
        schema_: The OpenAPI-like schema of its endpoints; `schema` in JSON.
        version: The version of the bento.
        dev: Whether the bento was pushed bare, for development.
        image: How the image of a bento of spec 2 is built.
        spec: The version of the format of `bento.yaml`.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)  # a copy keeps unknown fields

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
    def _nulls_to_defaults(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        # BentoML sends null for these; in another field, null means that a server omits it.
        optional = {"name", "runners", "version", "image"}
        return {k: v for k, v in cast("JsonObject", data).items() if v is not None or k in optional}


class ModelManifestSchema(ResponseModel):
    """The manifest of a model, with the fields of BentoML's `ModelManifestSchema`; the same in requests and responses.

    Attributes:
        module: The BentoML framework module that saved the model.
        api_version: The version of that module's format.
        bentoml_version: The version of BentoML that saved the model.
        size_bytes: The size of the model in bytes.
        metadata: The metadata of the user; for a Hugging Face model, its location on the Hub.
        context: The name and versions of the framework.
        options: The options of the framework module.
    """

    module: str = ""
    api_version: str = ""
    bentoml_version: str = ""
    size_bytes: int = 0
    metadata: JsonObject = {}
    context: JsonObject = {}
    options: JsonObject = {}

    model_config = ConfigDict(extra="allow")  # a copy keeps unknown fields


class ChecksumsSchema(ResponseModel):
    """The checksums of an item's tar. Only the registry of async-bento sends them.

    Attributes:
        size: The size of the tar in bytes.
        etag: The ETag of the tar, with its quotes.
        parts: The size in bytes and the MD5 in hexadecimal of each part, in order; empty if the registry does not know
            them.
    """

    size: int
    etag: str
    parts: list[tuple[int, str]]


class ItemSchema(ResourceSchema):
    """The fields that bentos and models share."""

    version: str
    description: str = ""
    image_build_status: str = ""
    upload_status: str = ""  # pending, uploading, success or failed
    upload_started_at: OptionalTime = None
    upload_finished_at: OptionalTime = None
    upload_finished_reason: str = ""
    presigned_upload_url: PresignedUrl  # of a PUT; in the response to presign requests only
    presigned_download_url: PresignedUrl  # of a GET; likewise
    presigned_urls_deprecated: bool = False
    transmission_strategy: Annotated[TransmissionStrategy | None, BeforeValidator(_known_or_none)] = None
    upload_id: str = ""  # of a multipart upload, in the response to start_multipart_upload
    build_at: OptionalTime = None
    creator: UserSchema | None = None
    checksums: Annotated[ChecksumsSchema | None, WrapValidator(_known_checksums_or_none)] = None

    @property
    def tag(self) -> Tag:
        """The tag, as of a local bento or model.

        Raises:
            APIResponseError: The registry did not send the name.
        """
        if not (name := _name(self)):
            raise APIResponseError(f"the tag of version {self.version} is unknown: the registry did not send its name")
        return Tag(name, self.version)

    @property
    def size_bytes(self) -> int:
        """The size by the manifest, in bytes, for a bento including its models; 0 if the registry sends none."""
        manifest = _manifest(self)
        return manifest.size_bytes if manifest else 0

    def __repr__(self) -> str:
        size = f", size={_size(self)!r}" if _manifest(self) else ""
        return f"{type(self).__name__}(tag={record_tag(self)!r}, upload_status={self.upload_status!r}{size})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return facts(details(self))


class BentoSchema(ItemSchema):
    """A bento in the registry.

    Attributes:
        uid: The id of the record.
        version: The version of the bento.
        description: The README.
        manifest: The manifest; None if the registry sends none.
        labels: The labels.
        build_at: The time the bento was built, in UTC.
        creator: The user that created the record.
        upload_status: `pending`, `uploading`, `success` or `failed`.
        upload_started_at: The time the upload started, in UTC.
        upload_finished_at: The time the upload finished, in UTC.
        upload_finished_reason: The reason, if `upload_status` is `failed`; otherwise it may be of an earlier upload.
        created_at: The time the record was created, in UTC; likewise `updated_at` and `deleted_at`.
        checksums: The checksums of the tar; None in a list, and from other registries.
        bento_repository_uid: The id of the repository.
    """

    bento_repository_uid: str = ""
    manifest: BentoManifestSchema | None = None


class ModelSchema(ItemSchema):
    """A model in the registry.

    Attributes:
        uid: The id of the record.
        version: The version of the model.
        manifest: The manifest; None if the registry sends none.
        labels: The labels.
        build_at: The time the model was saved, in UTC.
        creator: The user that created the record.
        upload_status: `pending`, `uploading`, `success` or `failed`.
        upload_started_at: The time the upload started, in UTC.
        upload_finished_at: The time the upload finished, in UTC.
        upload_finished_reason: The reason, if `upload_status` is `failed`; otherwise it may be of an earlier upload.
        created_at: The time the record was created, in UTC; likewise `updated_at` and `deleted_at`.
        checksums: The checksums of the tar; None in a list, and from other registries.
        model_uid: The id of the repository, under Yatai's name for it.
    """

    model_config = ConfigDict(protected_namespaces=())  # pydantic before 2.10 reserves the prefix model_

    model_uid: str = ""
    manifest: ModelManifestSchema | None = None


class RepositorySchema(ResourceSchema):
    """The fields that repositories of bentos and of models share."""

    description: str = ""
    creator: UserSchema | None = None


class BentoRepositorySchema(RepositorySchema):
    """A repository: all versions of one bento.

    Attributes:
        name: The name of the bento.
        description: The description of the repository.
        latest_bento: The newest version.
        n_bentos: The number of versions.
        n_deployments: The number of deployments that use them.
    """

    latest_bento: BentoSchema | None = None
    n_bentos: int = 0
    n_deployments: int = 0


class ModelRepositorySchema(RepositorySchema):
    """A repository: all versions of one model.

    Attributes:
        name: The name of the model.
        description: The description of the repository.
        latest_model: The newest version.
    """

    latest_model: ModelSchema | None = None


class ModelWithRepositorySchema(ModelSchema):
    """A model with its repository; see `ModelSchema` for the other fields.

    Attributes:
        repository: The repository, with the model's name.
    """

    repository: ModelRepositorySchema | None = None


class BentoWithRepositorySchema(BentoSchema):
    """A bento with its repository; see `BentoSchema` for the other fields.

    Attributes:
        repository: The repository, with the bento's name.
    """

    repository: BentoRepositorySchema | None = None


class BentoFullSchema(BentoWithRepositorySchema):
    """A bento with its models, as Yatai sends a single bento; see `BentoSchema` for the other fields.

    Attributes:
        repository: The repository, with the bento's name.
        models: The models of the bento that are in the registry.
    """

    models: list[ModelWithRepositorySchema] = []


ItemT = TypeVar("ItemT", bound=ItemSchema)


class ListSchema(ResponseModel, Generic[ItemT]):
    """A page of a list, or all its pages: a sequence of records."""

    _NOUN: ClassVar[str] = "items"

    start: int = 0
    count: int = 0
    total: int = 0
    items: list[ItemT] = []

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ItemT]:  # type: ignore[override]  # pydantic's iterates over pairs of name and value
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> ItemT: ...

    @overload
    def __getitem__(self, index: slice) -> list[ItemT]: ...

    def __getitem__(self, index: int | slice) -> ItemT | list[ItemT]:
        return self.items[index]

    def __repr__(self) -> str:
        shown = [repr(record_tag(item)) for item in self.items[:MAX_ROWS]]
        if len(self) > MAX_ROWS:
            shown.append(f"... {len(self) - MAX_ROWS:,} more")
        return f"{type(self).__name__}([{', '.join(shown)}])"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return table(SUMMARY_COLUMNS, map(summary_row, self.items), total=len(self.items), noun=self._NOUN)


class BentoWithRepositoryListSchema(ListSchema[BentoWithRepositorySchema]):
    """A list of bentos, newest first. It has a length, can be indexed, and iterates over its items.

    Attributes:
        start: The position of the first item in the whole list, from 0.
        count: The number of items asked for.
        total: The number of items in the registry that match.
        items: The bentos.
    """

    _NOUN = "bentos"


class ModelWithRepositoryListSchema(ListSchema[ModelWithRepositorySchema]):
    """A list of models, newest first. It has a length, can be indexed, and iterates over its items.

    Attributes:
        start: The position of the first item in the whole list, from 0.
        count: The number of items asked for.
        total: The number of items in the registry that match.
        items: The models.
    """

    _NOUN = "models"


SUMMARY_COLUMNS = ("TAG", "SIZE", "BUILT (UTC)", "UPLOAD")


def record_tag(item: ItemSchema) -> str:
    """The tag of a record; its version alone if the registry does not send the name."""
    name = _name(item)
    return f"{name}:{item.version}" if name else item.version


def failure_reason(item: ItemSchema) -> str:
    """The reason of a failed upload. Yatai keeps the reason of an earlier failure in the record of a later success."""
    return item.upload_finished_reason if item.upload_status == "failed" else ""


def summary_row(item: ItemSchema) -> tuple[str, ...]:
    """The row of a record in a list, with a cell for each of `SUMMARY_COLUMNS`."""
    built = f"{item.build_at:%Y-%m-%d %H:%M}" if item.build_at else ""
    return record_tag(item), _size(item), built, item.upload_status


def details(item: ItemSchema, tag: str | None = None) -> list[tuple[str, str]]:
    """Names and values for the view of one record; a value may be empty. `tag` overrides the record's."""
    manifest = _manifest(item)
    models: list[str] = getattr(manifest, "models", [])
    return [
        ("Tag", tag or record_tag(item)),
        ("Upload", " ".join(filter(None, (item.upload_status, failure_reason(item))))),
        ("Built (UTC)", f"{item.build_at:%Y-%m-%d %H:%M:%S}" if item.build_at else ""),
        ("Size", f"{_size(item)} with its models" if models else _size(item)),
        ("BentoML", manifest.bentoml_version if manifest else ""),
        ("Models", ", ".join(models)),
        ("Labels", ", ".join(f"{label.key}={label.value}" for label in item.labels)),
    ]


def _name(item: ItemSchema) -> str | None:
    repository = getattr(item, "repository", None)
    return repository.name if repository is not None else getattr(_manifest(item), "name", None)


def _manifest(item: ItemSchema) -> BentoManifestSchema | ModelManifestSchema | None:
    return getattr(item, "manifest", None)


def _size(item: ItemSchema) -> str:
    manifest = _manifest(item)
    return human_size(manifest.size_bytes) if manifest else ""
