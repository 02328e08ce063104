"""What a tar may hold: names and links that stay inside, by rules that touch no disk.

The plan and the extractor ask the same rules, so whatever can be pushed can be pulled again.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from async_bento.config import Limits
from async_bento.errors import UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

DEFAULT_LIMITS = Limits()
"""What a plan keeps to, so that who pulls it with the defaults can."""

MAX_COMPONENT = 255
"""The longest name between two slashes, in bytes: NAME_MAX of every common file system."""

MAX_FOLLOWED = 40
"""How many links the way to a link's target may pass; Linux gives up after as many (path_resolution(7))."""

_SHOWN = 200  # characters of a name in a message

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DRIVE = re.compile(r"[A-Za-z]:(\\|/|$)")
_WINDOWS = os.name == "nt"


def member_name(raw: str, limits: Limits = DEFAULT_LIMITS, *, windows: bool = _WINDOWS) -> str:
    r"""Check a member's name and bring it into one form.

    A backslash and a colon are ordinary characters in a POSIX file name and are refused only where they mean more.
    `C:\` and `C:/` at the start are refused everywhere.

    Args:
        raw: The name as the tar has it, like `./src/` or `src`.
        limits: How long and how deep it may be.
        windows: Judge by the rules of Windows.

    Returns:
        The name without `.` and without needless slashes, like `src`; empty for the root.

    Raises:
        UnsafeArchiveError: The name is empty, absolute, climbs, is too long or too deep, or holds control
            characters.
    """
    if not raw:
        raise UnsafeArchiveError("a member of the tar has no name", member=raw)
    _check_path(raw, raw, "its name", limits, windows=windows)
    parts = [part for part in raw.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise _refuse(raw, "its name climbs with '..'")
    return "/".join(parts)


def check_target(name: str, target: str, limits: Limits = DEFAULT_LIMITS, *, windows: bool = _WINDOWS) -> None:
    """Check the target of a symbolic link, as far as that is possible without the other members.

    Args:
        name: The link.
        target: What it points at.
        limits: How long and how deep it may be.
        windows: Judge by the rules of Windows.

    Raises:
        UnsafeArchiveError: The target is empty, absolute, too long or too deep, or holds control characters.
    """
    if not target:
        raise _refuse(name, "it is a link to nothing")
    _check_path(name, target, f"its target {quoted(target)}", limits, windows=windows)


def _check_path(member: str, path: str, what: str, limits: Limits, *, windows: bool) -> None:
    if path.startswith("/"):
        raise _refuse(member, f"{what} is absolute")
    if _CONTROL.search(path):
        raise _refuse(member, f"{what} holds control characters")
    if _DRIVE.match(path) or (windows and ("\\" in path or ":" in path)):
        raise _refuse(member, f"{what} is a path of Windows")
    encoded = path.encode("utf-8", "surrogateescape")
    if len(encoded) > limits.path:
        raise _refuse(member, f"{what} is longer than {limits.path} bytes (Limits.path)")
    if path.count("/") >= limits.depth and sum(part not in {"", "."} for part in path.split("/")) > limits.depth:
        raise _refuse(member, f"{what} is more than {limits.depth} deep (Limits.depth)")
    if len(encoded) > MAX_COMPONENT and any(len(part) > MAX_COMPONENT for part in encoded.split(b"/")):
        raise _refuse(member, f"{what} has a part longer than {MAX_COMPONENT} bytes")


def check_links(links: Mapping[str, str], directories: Container[str], limits: Limits = DEFAULT_LIMITS) -> None:
    """Check that no symbolic link leads outside, followed as a kernel would follow it and not as it reads.

    `up/..` is not where `up` is when `up` is a link, so each target is walked part by part through the other links.
    What is in neither argument counts as a file or as missing. Such a target may dangle, but `..` must not follow
    it: on a file system that ignores case, the missing part may be a link by another spelling.

    Args:
        links: Targets by the names of the links.
        directories: The names of the directories, the parents of all links and the root (empty) among them.
        limits: How long the path may be that a link leads to.

    Raises:
        UnsafeArchiveError: A link leads outside, too far, or through more than `MAX_FOLLOWED` links, as in a circle.
    """
    resolver = _Resolver(links, directories, limits)
    for name in links:
        resolver.follow(name, depth=1)


class _Place(NamedTuple):
    """Where a link leads.

    Attributes:
        path: The path inside the tar; empty, too, where it is not known to be a directory: nothing leads on from there.
        is_directory: Whether it is.
        followed: The links followed on the way.
    """

    path: str
    is_directory: bool
    followed: int


class _Resolver:
    """Follows links, each of them once, however many lead through it."""

    def __init__(self, links: Mapping[str, str], directories: Container[str], limits: Limits) -> None:
        self._links = links
        self._directories = directories
        self._max_path = limits.path
        self._paths: dict[str, str] = {}  # each path once, however many links lead there
        self._places: dict[str, _Place] = {}

    def follow(self, name: str, depth: int) -> _Place:
        if name in self._places:
            return self._places[name]
        if depth > MAX_FOLLOWED:
            raise self._outlaw(name, f"passes more than {MAX_FOLLOWED} links")
        path, is_directory, followed = name.rpartition("/")[0], True, 1
        for part in self._links[name].split("/"):
            if part in {"", "."}:
                continue
            if part == "..":
                if not is_directory:
                    raise self._outlaw(name, "climbs out of something that is no directory of the tar")
                if not path:
                    raise self._outlaw(name, "leads outside")
                path = path.rpartition("/")[0]
                continue
            path = f"{path}/{part}" if path else part
            if len(path) > self._max_path:  # each link on the way may add to it
                raise self._outlaw(name, f"leads to a path longer than {self._max_path} bytes")
            if is_directory and path in self._links:
                path, is_directory, more = self.follow(path, depth + 1)
                followed += more
                if followed > MAX_FOLLOWED:
                    raise self._outlaw(name, f"passes more than {MAX_FOLLOWED} links")
            else:
                is_directory = is_directory and path in self._directories
        place = self._places[name] = _Place(
            self._paths.setdefault(path, path) if is_directory else "", is_directory, followed
        )
        return place

    def _outlaw(self, name: str, why: str) -> UnsafeArchiveError:
        return _refuse(name, f"the link to {quoted(self._links[name])} {why}")


def quoted(name: str) -> str:
    """Quote a name for a message.

    Args:
        name: The name, of any length.

    Returns:
        It, or its beginning.
    """
    return repr(name) if len(name) <= _SHOWN else f"{name[:_SHOWN]!r}…"


def _refuse(member: str, why: str) -> UnsafeArchiveError:
    return UnsafeArchiveError(f"{quoted(member)} is refused: {why}", member=member)
