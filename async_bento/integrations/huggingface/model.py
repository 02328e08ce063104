"""What a model on the Hub is: where a bento says it is, and what a registry is told of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from async_bento._core.validation import first_error
from async_bento.config import BENTOML_VERSION
from async_bento.errors import StoreError
from async_bento.store.tag import Tag

if TYPE_CHECKING:
    from typing_extensions import Self

    from async_bento._core.validation import JsonObject
    from async_bento.store.metadata import BentoModelInfo

DEFAULT_ENDPOINT = "https://huggingface.co"
"""Where BentoML 1.4.39 goes when neither the model nor `$HF_ENDPOINT` says so."""


class _Metadata(BaseModel):
    """What `bento.yaml` says of such a model."""

    model_config = ConfigDict(protected_namespaces=())  # pydantic before 2.10 reserves the prefix model_

    model_id: str
    revision: str = "main"
    endpoint: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub.

    Attributes:
        named: The tag its bento has for it.
        model_id: Its name there, like `google-bert/bert-base-uncased`.
        revision: A commit, a branch or a tag.
        endpoint: The Hub's URL; None for the default.
        include: Patterns of the files it is made of; None for all.
        exclude: Patterns of the files that are left out.
        is_frozen: Whether the revision is the one to register, so that the Hub need not be asked for its commit.
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
        """Read what a bento says of it (BentoML's `HuggingFaceModel.from_info`).

        Args:
            wanted: The model, as `bento.yaml` has it.

        Returns:
            The model; where the bento says nothing of it, the head of `main` of what its tag is called after.

        Raises:
            StoreError: What it says does not fit.
        """
        if not wanted.metadata:
            return cls(wanted.tag, wanted.tag.name.replace("--", "/"), endpoint=os.getenv("HF_ENDPOINT") or None)
        try:
            metadata = _Metadata.model_validate(wanted.metadata)
        except ValidationError as error:
            first = first_error(error)
            raise StoreError(
                f"the bento does not say where the model {wanted.tag} is: metadata.{first.field}: {first.message}"
            ) from error
        return cls(wanted.tag, **metadata.model_dump(), is_frozen=True)

    @property
    def hub(self) -> str:
        """The Hub's URL."""
        return self.endpoint or DEFAULT_ENDPOINT

    @property
    def url(self) -> str:
        """Where a person finds it."""
        return f"{self.hub}/{self.model_id}/tree/{self.revision}"

    @property
    def tag(self) -> Tag:
        """Its tag on a registry: the version is an MD5 of what it is (BentoML's `HuggingFaceModel.to_info`)."""
        content = self._content(self.model_id.lower())
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        version = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        return Tag(self.model_id.lower().replace("/", "--"), version)

    @property
    def is_trusted(self) -> bool:
        """Whether its Hub may have the HF token: a bento may name any."""
        own = {DEFAULT_ENDPOINT, os.getenv("HF_ENDPOINT") or DEFAULT_ENDPOINT}
        return self.hub.rstrip("/") in {endpoint.rstrip("/") for endpoint in own}

    def manifest(self, size_bytes: int) -> JsonObject:
        """Describe it to a registry (BentoML's `HuggingFaceModel.to_create_schema`).

        Args:
            size_bytes: The size of its files.

        Returns:
            The `manifest` of a create request, ready for JSON.
        """
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
