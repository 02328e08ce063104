"""Records of the registry, as a person reads them: the row of a list, and the facts of one.

What they say is chosen, not all there is: nothing presigned is among it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_bento.units import human_size

if TYPE_CHECKING:
    from async_bento.wire.schemas import BentoManifestSchema, ItemSchema, ModelManifestSchema

HEAD = ("TAG", "SIZE", "BUILT (UTC)", "UPLOAD")
"""The columns of a list."""


def tag_of(item: ItemSchema) -> str:
    """Say which item a record is of.

    Args:
        item: The record.

    Returns:
        Its tag; the version alone where the registry does not say the name.
    """
    repository = getattr(item, "repository", None)
    name = repository.name if repository is not None else getattr(_manifest(item), "name", None)
    return f"{name}:{item.version}" if name else item.version


def row_of(item: ItemSchema) -> tuple[str, ...]:
    """Say of a record what a list has room for.

    Args:
        item: The record.

    Returns:
        A cell for each column of `HEAD`.
    """
    return tag_of(item), _size(item), f"{item.build_at:%Y-%m-%d %H:%M}" if item.build_at else "", item.upload_status


def facts_of(item: ItemSchema, tag: str | None = None) -> list[tuple[str, str]]:
    """Say what a person wants to know of a record.

    Args:
        item: The record.
        tag: Its tag, where that is known better.

    Returns:
        The name of each fact and the fact, which may be empty.
    """
    manifest = _manifest(item)
    return [
        ("Tag", tag or tag_of(item)),
        ("Upload", " ".join(filter(None, (item.upload_status, item.upload_finished_reason)))),
        ("Built (UTC)", f"{item.build_at:%Y-%m-%d %H:%M:%S}" if item.build_at else ""),
        ("Size", _size(item)),
        ("BentoML", manifest.bentoml_version if manifest else ""),
        ("Models", ", ".join(getattr(manifest, "models", []))),
        ("Labels", ", ".join(f"{label.key}={label.value}" for label in item.labels)),
    ]


def _manifest(item: ItemSchema) -> BentoManifestSchema | ModelManifestSchema | None:
    return getattr(item, "manifest", None)


def _size(item: ItemSchema) -> str:
    manifest = _manifest(item)
    return human_size(manifest.size_bytes) if manifest else ""
