"""Tags and patterns of tags on the command line."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_pattern(argument: str) -> bool:
    """Whether an argument is a pattern of tags, and not a tag or a path."""
    return any(character in argument for character in "*?[") and "/" not in argument


def matching_tags(tags: Iterable[str], pattern: str) -> list[str]:
    """The tags that match a pattern."""
    return [tag for tag in tags if fnmatch.fnmatchcase(tag, pattern)]
