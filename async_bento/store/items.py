"""A bento and a model as they lie on disk, and the manifest each sends to a registry.

The manifests are, field for field, what BentoML 1.4.39 sends (`Bento.get_manifest` in
`bentoml/_internal/bento/bento.py`, `BentoModel.to_create_schema` in `_bentoml_sdk/models/base.py`), but for three
things. Times are in UTC, where BentoML writes the clock of whatever zone they were given in. Values JSON has no form
for do not fail (see `FreeForm`). And a model's `options` are those of `model.yaml`, where BentoML asks the framework's
module for its defaults; it writes them all when it saves a model, so the two differ only for one that an older release
saved.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from async_bento._core.text import facts
from async_bento.config import MiB
from async_bento.errors import StoreError
from async_bento.store.metadata import BentoInfo, BentoModelInfo, BentoRunnerInfo, ItemInfo, ModelInfo, read_info

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import JsonValue
    from typing_extensions import Self

    from async_bento._core.validation import JsonObject
    from async_bento.store.tag import Tag

logger = logging.getLogger(__name__)

MAX_DOC_SIZE = 3 * MiB
"""Of a README, in bytes: BentoCloud takes requests of 4 MiB, and the manifest needs its share (BentoML's own limit)."""


@dataclass(frozen=True)
class Item(ABC):
    """What bentos and models have in common: a directory with a YAML file that describes it.

    Attributes:
        tag: Its tag, with a version.
        path: Its directory, absolute.
        info: What its YAML file says.
    """

    WORD: ClassVar[str]
    YAML: ClassVar[str]
    PULL: ClassVar[str]

    tag: Tag
    path: Path
    info: ItemInfo = field(compare=False, repr=False)

    @classmethod
    @abstractmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Self:
        """Read an item from its directory.

        Args:
            path: The directory.

        Returns:
            The item.

        Raises:
            NotFoundError: There is no such directory.
            StoreError: Its YAML file is missing or broken, or lacks a field; the message says which.
        """

    @property
    def creation_time(self) -> datetime:
        """When it was built, in UTC."""
        return self.info.creation_time

    @property
    def labels(self) -> dict[str, str]:
        """What the user sorts by."""
        return self.info.labels

    def size(self) -> int:
        """Count its bytes on disk, as BentoML does. Blocks.

        Returns:
            The size of all its files, in bytes.
        """
        return directory_size(self.path)

    def _repr_html_(self) -> str:
        return facts(
            [
                ("Tag", str(self.tag)),
                ("Directory", str(self.path)),
                ("Built (UTC)", f"{self.creation_time:%Y-%m-%d %H:%M:%S}"),
                *self._more_facts(),
                ("Labels", ", ".join(f"{key}={value}" for key, value in self.labels.items())),
            ]
        )

    @abstractmethod
    def _more_facts(self) -> list[tuple[str, str]]:
        """What only one of the two kinds has."""


@dataclass(frozen=True)
class Bento(Item):
    """A bento on disk.

    Attributes:
        tag: Its tag, with a version.
        path: Its directory, absolute.
        info: What `bento.yaml` says.
    """

    WORD = "bento"
    YAML = "bento.yaml"
    PULL = "async-bento pull"

    info: BentoInfo = field(compare=False, repr=False)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Self:
        """Read a bento from its directory.

        Args:
            path: The directory that holds `bento.yaml`.

        Returns:
            The bento.

        Raises:
            NotFoundError: There is no such directory.
            StoreError: `bento.yaml` is missing or broken, or lacks a field; the message says which.
        """
        root = Path(path).absolute()
        info = read_info(BentoInfo, root / cls.YAML)
        return cls(info.tag, root, info)

    @property
    def models(self) -> list[BentoModelInfo]:
        """The models it needs, each tag once: those of the bento, then those of its services."""
        return self.info.all_models

    @property
    def doc(self) -> str:
        """Its README.md, as the registry gets it: empty where there is none, or one of over 3 MiB. Blocks.

        Raises:
            StoreError: It cannot be read.
        """
        readme = self.path / "README.md"
        try:
            size = readme.stat().st_size
            if size > MAX_DOC_SIZE:
                logger.warning("%s has %d bytes, over %d, and is not sent", readme, size, MAX_DOC_SIZE)
                return ""
            return readme.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise StoreError(f"cannot read {readme}: {error.strerror}") from error

    def manifest(self, *, size_bytes: int, dev: bool = False) -> JsonObject:
        """Describe the bento to a registry.

        Args:
            size_bytes: Its size and that of its models; `ModelStore.total_size` counts it.
            dev: Whether only its record is pushed and no bytes (`push(bare=True)`).

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

    def _more_facts(self) -> list[tuple[str, str]]:
        return [
            ("BentoML", self.info.bentoml_version),
            ("Models", ", ".join(str(model.tag) for model in self.models)),
        ]


def _runner(runner: BentoRunnerInfo) -> JsonValue:
    wanted = runner.resource_config
    return {
        "name": runner.name,
        "runnable_type": runner.runnable_type,
        "models": [*runner.models],
        "resource_config": {
            "cpu": wanted.get("cpu"),
            "nvidia_gpu": wanted.get("nvidia.com/gpu"),
            "custom_resources": wanted.get("custom_resources"),
        }
        if wanted
        else None,
    }


@dataclass(frozen=True)
class Model(Item):
    """A model on disk.

    Attributes:
        tag: Its tag, with a version.
        path: Its directory, absolute.
        info: What `model.yaml` says.
    """

    WORD = "model"
    YAML = "model.yaml"
    PULL = "async-bento models pull"

    info: ModelInfo = field(compare=False, repr=False)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model from its directory.

        Args:
            path: The directory that holds `model.yaml`.

        Returns:
            The model.

        Raises:
            NotFoundError: There is no such directory.
            StoreError: `model.yaml` is missing or broken, or lacks a field; the message says which.
        """
        root = Path(path).absolute()
        info = read_info(ModelInfo, root / cls.YAML)
        return cls(info.tag, root, info)

    def manifest(self, *, size_bytes: int | None = None) -> JsonObject:
        """Describe the model to a registry.

        Args:
            size_bytes: Its size; None to count it here, which blocks.

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
            # Without a module BentoML has nobody to ask what they mean, and sends none.
            "options": info.options if info.module else {},
        }

    def _more_facts(self) -> list[tuple[str, str]]:
        return [("BentoML", self.info.context.bentoml_version), ("Module", self.info.module)]


def directory_size(path: Path) -> int:
    """Count the bytes below a directory, as BentoML does (`calc_dir_size` in `bentoml/_internal/utils/filesystem.py`).

    A link to a file counts with what it points to; a link to a directory is not followed. What cannot be read, or
    vanishes meanwhile, counts nothing.

    Args:
        path: The directory.

    Returns:
        The size of all files, in bytes.
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
