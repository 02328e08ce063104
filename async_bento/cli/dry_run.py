"""`--dry-run` of push and pull: say what would be sent or written, and change nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar, cast

import click

from async_bento._core.tag import Tag
from async_bento._core.text import human_size
from async_bento.api.pull import refuse_hub_model
from async_bento.api.records import hub_metadata, wants_newest
from async_bento.cli.output import print_json
from async_bento.cli.selection import run_each
from async_bento.errors import NotFoundError
from async_bento.store.directory import TargetDirectory
from async_bento.store.items import Bento, Model
from async_bento.store.store import BentoStore, ModelStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from async_bento.api.async_api import AsyncBentoAPI, AsyncModelAPI
    from async_bento.cli.selection import Selection
    from async_bento.rest.schemas import ItemSchema
    from async_bento.store.store import Store

P = ParamSpec("P")
T = TypeVar("T")

Word = Literal["bento", "model"]


class Planned(NamedTuple):
    """What would happen to one item; `note` is the reason or the size, for people."""

    tag: str
    kind: Word
    action: Literal["push", "pull", "skip"]
    note: str


async def plan_each(
    plan: Callable[[str], Awaitable[list[Planned]]], selection: Selection, action: str, *, as_json: bool
) -> None:
    """Print the plan of each selected item; `action` is like `push {} bentos`."""

    def report(planned: list[Planned]) -> None:
        if not as_json:
            for each in planned:
                click.echo(f"Would {each.action} {each.kind} {each.tag}: {each.note}.")

    plans = await run_each(plan, selection, action, report)
    if as_json:
        print_json([each._asdict() for planned in plans for each in planned])


async def plan_push(api: AsyncBentoAPI, item: str, *, force: bool, bare: bool) -> list[Planned]:
    """Plan the push of a bento and its models."""
    bento: Bento = await _find(BentoStore(), item)
    planned = [await _plan_push_model(api.models, bento, info.tag, info.is_huggingface, force) for info in bento.models]
    return [*planned, await _plan_push(api, "bento", bento, force=force, bare=bare)]


async def plan_push_model(api: AsyncModelAPI, item: str, *, force: bool) -> list[Planned]:
    """Plan the push of a model."""
    model: Model = await _find(ModelStore(), item)
    return [await _plan_push(api, "model", model, force=force)]


async def plan_pull(
    api: AsyncBentoAPI, tag: str, *, force: bool, with_models: bool, output: Path | None
) -> list[Planned]:
    """Plan the pull of a bento, and of its models."""
    to = BentoStore() if output is None else TargetDirectory(Bento, output)
    planned, models = await _plan_pull(api, to, "bento", tag, force)
    if with_models:
        store = ModelStore(None if output is None else to.path / "models")
        for model in models:
            more, _ = await _plan_pull(api.models, store, "model", model, force=output is not None)
            planned += more
    return planned


async def plan_pull_model(api: AsyncModelAPI, tag: str, *, force: bool, output: Path | None) -> list[Planned]:
    """Plan the pull of a model."""
    to = ModelStore() if output is None else TargetDirectory(Model, output)
    planned, _ = await _plan_pull(api, to, "model", tag, force)
    return planned


async def _plan_push(
    api: AsyncBentoAPI | AsyncModelAPI, word: Word, item: Bento | Model, *, force: bool, bare: bool = False
) -> Planned:
    tag = str(item.tag)
    if not force and await api.exists(tag):
        return Planned(tag, word, "skip", "already pushed")
    return Planned(tag, word, "push", "the record only" if bare else human_size(await _run(item.size)))


async def _plan_push_model(api: AsyncModelAPI, bento: Bento, tag: Tag, is_hub: bool, force: bool) -> Planned:
    if is_hub:
        return Planned(str(tag), "model", "push", "the record only, its files are on the Hugging Face Hub")
    for store in (ModelStore(bento.path / "models"), ModelStore()):
        if found := await _stored(store, str(tag)):
            return await _plan_push(api, "model", found, force=force)
    if await api.exists(tag):
        return Planned(str(tag), "model", "skip", "not stored locally, already pushed")
    raise NotFoundError(f"cannot push {bento.tag}: its model {tag} is neither stored locally nor in the registry.")


async def _plan_pull(
    api: AsyncBentoAPI | AsyncModelAPI, to: Store[Any] | TargetDirectory[Any], word: Word, tag: str, force: bool
) -> tuple[list[Planned], list[str]]:
    """The plan of one item, and the tags of its models."""
    wanted = Tag.parse(tag)
    if isinstance(to, TargetDirectory):
        await _run(to.check, force=force)
    record = await api.get(tag)
    if not await api.exists(tag):
        raise NotFoundError(f"cannot pull {tag}: its upload never finished. Push it again.")
    exact = f"{wanted.name}:{record.version}"
    models: list[str] = getattr(record.manifest, "models", [])
    place = str(to.path)
    if hub_metadata(record) is not None:
        place = "the Hugging Face cache"
        if isinstance(to, TargetDirectory):
            raise refuse_hub_model(Tag.parse(exact), to.path)
    elif not force and not isinstance(to, TargetDirectory) and (local := await _find_local(to, wanted, record)):
        return [Planned(str(local.tag), word, "skip", "already pulled")], models
    size = record.manifest.size_bytes if record.manifest else 0
    note = f"{human_size(size)}{' with its models' if models else ''}, to {place}"
    return [Planned(exact, word, "pull", note)], models


async def _find_local(store: Store[Any], wanted: Tag, record: ItemSchema) -> Bento | Model | None:
    """The local item that makes a pull needless."""
    if local := await _stored(store, f"{wanted.name}:{record.version}"):
        return local
    newest = await _stored(store, wanted.name) if wants_newest(wanted) and record.build_at else None
    return newest if newest and record.build_at and newest.creation_time >= record.build_at else None


async def _find(store: Store[Any], item: str) -> Any:
    is_path = "/" in item or item in {".", ".."}
    return await _run(store.item_type.from_path, item) if is_path else await _run(store.get, item)


async def _stored(store: Store[Any], tag: str) -> Bento | Model | None:
    try:
        return cast("Bento | Model", await _run(store.get, tag, prefix=False))
    except NotFoundError:
        return None


async def _run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    import anyio.to_thread

    return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))
