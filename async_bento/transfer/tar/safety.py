"""Rules for the names and links of a tar, so that nothing leaves its directory; no rule reads the disk.

The plan and the extractor apply the same rules, so that every item that can be pushed can be pulled.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from async_bento.config import Limits
from async_bento.errors import UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

DEFAULT_LIMITS = Limits()
"""Limits of every push, so that a pull with default limits accepts the tar."""

MAX_COMPONENT = 255
"""Longest path component in bytes: NAME_MAX of every common filesystem."""

MAX_FOLLOWED = 40
"""Most symlinks followed to resolve one path; Linux fails with ELOOP beyond as many (path_resolution(7))."""

_NAME_OVERHEAD = 512  # most memory of a directory or symlink besides its names: dict entries, attributes, resolved path
_MAX_QUOTED = 200  # characters of a name in a message

# C0, DEL and C1: an escape sequence in a name would be executed by the terminal that shows the error.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DRIVE = re.compile(r"[A-Za-z]:(\\|/|$)")


class LimitExceededError(UnsafeArchiveError):
    """A tar beyond one of `Limits`, which the user may raise."""


def refused(member: str, reason: str) -> UnsafeArchiveError:
    """Make the error for a member that must not be extracted."""
    return UnsafeArchiveError(_refusal(member, reason), member=member)


def over_limit(member: str, reason: str, setting: str) -> LimitExceededError:
    """Make the error for a member beyond a limit; `setting` is the field of `Limits`."""
    return LimitExceededError(f"{_refusal(member, reason)} (Limits.{setting})", member=member)


def names_memory(*names: str) -> int:
    """The bytes of memory that an extractor needs for a directory or symlink of these names; see `Limits.names`."""
    return _NAME_OVERHEAD + sum(map(sys.getsizeof, names))


def quoted(name: str) -> str:
    """Quote a name for a message, cut to a readable length."""
    return repr(name) if len(name) <= _MAX_QUOTED else f"{name[:_MAX_QUOTED]!r}…"


def member_path(name: str, limits: Limits = DEFAULT_LIMITS) -> str:
    """Check a member's name and normalise it: `./src//a/` becomes `src/a`, the root becomes an empty string."""
    if not name:
        raise UnsafeArchiveError("a tar member has no name", member=name)
    return _normalised(name, name, "its name", limits)


def check_name(name: str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check the name of a member that is not empty and has no `.` or `..`."""
    _check_path(name, name, "its name", limits)


def hard_link_path(member: str, target: str, limits: Limits = DEFAULT_LIMITS) -> str:
    """Check a hard link's target, which is the name of an earlier member, and normalise it."""
    if not target:
        raise refused(member, "its hard link target is empty")
    return _normalised(member, target, f"its target {quoted(target)}", limits)


def check_target(member: str, target: str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check a symlink's target as far as possible without the other members; `check_links` does the rest."""
    if not target:
        raise refused(member, "its symlink target is empty")
    _check_path(member, target, f"its target {quoted(target)}", limits)


def _normalised(member: str, path: str, subject: str, limits: Limits) -> str:
    _check_path(member, path, subject, limits)
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise refused(member, f"{subject} contains '..'")
    return "/".join(parts)


def _check_path(member: str, path: str, subject: str, limits: Limits) -> None:
    if path.startswith("/"):
        raise refused(member, f"{subject} is absolute")
    if _CONTROL.search(path):
        raise refused(member, f"{subject} contains control characters")
    # Elsewhere a backslash and a colon are ordinary characters of a POSIX file name.
    if _DRIVE.match(path):
        raise refused(member, f"{subject} begins with a Windows drive")
    try:
        encoded = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:  # NTFS can hold such a name
        raise refused(member, f"{subject} is not Unicode") from error
    if len(encoded) > limits.path:
        raise over_limit(member, f"{subject} is longer than {limits.path} bytes", "path")
    # Counting slashes first spares the split for all but deep paths.
    if path.count("/") >= limits.depth and sum(part not in {"", "."} for part in path.split("/")) > limits.depth:
        raise over_limit(member, f"{subject} is more than {limits.depth} levels deep", "depth")
    if len(encoded) > MAX_COMPONENT and any(len(part) > MAX_COMPONENT for part in encoded.split(b"/")):
        raise refused(member, f"{subject} has a component longer than {MAX_COMPONENT} bytes")


def check_links(links: Mapping[str, str], directories: Container[str], limits: Limits = DEFAULT_LIMITS) -> None:
    """Check that no symlink leads outside, each target resolved component by component as a kernel would.

    `links` maps names to targets; `directories` holds all parents of links and the root (an empty string). A path in
    neither counts as a file or as missing: a target may dangle, but `..` must not follow such a path.
    """
    resolver = _Resolver(links, directories, limits)
    for name in links:
        resolver.resolve(name, depth=1)


class _Resolved(NamedTuple):
    """Where a symlink leads; `path` is empty unless it is a directory, since nothing leads on from other paths."""

    path: str
    is_directory: bool
    followed: int


class _Resolver:
    """Resolves each symlink once, however many symlinks lead through it."""

    # Normalising the text of a target is not enough: `up/..` is not the parent of `up` when `up` is a symlink. Checks
    # of the text or by os.path.realpath are CVE-2025-4138, CVE-2025-4330 and CVE-2025-4517 of tarfile.

    def __init__(self, links: Mapping[str, str], directories: Container[str], limits: Limits) -> None:
        self._links = links
        self._directories = directories
        self._max_path = limits.path
        self._interned: dict[str, str] = {}  # one string per path, however many symlinks lead there
        self._resolved: dict[str, _Resolved] = {}

    def resolve(self, name: str, depth: int) -> _Resolved:
        """Resolve a symlink; `depth` counts the symlinks on the way to it."""
        if name in self._resolved:
            return self._resolved[name]
        if depth > MAX_FOLLOWED:
            raise self._refused(name, f"passes more than {MAX_FOLLOWED} links")
        path, is_directory, followed = name.rpartition("/")[0], True, 1
        for part in self._links[name].split("/"):
            if part in {"", "."}:
                continue
            if part == "..":
                if not is_directory:
                    # On a case-insensitive filesystem a missing component may be a symlink in another spelling.
                    raise self._refused(name, "has '..' after a component that is not a directory of the tar")
                if not path:
                    raise self._refused(name, "leads outside")
                path = path.rpartition("/")[0]
                continue
            path = f"{path}/{part}" if path else part
            if len(path) > self._max_path:  # every symlink on the way may lengthen it
                raise self._refused(name, f"leads to a path longer than {self._max_path} bytes")
            if is_directory and path in self._links:
                path, is_directory, more = self.resolve(path, depth + 1)
                followed += more
                if followed > MAX_FOLLOWED:
                    raise self._refused(name, f"passes more than {MAX_FOLLOWED} links")
            else:
                is_directory = is_directory and path in self._directories
        resolved = self._resolved[name] = _Resolved(
            self._interned.setdefault(path, path) if is_directory else "", is_directory, followed
        )
        return resolved

    def _refused(self, name: str, reason: str) -> UnsafeArchiveError:
        return refused(name, f"its target {quoted(self._links[name])} {reason}")


def _refusal(member: str, reason: str) -> str:
    return f"tar member {quoted(member)} refused: {reason}"
