"""Tags: `name:version`, by BentoML's rules (`bentoml/_internal/tag.py`)."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Protocol, TypeAlias, runtime_checkable

from async_bento.errors import InvalidTagError

logger = logging.getLogger(__package__)

MAX_LENGTH = 63
"""Characters of a name and of a version. Kubernetes takes no more for a label."""

LATEST = "latest"
"""The version that stands for the newest one; no item has it."""

PART = re.compile(r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?")
"""A name or a version, of any length."""


class TagLike(Protocol):
    """Any object with a name and a version, like BentoML's own `Tag`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str | None: ...


@runtime_checkable
class TaggedItem(Protocol):
    """Any object with a tag: a bento, a model, a record, the result of a push, BentoML's own `BentoModel`."""

    @property
    def tag(self) -> TagLike: ...


AnyTag: TypeAlias = str | TagLike | TaggedItem


@total_ordering
@dataclass(frozen=True)
class Tag:
    """The name of a bento or a model, and optionally a version.

    Tags follow BentoML's rules (`bentoml/_internal/tag.py` of 1.4.39): upper case becomes lower case, and a warning is
    logged. Tags sort by name, then by version; the tag without a version comes first.

    Example:
        ```python
        tag = Tag.parse("iris:v1")
        assert tag == Tag("iris", "v1")
        assert str(tag) == "iris:v1"
        ```

    Args:
        name: The name.
        version: The version. What None means depends on the call: all versions, or the newest.

    Raises:
        InvalidTagError: A part has more than 63 characters, or is not `[a-z0-9]([-._a-z0-9]*[a-z0-9])?`.
    """

    name: str
    version: str | None = None

    def __init__(self, name: str, version: str | None = None) -> None:
        object.__setattr__(self, "name", _validate("name", name))
        object.__setattr__(self, "version", None if version is None else _validate("version", version))

    @classmethod
    def parse(cls, tag: AnyTag) -> Tag:
        """Parse a tag.

        Args:
            tag: `name`, `name:version`, an object with `name` and `version`, like BentoML's own `Tag`, or an object
                with a `tag`, like a record or a bento.

        Returns:
            The tag.

        Raises:
            InvalidTagError: The value breaks the rules for tags, or is not a tag.
        """
        if isinstance(tag, Tag):
            return tag
        if isinstance(tag, str):
            name, colon, version = tag.partition(":")
            if colon and not version:
                raise InvalidTagError(f"invalid tag {tag!r}: it ends in a colon. Did you mean `{name}:{LATEST}`?")
            return cls(name, version if colon else None)
        if isinstance(tag, TaggedItem):  # the `name` of a record is its version
            return cls.parse(tag.tag)
        try:
            return cls(tag.name, tag.version)
        except AttributeError as error:
            raise InvalidTagError(
                f"invalid tag of type {type(tag).__name__}: it has no `name` or no `version`. Pass `name:version`."
            ) from error

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}:{self.version}"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Tag):
            return NotImplemented
        # "" is not a valid version, so None sorts first and cannot be confused with one.
        return (self.name, self.version or "") < (other.name, other.version or "")


def is_path(text: str) -> bool:
    """Whether a text is a path, and not a tag or a pattern of tags: it has a slash, or on Windows a backslash."""
    return "/" in text or os.sep in text or text in {".", ".."}


def refuse_pattern(tag: object, verb: str, tags: str) -> None:
    """Raise InvalidTagError for a pattern of tags; `tags` is the Python call that lists all of them."""
    if isinstance(tag, str) and not {"*", "?", "["}.isdisjoint(tag) and not is_path(tag):
        raise InvalidTagError(
            f"cannot {verb} {tag!r}: only the command expands patterns. "
            f"In Python, select from the tags of `{tags}` and {verb} each."
        )


def _validate(part: str, value: object) -> str:
    """Return a name or a version in lower case, or raise InvalidTagError."""
    if not isinstance(value, str):
        raise InvalidTagError(f"invalid {part} {value!r} in a tag: it is not text")
    lowered = value.lower()
    if len(lowered) > MAX_LENGTH:
        raise InvalidTagError(
            f"invalid {part} {value!r} in a tag: it has {len(lowered)} characters. The limit is {MAX_LENGTH}."
        )
    if not PART.fullmatch(lowered):
        raise InvalidTagError(
            f"invalid {part} {value!r} in a tag: it may contain only letters, digits, '-', '_' and '.', "
            "and must begin and end with a letter or a digit"
        )
    if lowered != value:
        logger.warning("converted %r to lower case: %r", value, lowered)
    return lowered
