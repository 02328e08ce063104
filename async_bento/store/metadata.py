"""What `bento.yaml` and `model.yaml` say, in the forms of every BentoML so far.

Copied from what BentoML 1.4.39 reads (`bentoml/_internal/bento/bento.py`, `bento/build_config.py`, `models/model.py`).
Fields that neither a registry nor this library asks for are ignored, and so are fields of the future.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from async_bento._core.validation import RequestTime, first_error
from async_bento.config import BENTOML_VERSION, MiB
from async_bento.errors import NotFoundError, StoreError
from async_bento.store.fields import FreeForm, Labels, Name, TagField, Text, Version, fields_of
from async_bento.store.tag import Tag

if TYPE_CHECKING:
    from pathlib import Path

# libyaml, where PyYAML was built with it, reads the same YAML about eight times faster.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_YAML = 16 * MiB
"""The largest file that is read, which takes a hundred times its size in memory. BentoML writes some kilobytes."""


class Yaml(BaseModel):
    """A mapping in `bento.yaml` or `model.yaml`. A field without a value counts as left out."""

    # Inputs may be secrets, as in `envs`, so no error quotes them.
    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        fields = fields_of(value)
        return value if fields is None else {key: field for key, field in fields.items() if field is not None}


class ItemInfo(Yaml):
    """What both files say.

    Attributes:
        name: The first half of the tag.
        version: The second half.
        labels: What the user sorts by; numbers and the like have become text.
        creation_time: When it was built, in UTC; where the file does not say, when that was written.
    """

    name: Name
    version: Version
    labels: Labels = {}
    creation_time: RequestTime

    @property
    def tag(self) -> Tag:
        """Its tag."""
        return Tag(self.name, self.version)


class BentoModelInfo(Yaml):
    """A model that a bento, or one of its services, needs.

    Attributes:
        tag: Which model.
        module: The framework that loads it, or None.
        creation_time: When it was built, in UTC.
        alias: The name the bento's code has for it, or None.
        registry: Where its bytes live: `bentoml` or `huggingface`.
        metadata: For one on Hugging Face: model_id, revision, endpoint, include and exclude. Else None.
    """

    tag: TagField
    module: str | None = None
    creation_time: RequestTime = Field(default_factory=lambda: datetime.now(timezone.utc))
    alias: str | None = None
    registry: str = "bentoml"
    metadata: FreeForm | None = None

    @property
    def is_huggingface(self) -> bool:
        """Whether its bytes live on the Hugging Face Hub, so that there are none to push."""
        return self.registry == "huggingface"

    @model_validator(mode="before")
    @classmethod
    def _from_tag(cls, value: object) -> object:
        # Before 1.0.0a7 a bento named its models by their tags alone. BentoML has them as old as can be.
        if not isinstance(value, str):
            return value
        return {"tag": value, "module": "unknown", "creation_time": datetime.min.replace(tzinfo=timezone.utc)}


class BentoDependencyInfo(Yaml):
    """Another service that a service calls.

    Attributes:
        service: Its name, where it is in the same bento.
        deployment: The name of a deployment elsewhere.
        cluster: That deployment's cluster.
        url: Its URL, where it is no deployment.
    """

    service: str | None = None
    deployment: str | None = None
    cluster: str | None = None
    url: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"service": value} if isinstance(value, str) else value


class BentoServiceInfo(Yaml):
    """A service of a bento, from BentoML 1.2 on.

    Attributes:
        name: Its name.
        service: Where its code is; empty for the bento's own.
        models: What it needs to be loaded.
        dependencies: What it calls.
        config: Its resources, traffic, workers and the like.
    """

    name: str
    service: str
    models: list[BentoModelInfo] = []
    dependencies: list[BentoDependencyInfo] = []
    config: FreeForm = {}


class BentoRunnerInfo(Yaml):
    """A runner of a bento, before BentoML 1.2.

    Attributes:
        name: Its name.
        runnable_type: Its class.
        models: The tags of its models.
        resource_config: What it asks for, like `cpu` and `nvidia.com/gpu`.
    """

    name: str
    runnable_type: str
    models: list[str] = []
    resource_config: FreeForm | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_runner_type(cls, value: object) -> object:
        # Its name before 1.0.0rc1.
        fields = fields_of(value)
        if fields is None or "runner_type" not in fields:
            return value
        return {**fields, "runnable_type": fields["runner_type"]}


class BentoEnvInfo(Yaml):
    """An environment variable of a bento.

    Attributes:
        name: Its name.
        value: Its value; empty for one that is to be set where the bento runs.
        stage: When it is set.
    """

    name: str
    value: Text = ""
    stage: Literal["all", "build", "runtime"] = "all"


class ImageInfo(Yaml):
    """The container image of a bento, from BentoML 1.4 on (`spec: 2`).

    Attributes:
        base_image: What it starts from.
        python_version: Its Python.
        commands: Run before the requirements are installed.
        python_requirements: A requirements file.
        post_commands: Run after they are installed.
        build_include: Files the commands need.
    """

    base_image: str = ""
    python_version: str = ""
    commands: list[str] = []
    python_requirements: str = ""
    post_commands: list[str] = []
    build_include: list[str] = []


class BentoInfo(ItemInfo):
    """`bento.yaml`, both `spec: 1` and `spec: 2`.

    Attributes:
        service: Where its code is, like `service:Front`.
        bentoml_version: Who built it.
        models: What it needs, as far as it was listed for the bento as a whole.
        entry_service: The service that is called from outside.
        services: Its services.
        envs: Its environment variables.
        api_schema: The schema of its API (`schema` in the file).
        args: What it was built with.
        spec: The form of the file.
        runners: Its runners, in `spec: 1`.
        image: Its image, in `spec: 2`.
    """

    service: str
    bentoml_version: str = BENTOML_VERSION
    models: list[BentoModelInfo] = []
    entry_service: str = ""
    services: list[BentoServiceInfo] = []
    envs: list[BentoEnvInfo] = []
    api_schema: FreeForm = Field(default={}, alias="schema")
    args: FreeForm = {}
    spec: int = 1
    runners: list[BentoRunnerInfo] = []
    image: ImageInfo = ImageInfo()

    @property
    def all_models(self) -> list[BentoModelInfo]:
        """The models of the bento and of its services, each tag once, in BentoML's order.

        A tag has the place where it first occurs, and what is said of it where it last does.
        """
        every = [*self.models, *(model for service in self.services for model in service.models)]
        return list({model.tag: model for model in every}.values())


class ModelContext(Yaml):
    """What a model was saved with.

    Attributes:
        framework_name: The framework.
        framework_versions: The packages it needs, with their versions.
        bentoml_version: Who saved it.
        python_version: The Python it was saved with; where the file does not say, as BentoML does, the one that runs.
    """

    framework_name: str
    framework_versions: dict[str, str]
    bentoml_version: str = BENTOML_VERSION
    python_version: str = ".".join(map(str, sys.version_info[:3]))

    @model_validator(mode="before")
    @classmethod
    def _without_pip_dependencies(cls, value: object) -> object:
        # Before 1.0.0rc1 they stood where the versions stand now.
        fields = fields_of(value)
        if fields is None or "pip_dependencies" not in fields:
            return value
        return {**fields, "framework_versions": {}}


class ModelInfo(ItemInfo):
    """`model.yaml`.

    Attributes:
        module: What loads it, like `bentoml.sklearn`; empty for files as they are.
        options: How that loads it.
        metadata: The user's notes.
        context: What it was saved with.
        signatures: Its methods.
        api_version: The form of what the module wrote.
    """

    module: str
    options: FreeForm = {}
    metadata: FreeForm = {}
    context: ModelContext
    signatures: FreeForm = {}
    api_version: str


InfoT = TypeVar("InfoT", bound=ItemInfo)


def read_info(info_type: type[InfoT], path: Path) -> InfoT:
    """Read a `bento.yaml` or a `model.yaml`.

    Args:
        info_type: `BentoInfo` or `ModelInfo`.
        path: The file.

    Returns:
        What it says.

    Raises:
        NotFoundError: There is no such directory.
        StoreError: There is no such file in it, it cannot be read, or is no YAML; or a field is missing or wrong.
            The message says which.
    """
    directory = _identity(path.parent)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_YAML + 1)
            if len(text) > MAX_YAML:
                raise StoreError(f"{path} is larger than {MAX_YAML} bytes")
            content = _parse(text, path)
            written = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, timezone.utc)
    except FileNotFoundError as error:
        if directory != (now := _identity(path.parent)) and now is not None:
            return read_info(info_type, path)  # one directory went and another came while this one looked
        if now is None:
            raise NotFoundError(f"there is no directory {path.parent}") from error
        raise StoreError(f"{path.parent} has no {path.name}") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    try:
        return info_type.model_validate({**content, "creation_time": content.get("creation_time") or written})
    except ValidationError as error:
        raise StoreError(f"{path}: {_explain(error)}") from error
    except (RecursionError, OverflowError) as error:  # an alias within what it stands for; a time before the year 1
        raise StoreError(f"{path} cannot be used: {error}") from error


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _parse(text: bytes, path: Path) -> dict[str, object]:
    try:
        content: object = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that no calendar has
        line: object = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" in line {line + 1}" if isinstance(line, int) else ""
        raise StoreError(f"{path} is not valid YAML{where}") from error
    fields = fields_of(content)
    if fields is None:
        raise StoreError(f"{path} is not a YAML mapping")
    return fields


def _explain(error: ValidationError) -> str:
    first = first_error(error)
    rest = f" (and {first.others} more)" if first.others else ""
    if first.type == "missing":
        return f"the field `{first.field}` is missing{rest}"
    return f"the field `{first.field}`: {first.message}{rest}"
