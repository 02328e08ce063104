"""Two trees of files, of the registry or on disk, compared by names, types, sizes, times, modes and contents."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from async_bento._core import platform
from async_bento._core.concurrency import check_cancelled
from async_bento.errors import NotFoundError
from async_bento.store.errors import as_store_error
from async_bento.transfer.tar.scan import DS_STORE
from async_bento.transfer.tar.selection import parents

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from async_bento.transfer.tar.index import IndexEntry, TarIndex

Change = Literal["type", "size", "time", "mode", "target", "content"]

PERMISSIONS = 0o777
EXECUTABLE = stat.S_IXUSR
"""The bit of a mode that a pull keeps: all others follow the umask."""

_NS = 1_000_000_000
_BYTECODE = "__pycache__"


@dataclass(frozen=True)
class Difference:
    """A path that differs.

    Attributes:
        path: The path in the bento or model, like `src/service.py`.
        kind: `added`, `removed` or `changed`.
        changes: What has changed: `type`, `size`, `time`, `mode`, `target` (of a link) or `content`; empty for a path
            that was added or removed.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    changes: tuple[Change, ...] = ()


class Node(NamedTuple):
    """A path in a tree; a hard link is a file. `entry` is where a remote tar has the content of a file."""

    type: Literal["file", "directory", "symlink", "other"]
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0
    target: str = ""
    entry: IndexEntry | None = None


class Contents(NamedTuple):
    """The digests of the contents of two trees, by path, for the files that have equal sizes."""

    old: Mapping[str, bytes]
    new: Mapping[str, bytes]


def compare(
    old: Mapping[str, Node], new: Mapping[str, Node], mode_bits: int, contents: Contents | None = None
) -> tuple[Difference, ...]:
    """Compare two trees by path; with their contents, times do not count."""
    found: dict[str, Difference] = {}
    for path in sorted({*old, *new}):
        before, after = old.get(path), new.get(path)
        if before is None:
            found[path] = Difference(path, "added")
        elif after is None:
            found[path] = Difference(path, "removed")
        elif changes := _changes(before, after, mode_bits, contents is None):
            found[path] = Difference(path, "changed", changes)
        elif contents is not None and contents.old.get(path) != contents.new.get(path):
            found[path] = Difference(path, "changed", ("content",))
    # A directory is implied by what was added to it or removed from it.
    implied = {parent for path in found for parent in parents(path)}
    return tuple(each for path, each in found.items() if each.kind == "changed" or path not in implied)


def _changes(before: Node, after: Node, mode_bits: int, by_time: bool) -> tuple[Change, ...]:
    if before.type != after.type:
        return ("type",)
    changes: list[Change] = []
    if before.type == "symlink" and before.target != after.target:
        changes.append("target")
    if before.type == "file":
        if before.size != after.size:
            changes.append("size")
        # A tar of this client has whole seconds, and one of BentoML the digits of a float.
        if by_time and abs(before.mtime_ns - after.mtime_ns) >= _NS:
            changes.append("time")
        if (before.mode ^ after.mode) & mode_bits:
            changes.append("mode")
    return tuple(changes)


def equal_sizes(old: Mapping[str, Node], new: Mapping[str, Node]) -> list[str]:
    """The files of which only the contents decide, by path."""
    return [
        path
        for path, node in old.items()
        if node.type == "file" and node.size and (other := new.get(path)) and other[:2] == node[:2]
    ]


def tree_of(index: TarIndex) -> dict[str, Node]:
    """The tree of a remote tar."""
    tree: dict[str, Node] = {}
    for path, entry in index.entries.items():
        for parent in parents(path):  # a tar need not name them
            tree.setdefault(parent, Node("directory"))
        if entry.member.type == "symlink":
            tree[path] = Node("symlink", target=entry.member.target)
        elif entry.member.type == "directory":
            tree[path] = Node("directory")
        else:
            tree[path] = _file(index.origin(entry))
    tree.pop("", None)
    return tree


def _file(entry: IndexEntry) -> Node:
    return Node("file", entry.member.size, entry.member.mtime_ns, entry.member.mode, entry=entry)


class LocalCopy(NamedTuple):
    """The remote tree of an item as a pull would extract it here, the local tree, and the bits of modes that count."""

    remote: dict[str, Node]
    nodes: dict[str, Node]
    mode_bits: int


def scan_copy(root: Path, exclude: Collection[str], remote: dict[str, Node], index: TarIndex) -> LocalCopy:
    """Scan the local copy of a remote item, without the names in `exclude` at its top. Blocks."""
    nodes = {path: node for path, node in _scan(root, exclude).items() if path in remote or not _is_added(path)}
    # Windows and exFAT have no modes: there each file has the same.
    files = [node for node in nodes.values() if node.type == "file"]
    keeps_modes = platform.HAS_MODES and not all(node.mode & EXECUTABLE for node in files)
    return LocalCopy(_without_links(remote, nodes, index), nodes, EXECUTABLE if keeps_modes else 0)


def _is_added(path: str) -> bool:
    """Whether programs add such a file: Python writes bytecode next to the files that it imports, macOS `.DS_Store`."""
    return not {_BYTECODE, DS_STORE}.isdisjoint(path.split("/"))


def _scan(root: Path, exclude: Collection[str]) -> dict[str, Node]:
    """The tree of a directory."""
    tree: dict[str, Node] = {}
    pending = [os.fspath(root)]
    prefix = len(pending[0]) + 1
    with as_store_error(f"read {root}"):
        while pending:
            check_cancelled()
            directory = pending.pop()
            with os.scandir(directory) as entries:
                for found in entries:
                    path = found.path[prefix:].replace(os.sep, "/")
                    if path not in exclude:
                        tree[path] = node = _scanned(found)
                        if node.type == "directory":
                            pending.append(found.path)
    return tree


def _scanned(found: os.DirEntry[str]) -> Node:
    status = platform.entry_status(found)
    if stat.S_ISREG(status.st_mode):
        return Node("file", status.st_size, status.st_mtime_ns, status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Node("symlink", target=platform.read_link(found.path))
    return Node("directory" if stat.S_ISDIR(status.st_mode) else "other")


def _without_links(remote: dict[str, Node], local: Mapping[str, Node], index: TarIndex) -> dict[str, Node]:
    """A remote tree as a pull extracts it where the filesystem has no symlinks: each is a copy of its target."""
    if any(node.type == "symlink" for node in local.values()):
        return remote
    tree, names = {**remote}, sorted(remote)
    pending = [path for path, node in remote.items() if node.type == "symlink"]
    while pending:
        path = pending.pop()
        if path not in local:
            continue
        with suppress(NotFoundError):
            if local[path].type == "file":
                tree[path] = _file(index.resolve(path))
            elif local[path].type == "directory":
                target = index.follow(path)
                tree[path] = Node("directory")
                # All names below the directory, since "0" comes after "/".
                for name in names[bisect_left(names, f"{target}/") : bisect_left(names, f"{target}0")]:
                    copied = path + name[len(target) :]
                    tree[copied] = remote[name]
                    if remote[name].type == "symlink":
                        pending.append(copied)
    return tree
