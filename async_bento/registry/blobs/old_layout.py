"""The files of the first release, which are moved to the present layout when a directory is opened.

data/<id>/00001.<md5>       the parts of an object, or of an upload
data/<id>/upload            exists while an upload accepts parts
objects/<key>.tar.json      the object of `<key>`: the id, names and sizes of its parts, and its ETag
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from async_bento._core import platform
from async_bento._core.concurrency import Threads
from async_bento.registry.blobs.base import Content
from async_bento.registry.blobs.disk_files import part_name
from async_bento.registry.errors import BadRequestError, RecordNotFoundError
from async_bento.registry.item_types import ITEM_TYPES, ItemRef, check_tag_part
from async_bento.registry.records.blobs import Publication

if TYPE_CHECKING:
    from async_bento.registry.records.blobs import BlobRecords
    from async_bento.registry.records.sql import Records

log = logging.getLogger(__package__)


class OldObject(BaseModel):
    """The content of `objects/<key>.tar.json`; the ETag is quoted, the sizes are bytes."""

    id: str
    etag: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...]


async def adopt_objects(root: Path, records: Records, blob_records: BlobRecords) -> None:
    """Move the objects of an old layout, and record them; what has no record stays where it is."""
    threads = Threads(1)
    try:
        if not await threads.run((root / "objects").is_dir):
            return
        for pointer in await threads.run(_pointers, root):
            found = await threads.run(_load, pointer)
            ref = parse_old_key(pointer.relative_to(root / "objects").as_posix().removesuffix(".json"))
            if found is None or ref is None:
                log.warning("left %s, which is no object", pointer)
                continue
            try:
                item = await records.item(*ref)
            except RecordNotFoundError:
                log.warning("left %s, which has no record", pointer)
                continue
            key = f"{ref.item_type.items}/{ref.name}/{ref.version}/{found.id}"
            content = await threads.run(_move, root, found, key)
            await blob_records.adopt(item, Publication(key, content))
            # Last: a start that is killed before repeats these steps.
            await threads.run(pointer.unlink)
        await threads.run(_remove_rest, root)
    finally:
        threads.close()


def parse_old_key(key: str) -> ItemRef | None:
    """Parse a key like `bentos/iris/v1.tar`; None if it is no such key."""
    items, _, rest = key.partition("/")
    name, _, file = rest.partition("/")
    item_types = [each for each in ITEM_TYPES if each.items == items]
    try:
        version = check_tag_part("version", file.removesuffix(".tar"))
        return ItemRef(item_types[0], check_tag_part("name", name), version) if item_types else None
    except BadRequestError:
        return None


def _pointers(root: Path) -> list[Path]:
    return sorted((root / "objects").rglob("*.tar.json"))


def _load(pointer: Path) -> OldObject | None:
    try:
        return OldObject.model_validate_json(pointer.read_bytes())
    except ValidationError:
        return None


def _move(root: Path, found: OldObject, key: str) -> Content:
    """Move the parts of an object to its key, unless a start that was killed has; number them without gaps."""
    old, new = root / "data" / found.id, root / key
    if old.is_dir():
        platform.remove(old / "upload", missing_ok=True)
        for number, name in enumerate(found.parts, start=1):
            with suppress(FileNotFoundError):  # it was moved before the start was killed, or is lost
                platform.replace(old / name, old / part_name(number, name[6:]))
        new.parent.mkdir(parents=True, exist_ok=True)
        platform.rename(old, new)
    md5s = [name[6:] for name in found.parts]
    return Content.of_parts(found.etag, zip(found.sizes, md5s, strict=True))


def _remove_rest(root: Path) -> None:
    """Remove uploads that were not completed, and empty directories."""
    for upload in (root / "data").glob("*/upload"):
        shutil.rmtree(upload.parent)
    for name in ("objects", "data"):
        for directory, _, _ in os.walk(root / name, topdown=False):
            with suppress(OSError):  # not empty
                Path(directory).rmdir()
