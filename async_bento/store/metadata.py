"""The contents of `bento.yaml` and `model.yaml`, as every release of BentoML so far wrote them.

The fields are those that BentoML 1.4.39 reads (`bentoml/_internal/bento/bento.py`, `bento/build_config.py`,
`models/model.py`). Fields that neither a registry nor this package needs are ignored, and so are unknown ones.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from async_bento._core.files import open_regular
from async_bento._core.tag import Tag
from async_bento._core.validation import RequestTime, first_error
from async_bento.config import BENTOML_VERSION, MiB
from async_bento.errors import NotFoundError, StoreError
from async_bento.store.errors import as_store_error
from async_bento.store.fields import FreeForm, Labels, Name, TagField, Text, Version, as_mapping

if TYPE_CHECKING:
    from pathlib import Path

# Parsing is about eight times faster with libyaml, with which not every PyYAML is built.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_YAML_SIZE = 16 * MiB
"""In bytes. Parsing takes about a hundred times the size in memory; BentoML writes some kilobytes."""


class YamlMapping(BaseModel):
    """A mapping in `bento.yaml` or `model.yaml`. A field with a null value counts as missing."""

    # Errors do not quote input: the values of `envs` may be secrets.
    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        fields = as_mapping(value)
        return value if fields is None else {key: field for key, field in fields.items() if field is not None}


class ItemInfo(YamlMapping):
    """The fields that both files have."""

    name: Name
    version: Version
    labels: Labels = {}
    creation_time: RequestTime  # where the file has none, the modification time of the file

    @property
    def tag(self) -> Tag:
        """The name and the version."""
        return Tag(self.name, self.version)


class BentoModelInfo(YamlMapping):
    """A model that a bento, or one of its services, needs."""

    tag: TagField
    module: str | None = None  # the framework that loads the model
    creation_time: RequestTime = Field(default_factory=lambda: datetime.now(timezone.utc))
    alias: str | None = None  # the model's name in the bento's code
    registry: str = "bentoml"  # where the bytes are: `bentoml` or `huggingface`
    metadata: FreeForm | None = None  # on Hugging Face: model_id, revision, endpoint, include, exclude

    @property
    def is_huggingface(self) -> bool:
        """Whether the bytes are on the Hugging Face Hub, so that there are none to push."""
        return self.registry == "huggingface"

    @model_validator(mode="before")
    @classmethod
    def _from_tag(cls, value: object) -> object:
        # Before 1.0.0a7, a bento listed its models by tag only. BentoML gives those the oldest possible time.
        if not isinstance(value, str):
            return value
        return {"tag": value, "module": "unknown", "creation_time": datetime.min.replace(tzinfo=timezone.utc)}


class BentoDependencyInfo(YamlMapping):
    """Another service that a service calls: in the same bento, in a deployment, or at a URL."""

    service: str | None = None
    deployment: str | None = None
    cluster: str | None = None
    url: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"service": value} if isinstance(value, str) else value


class BentoServiceInfo(YamlMapping):
    """A service of a bento, from BentoML 1.2 on."""

    name: str
    service: str  # where the code is; empty for the bento's own
    models: list[BentoModelInfo] = []
    dependencies: list[BentoDependencyInfo] = []
    config: FreeForm = {}  # resources, traffic, workers and so on


class BentoRunnerInfo(YamlMapping):
    """A runner of a bento, before BentoML 1.2."""

    name: str
    runnable_type: str
    models: list[str] = []
    resource_config: FreeForm | None = None  # like `cpu` and `nvidia.com/gpu`

    @model_validator(mode="before")
    @classmethod
    def _from_runner_type(cls, value: object) -> object:
        # The name of the field before 1.0.0rc1.
        fields = as_mapping(value)
        if fields is None or "runner_type" not in fields:
            return value
        return {**fields, "runnable_type": fields["runner_type"]}


class BentoEnvInfo(YamlMapping):
    """An environment variable of a bento; its value is empty where the deployment sets it."""

    name: str
    value: Text = ""
    stage: Literal["all", "build", "runtime"] = "all"


class ImageInfo(YamlMapping):
    """The container image of a bento, from BentoML 1.4 on (`spec: 2`)."""

    base_image: str = ""
    python_version: str = ""
    commands: list[str] = []  # run before the requirements are installed
    python_requirements: str = ""  # the contents of a requirements file
    post_commands: list[str] = []  # run after the requirements are installed
    build_include: list[str] = []  # files that the commands need


class BentoInfo(ItemInfo):
    """The contents of `bento.yaml`, both `spec: 1` and `spec: 2`."""

    service: str  # where the code is, like `service:Front`
    bentoml_version: str = BENTOML_VERSION
    models: list[BentoModelInfo] = []  # those of the bento as a whole; `all_models` has those of the services too
    entry_service: str = ""
    services: list[BentoServiceInfo] = []
    envs: list[BentoEnvInfo] = []
    api_schema: FreeForm = Field(default={}, alias="schema")
    args: FreeForm = {}
    spec: int = 1
    runners: list[BentoRunnerInfo] = []  # `spec: 1`
    image: ImageInfo = ImageInfo()  # `spec: 2`

    @property
    def all_models(self) -> list[BentoModelInfo]:
        """The models of the bento and of its services, each tag once, in BentoML's order."""
        # As in BentoML, the first occurrence of a tag gives the position and the last one the fields.
        models = [*self.models, *(model for service in self.services for model in service.models)]
        return list({model.tag: model for model in models}.values())


