"""`--dry-run` of push and pull: print what would be transferred, and change nothing."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar, cast

import click

from async_bento._core.tag import Tag, is_path
from async_bento._core.text import human_size
from async_bento.api.labels import as_dict, lost_labels, written
from async_bento.api.pull import refuse_hub_model
from async_bento.api.records import hub_metadata, wants_newest
from async_bento.cli.errors import ItemsError
from async_bento.cli.output import print_json
from async_bento.cli.selection import run_each
from async_bento.errors import NotFoundError
from async_bento.store.directory import TargetDirectory
from async_bento.store.items import Bento, Model
from async_bento.store.store import BentoStore, ModelStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.async_models import AsyncModelAPI
    from async_bento.cli.selection import Selection
    from async_bento.rest.schemas import ItemSchema
    from async_bento.store.store import Store

P = ParamSpec("P")
T = TypeVar("T")

Word = Literal["bento", "model"]


class Planned(NamedTuple):
    """What would happen to one item; `note` is for people. The bytes to transfer are None where they are unknown."""

    tag: str
    kind: Word
    action: Literal["push", "pull", "copy", "skip"]
    note: str
    size_bytes: int | None = 0


async def plan_each(
    plan: Callable[[str], Awaitable[list[Planned]]], selection: Selection, action: str, *, as_json: bool
) -> None:
    """Print the plan of each selected item, and of a model once; `action` is like `push {} bentos`."""
    planned: dict[tuple[Word, str], Planned] = {}

    def report(plans: list[Planned]) -> None:
        for each in plans:
            if planned.setdefault((each.kind, each.tag), each) is each and not as_json:
                click.echo(f"Would {each.action} {each.kind} {each.tag}: {each.note}.")

    try:
        await run_each(plan, selection, action, report)
    except ItemsError:
        _print_sum([*planned.values()], action.partition(" ")[0], as_json)
        raise
    _print_sum([*planned.values()], action.partition(" ")[0], as_json)


def _print_sum(planned: list[Planned], verb: str, as_json: bool) -> None:
    """Print how many of several items would be transferred, and their bytes; or all of it as JSON."""
    if as_json:
        print_json([each._asdict() for each in planned])
        return
    sizes = [each.size_bytes for each in planned if each.action != "skip"]
    known = [size for size in sizes if size is not None]
    if len(planned) > 1:
        size = f": {human_size(sum(known))}" if sizes and len(known) == len(sizes) else ""
        click.echo(f"Would {verb} {len(sizes)} of {len(planned)} items{size}.")


class PushPlan(NamedTuple):
    """The options of the push that is planned."""

    force: bool
    bare: bool = False
    labels: Mapping[str, str] = MappingProxyType({})
    keep_labels: bool = False


async def plan_push(api: AsyncBentoAPI, item: str, *, options: PushPlan) -> list[Planned]:
    """Plan the push of a bento and its models."""
    bento: Bento = await _find(BentoStore(), item)
    of_models = options._replace(bare=False, labels={})
    planned = [
        await _plan_push_model(api.models, bento, info.tag, info.is_huggingface, of_models) for info in bento.models
    ]
    return [*planned, await _plan_push(api, "bento", bento, options)]


async def plan_push_model(api: AsyncModelAPI, item: str, *, options: PushPlan) -> list[Planned]:
    """Plan the push of a model."""
    model: Model = await _find(ModelStore(), item)
    return [await _plan_push(api, "model", model, options)]


async def plan_pull(
    api: AsyncBentoAPI, tag: str, *, force: bool, with_models: bool, output: Path | None
) -> list[Planned]:
    """Plan the pull of a bento, and of its models."""
    to = BentoStore() if output is None else TargetDirectory(Bento, output)
    bento, record = await _plan_pull(api, to, "bento", tag, force)
    models: list[str] = getattr(getattr(record, "manifest", None), "models", [])
    if not with_models:
        is_part = bento.action == "pull" and bool(models)  # the record's size counts the models, which stay there
        return [bento._replace(note=f"at most {bento.note}", size_bytes=None) if is_part else bento]
    store = ModelStore(None if output is None else to.path / "models")
    plans = [await _plan_pull(api.models, store, "model", model, force=output is not None) for model in models]
    if bento.action == "pull":
        own = _own_size(record, plans)
        bento = bento._replace(note=_size_and_place(own, to.path), size_bytes=own)
    return [bento, *(planned for planned, _ in plans)]


async def plan_pull_model(api: AsyncModelAPI, tag: str, *, force: bool, output: Path | None) -> list[Planned]:
    """Plan the pull of a model."""
    to = ModelStore() if output is None else TargetDirectory(Model, output)
    planned, _ = await _plan_pull(api, to, "model", tag, force)
    return [planned]


async def plan_copy(
    api: AsyncBentoAPI, target: AsyncBentoAPI, tag: str, *, force: bool, with_models: bool
) -> list[Planned]:
    """Plan the copy of a bento, and of its models."""
    bento, record = await _plan_copy(api, target, "bento", tag, force)
    models: list[str] = getattr(getattr(record, "manifest", None), "models", [])
    if not with_models:
        return [bento._replace(note=f"at most {bento.note}", size_bytes=None) if models else bento]
    planned = [await _plan_copy(api.models, target.models, "model", model, force) for model in models]
    if bento.action == "copy":
        own = _own_size(record, planned)
        bento = bento._replace(note=human_size(own), size_bytes=own)
    return [*(model for model, _ in planned), bento]


async def plan_copy_model(api: AsyncModelAPI, target: AsyncModelAPI, tag: str, *, force: bool) -> list[Planned]:
    """Plan the copy of a model."""
    planned, _ = await _plan_copy(api, target, "model", tag, force)
    return [planned]


async def _plan_copy(
    api: AsyncBentoAPI | AsyncModelAPI, target: AsyncBentoAPI | AsyncModelAPI, word: Word, tag: str, force: bool
) -> tuple[Planned, ItemSchema]:
    """The plan of one item, and its record."""
    record = await api.get(tag)
    exact = f"{Tag.parse(tag).name}:{record.version}"
    is_on_hub = hub_metadata(record) is not None
    if not is_on_hub and not await api.exists(exact):
        raise NotFoundError(f"cannot copy {exact}: its upload never finished. Push it again.")
    if (is_on_hub or not force) and await target.exists(exact):  # a record of the Hub is kept, also with --force
        return Planned(exact, word, "skip", "already copied"), record
    if is_on_hub:
        return Planned(exact, word, "copy", "the record only, its files are on the Hugging Face Hub"), record
    return Planned(exact, word, "copy", human_size(record.size_bytes), record.size_bytes), record


async def _plan_push(api: AsyncBentoAPI | AsyncModelAPI, word: Word, item: Bento | Model, options: PushPlan) -> Planned:
    tag = str(item.tag)
    labels = f", labelled {', '.join(written(options.labels))}" if options.labels else ""
    if not options.force and await api.exists(tag):
        return Planned(tag, word, "skip", f"already pushed{labels}")
    if options.force and (dropped := await _dropped_labels(api, item, options)):
        labels += f", drops the labels {', '.join(dropped)}"
    if options.bare:
        return Planned(tag, word, "push", f"the record only{labels}")
    size: int = await _run(item.size)
    return Planned(tag, word, "push", f"{human_size(size)}{labels}", size)


async def _dropped_labels(
    api: AsyncBentoAPI | AsyncModelAPI, item: Bento | Model, options: PushPlan
) -> tuple[str, ...]:
    try:
        before = as_dict((await api.get(item.tag)).labels)
    except NotFoundError:
        return ()
    after = {**(before if options.keep_labels else {}), **item.labels, **options.labels}
    return lost_labels(before, after, options.labels)


async def _plan_push_model(api: AsyncModelAPI, bento: Bento, tag: Tag, is_hub: bool, options: PushPlan) -> Planned:
    if is_hub:
        if await api.exists(tag):  # an existing record is kept, also with --force
            return Planned(str(tag), "model", "skip", "already pushed")
        return Planned(str(tag), "model", "push", "the record only, its files are on the Hugging Face Hub")
    for store in (ModelStore(bento.path / "models"), ModelStore()):
        if found := await _stored(store, str(tag)):
            return await _plan_push(api, "model", found, options)
    if await api.exists(tag):
        return Planned(str(tag), "model", "skip", "not stored locally, already pushed")
    raise NotFoundError(f"cannot push {bento.tag}: its model {tag} is neither stored locally nor in the registry.")


async def _plan_pull(
    api: AsyncBentoAPI | AsyncModelAPI, to: Store[Any] | TargetDirectory[Any], word: Word, tag: str, force: bool
) -> tuple[Planned, ItemSchema]:
    """The plan of one item, and its record."""
    wanted = Tag.parse(tag)
    if isinstance(to, TargetDirectory):
        await _run(to.check, force=force)
    record = await api.get(tag)
    if not await api.exists(tag):
        raise NotFoundError(f"cannot pull {tag}: its upload never finished. Push it again.")
    exact = f"{wanted.name}:{record.version}"
    place: Path | str = to.path
    if hub_metadata(record) is not None:
        place = "the Hugging Face cache"
        if isinstance(to, TargetDirectory):
            raise refuse_hub_model(Tag.parse(exact), to.path)
    elif not force and not isinstance(to, TargetDirectory) and (local := await _find_local(to, wanted, record)):
        return Planned(str(local.tag), word, "skip", "already pulled"), record
    return Planned(exact, word, "pull", _size_and_place(record.size_bytes, place), record.size_bytes), record


def _own_size(record: ItemSchema, models: Sequence[tuple[Planned, ItemSchema]]) -> int:
    """The size of a bento without its models, which may have grown since its push."""
    return max(0, record.size_bytes - sum(model.size_bytes for _, model in models))


def _size_and_place(size: int, place: Path | str) -> str:
    return f"{human_size(size)}, to {place}"


async def _find_local(store: Store[Any], wanted: Tag, record: ItemSchema) -> Bento | Model | None:
    """The local item that makes a pull needless."""
    if local := await _stored(store, f"{wanted.name}:{record.version}"):
        return local
    newest = await _stored(store, wanted.name) if wants_newest(wanted) and record.build_at else None
    return newest if newest and record.build_at and newest.creation_time >= record.build_at else None


async def _find(store: Store[Any], item: str) -> Any:
    return await _run(store.item_type.from_path, item) if is_path(item) else await _run(store.get, item)


async def _stored(store: Store[Any], tag: str) -> Bento | Model | None:
    try:
        return cast("Bento | Model", await _run(store.get, tag, prefix=False))
    except NotFoundError:
        return None


async def _run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    import anyio.to_thread

    return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))
