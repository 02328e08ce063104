"""The actual state, read without the client: the registry's records and bytes, and trees on disk, by hash.

The requests bypass the proxy, and `tarfile` reads the tars.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Tree = dict[str, tuple[str, int, str]]
"""Each path below a directory: its kind, its executable bit, and the SHA-256 of a file or the target of a link."""


def tree_of(directory: Path, leaving_out: str | None = None) -> Tree | None:
    """Return the tree of a directory.

    Args:
        directory: The directory.
        leaving_out: A name in the directory to exclude.

    Returns:
        The tree; None without a directory.
    """
    if not directory.is_dir():
        return None
    tree: Tree = {}
    for root, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = Path(root, name)
            inner = str(path.relative_to(directory))
            if inner.partition("/")[0] == leaving_out:
                continue
            status = path.lstat()
            mode = status.st_mode & stat.S_IXUSR
            if stat.S_ISLNK(status.st_mode):
                tree[inner] = ("link", 0, str(path.readlink()))
            elif stat.S_ISDIR(status.st_mode):
                tree[inner] = ("directory", 0, "")
            else:
                tree[inner] = ("file", mode, hashlib.sha256(path.read_bytes()).hexdigest())
    return tree


@dataclass(frozen=True)
class Record:
    """An item in the registry.

    Attributes:
        status: The status of the upload; None without a record.
        tree: The content of the tar; None without a tar.
        broken: The error of a broken tar, otherwise empty.
        facts: The manifest, the labels, the description and the build time in the record, as JSON.
    """

    status: str | None
    tree: Tree | None = None
    broken: str = ""
    facts: str = ""


def record_of(endpoint: str, token: str, kind: str, name: str, version: str) -> Record:
    """Read a record and its bytes from a registry."""
    item = f"{endpoint}/api/v1/{kind}_repositories/{name}/{kind}s/{version}"
    answer = _get(item, token)
    if answer is None:
        return Record(None)
    with answer:
        record = json.load(answer)
    status, facts = record["upload_status"], _facts_of(record)
    answer = _get(f"{item}/download", token)
    if answer is None:
        return Record(status, facts=facts)
    tree: Tree = {}
    with answer:
        try:
            with tarfile.open(fileobj=answer, mode="r|") as tar:
                for member in tar:
                    name = member.name.removeprefix("./").rstrip("/")
                    if name in {"", "."}:
                        continue
                    if member.issym():
                        tree[name] = ("link", 0, member.linkname)
                    elif member.isdir():
                        tree[name] = ("directory", 0, "")
                    else:
                        file = tar.extractfile(member)
                        assert file is not None
                        tree[name] = ("file", member.mode & stat.S_IXUSR, hashlib.sha256(file.read()).hexdigest())
        except (tarfile.TarError, OSError, AssertionError, EOFError) as error:
            return Record(status, None, repr(error), facts)
    return Record(status, tree, facts=facts)


def _facts_of(record: dict[str, Any]) -> str:
    facts = {name: record[name] for name in ("manifest", "description", "build_at")}
    labels = sorted((label["key"], label["value"]) for label in record["labels"])
    return json.dumps({**facts, "labels": labels}, sort_keys=True)


def _get(url: str, token: str) -> urllib.response.addinfourl | None:  # type: ignore[name-defined]
    request = urllib.request.Request(url, headers={"X-YATAI-API-TOKEN": token})
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404 or (error.code == 400 and b"record not found" in error.read()):
                return None
        raise


def difference(one: Tree | None, other: Tree | None) -> str:
    """Return the first differences of two trees; empty for equal trees."""
    if one is None or other is None:
        return "one tree is missing" if one is not other else ""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return "; ".join(f"{name}: {one.get(name)} and {other.get(name)}" for name in names[:3])
