"""Bentos and models on disk, and the manifest that each sends to a registry.

The manifests are, field for field, those of BentoML 1.4.39 (`Bento.get_manifest` in `bentoml/_internal/bento/bento.py`,
`BentoModel.to_create_schema` in `_bentoml_sdk/models/base.py`), with three differences:

- Times are in UTC. BentoML drops the time zone, without a conversion.
- Values that JSON cannot hold are converted (see `FreeForm`). BentoML fails on them.
- A model's `options` are those of `model.yaml`. BentoML adds the defaults of the framework's module, which differ only
  for a model that an older release saved, since BentoML writes all options when it saves a model.
"""

from __future__ import annotations

import logging
import os
import shlex
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from async_bento._core.files import open_regular
from async_bento._core.text import facts
from async_bento.config import MiB
from async_bento.errors import StoreError
from async_bento.store.errors import as_store_error
from async_bento.store.metadata import BentoInfo, BentoModelInfo, BentoRunnerInfo, ItemInfo, ModelInfo, read_info

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import JsonValue
    from typing_extensions import Self

    from async_bento._core.tag import Tag
    from async_bento._core.validation import JsonObject

logger = logging.getLogger(__package__)

MAX_README_SIZE = 3 * MiB
"""In bytes. BentoCloud accepts requests of up to 4 MiB, of which the manifest needs its share (BentoML's own limit)."""


@dataclass(frozen=True)
class Item(ABC):
    """A directory with a YAML file that describes it: what bentos and models have in common."""

    TYPE_NAME: ClassVar[str]
    METADATA_FILE: ClassVar[str]
    PULL_COMMAND: ClassVar[str]
    _IMPORT_COMMAND: ClassVar[str]
    _INFO_TYPE: ClassVar[type[ItemInfo]]

    tag: Tag
    path: Path
    info: ItemInfo = field(compare=False, repr=False)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Self:
        """Read a bento or a model from its directory. Blocks.

        Args:
            path: The directory that holds `bento.yaml` or `model.yaml`.

        Returns:
            The item.

        Raises:
            NotFoundError: There is no such directory.
            StoreError: The YAML file is missing or broken, or lacks a field; the message names the file and the field.
        """
        root = Path(path).absolute()
        if root.is_file():
            raise StoreError(
                f"cannot read the {cls.TYPE_NAME} {root}: it is a file, not a directory. "
                f"If it is an exported archive, run `{cls._IMPORT_COMMAND} {shlex.quote(str(root))}` first."
            )
        info = read_info(cls._INFO_TYPE, root / cls.METADATA_FILE)
        return cls(info.tag, root, info)

    @property
    def creation_time(self) -> datetime:
        """The time at which the item was built, in UTC."""
        return self.info.creation_time

    @property
    def labels(self) -> dict[str, str]:
        """The labels that the user gave the item."""
        return self.info.labels

    def size(self) -> int:
        """Count the item's bytes on disk, as BentoML does. Blocks.

        Returns:
            The size of all files, in bytes.
        """
        return directory_size(self.path)

    def _repr_html_(self) -> str:
        return facts(
            [
                ("Tag", str(self.tag)),
                ("Directory", str(self.path)),
                ("Built (UTC)", f"{self.creation_time:%Y-%m-%d %H:%M:%S}"),
                *self._html_rows(),
                ("Labels", ", ".join(f"{key}={value}" for key, value in self.labels.items())),
            ]
        )

    @abstractmethod
    def _html_rows(self) -> list[tuple[str, str]]:
        """Return the rows that only bentos, or only models, have in a notebook."""


