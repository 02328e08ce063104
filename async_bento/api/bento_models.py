"""The models of a bento, concurrently: models with files of their own, and models on the Hugging Face Hub.

A model that fails does not stop the others, whose bytes would be lost; all failures are raised together at the end.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from async_bento._core.concurrency import background_task, for_each
from async_bento.api.pull import pull_from_hub
from async_bento.api.push import PushResult
from async_bento.errors import BentoError, ModelsError, NotFoundError, summarize, with_message
from async_bento.integrations.huggingface.client import freeze, measure
from async_bento.integrations.huggingface.model import HubModel
from async_bento.rest.request_schemas import CreateModelSchema
from async_bento.rest.schemas import UPLOADED, ItemSchema, ModelManifestSchema
from async_bento.store.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from async_bento._core.tag import Tag
    from async_bento.api.kinds import RecordT
    from async_bento.api.pull import Puller
    from async_bento.api.push import Pusher
    from async_bento.api.resources import Resources
    from async_bento.store.items import Bento, Model
    from async_bento.store.metadata import BentoModelInfo
    from async_bento.store.store import Store

T = TypeVar("T")
BentoRecordT = TypeVar("BentoRecordT", bound=ItemSchema)


async def push_with_models(
    bentos: Pusher[Bento, BentoRecordT], models: Pusher[Model, RecordT], bento: Bento
) -> PushResult:
    """Push a bento after its models."""
    started = time.monotonic()
    if not bento.models:
        return await bentos.push(bento)
    # The registry is asked for the bento while its models are pushed; before that, if it has never answered: a wrong
    # endpoint or token fails once, and not once per model.
    async with background_task(bentos.needs_no_push(bento.tag)) as already_pushed:
        if not bentos.kind.routes.session.is_reached:
            await already_pushed
        pushed = await push_models(models, bento)
        result = await bentos.push(bento, already_pushed=await already_pushed, models=pushed)
    return replace(result, seconds=time.monotonic() - started)


async def push_models(pusher: Pusher[Model, RecordT], bento: Bento) -> tuple[PushResult, ...]:
    """Push a bento's models, in the bento's order; of models on the Hub the record alone."""
    results: dict[Tag, PushResult] = {}

    async def push_one(wanted: BentoModelInfo) -> None:
        results[wanted.tag] = await pusher.once(wanted.tag, partial(_push_model, pusher, wanted, bento))

    await for_each_model(pusher.resources, _wanted(bento), push_one, f"cannot push {bento.tag}: {{}} failed")
    return tuple(results[wanted.tag] for wanted in bento.models)


async def _push_model(pusher: Pusher[Model, RecordT], wanted: BentoModelInfo, bento: Bento) -> PushResult:
    if wanted.is_huggingface:
        return await _register_hub_model(pusher, wanted)
    model = await pusher.resources.threads.run(_find, wanted.tag, bento, pusher.kind.store)
    return await (_skip_missing(pusher, wanted) if model is None else pusher.push(model))


async def pull_models(
    puller: Puller[Model, RecordT], bento: Bento, summary: str = "pulled {}, but {{}} failed"
) -> None:
    """Pull a bento's models into the store, and models on the Hub into the cache of Hugging Face.

    Local models cost no request. The Hub is asked without the registry, as BentoML does. `summary` begins the error.
    """

    async def pull_one(wanted: BentoModelInfo) -> None:
        if wanted.is_huggingface:
            with puller.resources.progress("pull", "model", wanted.tag) as progress:
                await pull_from_hub(puller.resources, HubModel.of(wanted), progress)
        else:
            await puller.pull(wanted.tag)

    await for_each_model(puller.resources, _wanted(bento), pull_one, summary.format(bento.tag))


async def for_each_model(
    resources: Resources, models: Mapping[Tag, T], operation: Callable[[T], Awaitable[None]], summary: str
) -> None:
    """Run an operation for each model, and raise all failures once every model has ended."""
    failures: dict[Tag, BentoError] = {}

    async def attempt(tag: Tag) -> None:
        try:
            await operation(models[tag])
        except BentoError as error:
            failures[tag] = error

    await for_each(attempt, models, resources.config.transfer.concurrency)
    failed = [(tag, failures[tag]) for tag in models if tag in failures]
    if len(failed) == 1:
        tag, error = failed[0]
        message = summary.format(f"its model {tag}")
        raise with_message(error, f"{message}: {error}") from error.__cause__
    if failed:
        named = [(str(tag), error) for tag, error in failed]
        message = summary.format(f"{len(failed)} of its {len(models)} models")
        raise ModelsError(f"{message}:{summarize(named)}", failures=dict(named)) from failed[0][1]


def _wanted(bento: Bento) -> dict[Tag, BentoModelInfo]:
    return {wanted.tag: wanted for wanted in bento.models}


def _find(tag: Tag, bento: Bento, store: Store[Model]) -> Model | None:
    """A bento's model: in the bento's own directory, where it was exported with its models, or in the store."""
    for place in (ModelStore(bento.path / "models"), store):
        with suppress(NotFoundError):
            return place.get(tag, prefix=False)
    return None


async def _skip_missing(pusher: Pusher[Model, RecordT], wanted: BentoModelInfo) -> PushResult:
    """Skip a model that is not stored locally, if the registry has it."""
    kind = pusher.kind
    with pusher.resources.progress("push", kind.word, wanted.tag) as progress:
        remote = await kind.routes.get(wanted.tag.name, wanted.tag.version or "")
        if remote is None or remote.upload_status != UPLOADED:
            raise NotFoundError(
                f"the model is neither in {kind.store.path} nor in the registry at {kind.endpoint}. "
                "`async-bento store list --models` shows the local models."
            )
        progress.enter("skipped", "not stored locally, already pushed")
    return PushResult(wanted.tag, skipped=True)


async def _register_hub_model(pusher: Pusher[Model, RecordT], wanted: BentoModelInfo) -> PushResult:
    """Register a model on the Hub; the Hub is asked only where the registry has no record of it.

    An existing record is left unchanged, with force too, as BentoML does: its version identifies the content.
    """
    started = time.monotonic()
    kind, hub_slots = pusher.kind, pusher.resources.hub_slots
    tag, model = wanted.tag, HubModel.of(wanted)
    with pusher.resources.progress("push", kind.word, tag) as progress:
        remote = await kind.routes.get(tag.name, tag.version or "")
        if remote is None:
            model = await freeze(model, hub_slots)
            if model.tag != tag:  # an older BentoML gave it another version
                tag = model.tag
                remote = await kind.routes.get(tag.name, tag.version or "")
        if remote is not None:
            progress.enter("skipped", "already pushed")
            return PushResult(tag, skipped=True, seconds=time.monotonic() - started)
        size = await measure(model, hub_slots)
        manifest = ModelManifestSchema.model_validate(model.manifest(size))
        body = CreateModelSchema(manifest=manifest, version=tag.version or "", build_at=datetime.now(timezone.utc))
        await pusher.ensure_repository(tag.name)
        await pusher.create_record(tag, body)
        progress.note = f"its files stay at {model.url}"
    return PushResult(tag, seconds=time.monotonic() - started)
