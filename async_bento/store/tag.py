"""Tags: `name:version`, by BentoML's rules (`bentoml/_internal/tag.py`)."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Protocol

from async_bento.errors import InvalidTagError

logger = logging.getLogger(__name__)

MAX_LENGTH = 63
"""Of a name and of a version, in characters: Kubernetes takes no more for a label."""

LATEST = "latest"
"""The version that stands for the newest one; no item has it."""

_PART = re.compile(r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?")


class TagLike(Protocol):
    """Anything with a name and a version, like BentoML's own `Tag`."""

    @property
    def name(self) -> str:
        """The name, by itself."""
        ...

    @property
    def version(self) -> str | None:
        """The version, or None."""
        ...


@total_ordering
@dataclass(frozen=True, init=False, order=False)
class Tag:
    """The name of a bento or a model, and maybe its version.

    Upper case is lowered, and a warning logged. Tags sort by name, then by version; the one without a version first.

    Args:
        name: The name.
        version: The version, or None for all of them or for the newest, as the call has it.

    Raises:
        InvalidTagError: A part is longer than 63 characters, or is not `[a-z0-9]([-._a-z0-9]*[a-z0-9])?`.
    """

    name: str
    version: str | None = None

    def __init__(self, name: str, version: str | None = None) -> None:
        object.__setattr__(self, "name", _checked("name", name))
        object.__setattr__(self, "version", None if version is None else _checked("version", version))

    @classmethod
    def parse(cls, tag: TagLike | str) -> Tag:
        """Read a tag.

        Args:
            tag: `name` or `name:version`, or anything with `.name` and `.version`, like a tag of BentoML's.

        Returns:
            The tag.

        Raises:
            InvalidTagError: It breaks the rules for tags, or is no tag at all.
        """
        if isinstance(tag, Tag):
            return tag
        if isinstance(tag, str):
            name, colon, version = tag.partition(":")
            if colon and not version:
                raise InvalidTagError(f"{tag!r} ends in a colon; did you mean `{name}:latest`?")
            return cls(name, version if colon else None)
        try:
            return cls(tag.name, tag.version)
        except AttributeError as error:
            raise InvalidTagError(f"a {type(tag).__name__} is no tag: pass `name` or `name:version`") from error

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}:{self.version}"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Tag):
            return NotImplemented
        # "" is no version, so None sorts first without being mistaken for one.
        return (self.name, self.version or "") < (other.name, other.version or "")


def _checked(which: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidTagError(f"the {which} of a tag must be text, not {value!r}")
    lowered = value.lower()
    if len(lowered) > MAX_LENGTH:
        raise InvalidTagError(f"{value!r} is no {which} for a tag: it has {len(lowered)} characters, over {MAX_LENGTH}")
    if not _PART.fullmatch(lowered):
        raise InvalidTagError(
            f"{value!r} is no {which} for a tag: it must be letters, digits, '-', '_' and '.', "
            "and begin and end with a letter or a digit"
        )
    if lowered != value:
        logger.warning("converting %r to lower case: %r", value, lowered)
    return lowered