@dataclass(frozen=True)
class Bento(Item):
    """A bento on disk. Get one from a `BentoStore`, or by `Bento.from_path`.

    Attributes:
        tag: The tag, with a version.
        path: The directory, absolute.
        info: The contents of `bento.yaml`.
    """

    TYPE_NAME = "bento"
    METADATA_FILE = "bento.yaml"
    PULL_COMMAND = "async-bento pull"
    _IMPORT_COMMAND = "bentoml import"
    _INFO_TYPE = BentoInfo

    info: BentoInfo = field(compare=False, repr=False)

    @property
    def models(self) -> list[BentoModelInfo]:
        """The models that the bento needs, each tag once: those of the bento, then those of its services."""
        return self.info.all_models

    @property
    def doc(self) -> str:
        """The README.md, which the registry gets as the description. Blocks.

        Empty where there is no README.md, or one of more than 3 MiB, for which a warning is logged.

        Raises:
            StoreError: The file cannot be read.
        """
        readme = self.path / "README.md"
        with as_store_error(f"read {readme}"), suppress(FileNotFoundError):
            size = readme.stat().st_size
            if size <= MAX_README_SIZE:  # a regular file only: a FIFO has size 0, and reading it never ends
                with open_regular(readme) as file:
                    return file.read().decode(errors="replace")
            logger.warning(
                "%s is not sent as the description: the file has %d bytes, and the limit is %d",
                readme,
                size,
                MAX_README_SIZE,
            )
        return ""

    def manifest(self, *, size_bytes: int, dev: bool = False) -> JsonObject:
        """Describe the bento to a registry, as `Bento.get_manifest` of BentoML 1.4.39 does.

        Args:
            size_bytes: The size of the bento and its models, in bytes; `ModelStore.total_size` counts it.
            dev: Whether only the record is pushed and no bytes (`push(bare=True)`).

        Returns:
            The `manifest` of a create or update request, ready for JSON.
        """
        info = self.info
        has_image = info.spec > 1
        return {
            "service": info.service,
            "bentoml_version": info.bentoml_version,
            "size_bytes": size_bytes,
            "entry_service": info.entry_service,
            "name": info.name,
            "apis": {},
            "models": [str(model.tag) for model in self.models],
            "runners": [] if has_image else [_runner(runner) for runner in info.runners],
            "services": [service.model_dump(mode="json") for service in info.services],
            "envs": [env.model_dump(mode="json") for env in info.envs],
            "schema": info.api_schema,
            "version": info.version,
            "dev": dev,
            "image": info.image.model_dump(mode="json") if has_image else None,
            "spec": info.spec,
        }

    def _html_rows(self) -> list[tuple[str, str]]:
        return [
            ("BentoML", self.info.bentoml_version),
            ("Models", ", ".join(str(model.tag) for model in self.models)),
        ]


def _runner(runner: BentoRunnerInfo) -> JsonValue:
    resources = runner.resource_config
    return {
        "name": runner.name,
        "runnable_type": runner.runnable_type,
        "models": [*runner.models],
        "resource_config": {
            "cpu": resources.get("cpu"),
            "nvidia_gpu": resources.get("nvidia.com/gpu"),
            "custom_resources": resources.get("custom_resources"),
        }
        if resources
        else None,
    }


@dataclass(frozen=True)
class Model(Item):
    """A model on disk. Get one from a `ModelStore`, or by `Model.from_path`.

    Attributes:
        tag: The tag, with a version.
        path: The directory, absolute.
        info: The contents of `model.yaml`.
    """

    TYPE_NAME = "model"
    METADATA_FILE = "model.yaml"
    PULL_COMMAND = "async-bento models pull"
    _IMPORT_COMMAND = "bentoml models import"
    _INFO_TYPE = ModelInfo

    info: ModelInfo = field(compare=False, repr=False)

    def manifest(self, *, size_bytes: int | None = None) -> JsonObject:
        """Describe the model to a registry, as `BentoModel.to_create_schema` of BentoML 1.4.39 does.

        Args:
            size_bytes: The size of the model, in bytes; None to count it here, which blocks.

        Returns:
            The `manifest` of a create or update request, ready for JSON.
        """
        info = self.info
        return {
            "module": info.module,
            "api_version": info.api_version,
            "bentoml_version": info.context.bentoml_version,
            "size_bytes": self.size() if size_bytes is None else size_bytes,
            "metadata": info.metadata,
            "context": info.context.model_dump(mode="json"),
            # BentoML lets the module read the options, and sends none where there is no module.
            "options": info.options if info.module else {},
        }

    def _html_rows(self) -> list[tuple[str, str]]:
        return [("BentoML", self.info.context.bentoml_version), ("Module", self.info.module)]


def directory_size(path: Path) -> int:
    """Count the bytes below a directory, as `calc_dir_size` of `bentoml/_internal/utils/filesystem.py` does.

    Links to files count with their targets; links to directories are not followed; unreadable entries count nothing.
    """
    size = 0
    pending: list[str | Path] = [path]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file():
                        size += entry.stat().st_size
    return size