class ModelContext(YamlMapping):
    """The software that saved a model."""

    framework_name: str
    framework_versions: dict[str, str]
    bentoml_version: str = BENTOML_VERSION
    python_version: str = ".".join(map(str, sys.version_info[:3]))  # as BentoML does where the file has none

    @model_validator(mode="before")
    @classmethod
    def _without_pip_dependencies(cls, value: object) -> object:
        # Before 1.0.0rc1, this field stood in the place of `framework_versions`.
        fields = as_mapping(value)
        if fields is None or "pip_dependencies" not in fields:
            return value
        return {**fields, "framework_versions": {}}


class ModelInfo(ItemInfo):
    """The contents of `model.yaml`."""

    module: str  # the module that loads the model, like `bentoml.sklearn`; empty for plain files
    options: FreeForm = {}  # of the module
    metadata: FreeForm = {}
    context: ModelContext
    signatures: FreeForm = {}
    api_version: str  # of the module


InfoT = TypeVar("InfoT", bound=ItemInfo)


def read_info(info_type: type[InfoT], path: Path) -> InfoT:
    """Read and validate a `bento.yaml` or a `model.yaml`. Blocks."""
    directory = _identity(path.parent)  # before the read, to notice a directory that is replaced meanwhile
    with as_store_error(f"read {path}"):
        try:
            content, modified = _read_yaml(path)
        except FileNotFoundError as error:
            current = _identity(path.parent)
            if current is None:
                raise NotFoundError(f"cannot read {path.parent}: there is no such directory") from error
            if current == directory:
                raise StoreError(f"cannot read {path.parent}: the directory has no {path.name}") from error
            return read_info(info_type, path)  # another process has just replaced the directory
    try:
        return info_type.model_validate({**content, "creation_time": content.get("creation_time") or modified})
    except ValidationError as error:
        raise StoreError(f"cannot read {path}: {_explain(error)}") from error
    except (RecursionError, OverflowError) as error:  # an alias that contains itself; a time before the year 1
        raise StoreError(f"cannot read {path}: {error}") from error


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _read_yaml(path: Path) -> tuple[dict[str, object], datetime]:
    """Parse a file into a mapping; return the modification time as well."""
    with open_regular(path) as file:
        text = file.read(MAX_YAML_SIZE + 1)  # bounded by the read itself, since the file may grow
        if len(text) > MAX_YAML_SIZE:
            raise StoreError(f"cannot read {path}: the file is larger than {MAX_YAML_SIZE} bytes")
        modified = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, timezone.utc)
    try:
        content: object = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-45
        line: object = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" in line {line + 1}" if isinstance(line, int) else ""
        raise StoreError(f"cannot read {path}: the file is not valid YAML{where}") from error
    fields = as_mapping(content)
    if fields is None:
        raise StoreError(f"cannot read {path}: the file is not a YAML mapping")
    return fields, modified


def _explain(error: ValidationError) -> str:
    first = first_error(error)
    rest = f" (and {first.others} more)" if first.others else ""
    if first.type == "missing":
        return f"the field `{first.field}` is missing{rest}"
    return f"the field `{first.field}`: {first.message}{rest}"
