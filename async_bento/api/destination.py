"""The destination of a pull: a store, or a directory outside any store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento.api.bento_models import pull_models
from async_bento.api.pull import Puller
from async_bento.api.records import ANY
from async_bento.errors import ConfigError, NotFoundError
from async_bento.store.directory import TargetDirectory
from async_bento.store.errors import as_store_error
from async_bento.store.items import Bento
from async_bento.store.store import ModelStore

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from async_bento._core.tag import Tag
    from async_bento.api.kinds import ItemT, Kind, RecordT
    from async_bento.api.records import Selector
    from async_bento.api.resources import Resources
    from async_bento.rest.schemas import ModelWithRepositorySchema
    from async_bento.store.items import Model
    from async_bento.store.store import Store

_MODELS = "models"
"""Where an exported bento has its models, in the layout of a store."""


def make_puller(
    resources: Resources,
    kind: Kind[ItemT, RecordT],
    store: Store[ItemT] | None,
    path: str | os.PathLike[str] | None,
) -> Puller[ItemT, RecordT]:
    """Choose the destination of a pull: a directory, a store, or else the store of the API."""
    if path is None:
        return Puller(resources, replace(kind, store=store) if store else kind)
    if store is not None:
        raise ConfigError("cannot pull into a store and a directory at once. Pass either the store or `path`.")
    return Puller(resources, kind, TargetDirectory(kind.store.item_type, path))


async def pull_bento(
    bentos: Puller[Bento, RecordT],
    models: Puller[Model, ModelWithRepositorySchema] | None,
    tag: Tag,
    *,
    force: bool,
    selector: Selector = ANY,
) -> Bento:
    """Pull a bento, and its models if `models` is given: into the bento's directory, or into their store."""
    if bentos.directory is not None and models is not None:
        bentos.complete = partial(_add_models, models)
    bento = await bentos.pull(tag, force=force, selector=selector)
    if not isinstance(bento, Bento):  # no registry has such a bento, but the types allow one
        raise NotFoundError(f"{tag} has no files in the registry")
    if bentos.directory is None and models is not None:
        await pull_models(models, bento)
    return bento


async def _add_models(models: Puller[Model, ModelWithRepositorySchema], staged: Path) -> None:
    """Pull the models of a staged bento into it, where `bentoml export` puts them."""
    threads = models.resources.threads
    bento = await threads.run(Bento.from_path, staged)
    store = ModelStore(staged.with_name(_MODELS))  # not yet in the bento: the store has staging next to it
    await threads.run(_move, staged / _MODELS, store.path)
    puller = Puller(models.resources, replace(models.kind, store=store))
    await pull_models(puller, bento, "cannot pull {}: {{}} failed")
    await threads.run(_move, store.path, staged / _MODELS)


def _move(source: Path, target: Path) -> None:
    """Move a directory if it exists."""
    with as_store_error(f"move {source}"):
        if source.is_dir():
            platform.rename(source, target)
