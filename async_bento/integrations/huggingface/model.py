"""A model on the Hub: its location as a bento names it, and its record for a registry."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from async_bento._core.tag import Tag
from async_bento._core.validation import first_error
from async_bento.config import BENTOML_VERSION
from async_bento.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self

    from async_bento._core.validation import JsonObject
    from async_bento.store.metadata import BentoModelInfo

DEFAULT_ENDPOINT = "https://huggingface.co"
"""The default of BentoML 1.4.39 if neither the model nor `$HF_ENDPOINT` sets an endpoint."""


class _Metadata(BaseModel):
    """The metadata of such a model in `bento.yaml` and in its record."""

    model_config = ConfigDict(protected_namespaces=())  # pydantic before 2.10 reserves the prefix model_

    model_id: str
    revision: str = "main"
    endpoint: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model whose files a pull has downloaded from the Hugging Face Hub.

    Attributes:
        tag: The tag in the registry, with a version.
        path: The directory of the files, in `$BENTOML_HF_CACHE_DIR` or the cache of Hugging Face; it has no
            `model.yaml`, and may have files of the model that the bento does not need.
        model_id: The name on the Hub, like `org/bert`.
        revision: The commit on the Hub.
    """

    tag: Tag
    path: Path
    model_id: str
    revision: str


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub; `named` is its tag in the bento, `include` and `exclude` are patterns of file names.

    `is_frozen` means that the bento pins the revision, so the commit need not be requested from the Hub.
    """

    named: Tag
    model_id: str
    revision: str = "main"
    endpoint: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    is_frozen: bool = False

    @classmethod
    def of(cls, wanted: BentoModelInfo) -> Self:
        """Read a model from a bento (BentoML's `HuggingFaceModel.from_info`); without metadata, use `main`."""
        if not wanted.metadata:
            return cls(wanted.tag, wanted.tag.name.replace("--", "/"), endpoint=os.getenv("HF_ENDPOINT") or None)
        return cls._from_metadata(wanted.tag, wanted.metadata, "bento.yaml")

    @classmethod
    def of_record(cls, tag: Tag, metadata: Mapping[str, object]) -> Self:
        """Read a model from the metadata of its record in a registry."""
        return cls._from_metadata(tag, metadata, "its record in the registry")

    @classmethod
    def _from_metadata(cls, tag: Tag, metadata: Mapping[str, object], source: str) -> Self:
        try:
            valid = _Metadata.model_validate(metadata)
        except ValidationError as error:
            first = first_error(error)
            raise StoreError(
                f"cannot locate the model {tag}: invalid metadata.{first.field} in {source}: {first.message}"
            ) from error
        return cls(tag, **valid.model_dump(), is_frozen=True)

    @property
    def hub(self) -> str:
        """The Hub's URL in the record, which is part of the version."""
        return self.endpoint or DEFAULT_ENDPOINT

    @property
    def source(self) -> str:
        """The Hub that receives the requests, without a trailing slash: `$HF_ENDPOINT` in place of huggingface.co."""
        # BentoML writes the default endpoint into a bento's record whether or not its builder chose it.
        hub = self.hub.rstrip("/")
        return (os.getenv("HF_ENDPOINT") or hub).rstrip("/") if hub == DEFAULT_ENDPOINT else hub

    @property
    def url(self) -> str:
        """The URL of its web page."""
        return f"{self.hub}/{self.model_id}/tree/{self.revision}"

    @property
    def tag(self) -> Tag:
        """Its tag in a registry; the version is the MD5 of its content (BentoML's `HuggingFaceModel.to_info`)."""
        content = self._content(self.model_id.lower())
        # The same bytes as BentoML hashes: one model must have one version.
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        version = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        return Tag(self.model_id.lower().replace("/", "--"), version)

    @property
    def is_trusted(self) -> bool:
        """Whether the HF token may be sent to its Hub; a bento may name any endpoint."""
        return self.source in {DEFAULT_ENDPOINT, (os.getenv("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")}

    def manifest(self, size_bytes: int) -> JsonObject:
        """Make the manifest for a create request (BentoML's `HuggingFaceModel.to_create_schema`)."""
        return {
            "module": "",
            "api_version": "v1",
            "bentoml_version": BENTOML_VERSION,
            "size_bytes": size_bytes,
            "metadata": {"registry": "huggingface", **self._content(self.model_id), "url": self.url},
            "context": {
                "framework_name": "huggingface",
                "framework_versions": {},
                "bentoml_version": BENTOML_VERSION,
                "python_version": platform.python_version(),
            },
            "options": {},
        }

    def _content(self, model_id: str) -> JsonObject:
        return {
            "model_id": model_id,
            "revision": self.revision,
            "endpoint": self.hub,
            "include": None if self.include is None else [*self.include],
            "exclude": None if self.exclude is None else [*self.exclude],
        }
