"""The models of a bento, all at once: those with files of their own, and those that live on the Hugging Face Hub.

One that fails does not stop the others: what they have moved is not lost. Then it is told, each by its name.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from async_bento._core.concurrency import for_each
from async_bento.api.pull import pull_item
from async_bento.api.push import PushResult, create, push_item
from async_bento.errors import BentoError, ModelsError, NotFoundError
from async_bento.integrations.huggingface.client import download, freeze, measure
from async_bento.integrations.huggingface.model import HubModel
from async_bento.rest.request_schemas import CreateModelSchema
from async_bento.rest.schemas import UPLOADED, ModelManifestSchema
from async_bento.store.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.api.kinds import Kind, RecordT
    from async_bento.api.push import Repositories
    from async_bento.api.resources import Resources
    from async_bento.store.items import Bento, Model
    from async_bento.store.metadata import BentoModelInfo
    from async_bento.store.store import Store
    from async_bento.store.tag import Tag


async def push_models(
    resources: Resources,
    kind: Kind[Model, RecordT],
    bento: Bento,
    *,
    force: bool,
    threads: int,
    repositories: Repositories,
) -> tuple[PushResult, ...]:
    """Push a bento's models. Those that live on the Hub are registered, and no bytes are sent.

    Args:
        resources: Whose registry, threads and budget.
        kind: Models.
        bento: The bento.
        force: Whether to push those too that the registry has already.
        threads: Parts in flight at most, for each model.
        repositories: Those that are known to be there.

    Returns:
        What was done with each, in the bento's order.

    Raises:
        NotFoundError: A model is neither here nor on the registry.
        ModelsError: More than one failed.
        BentoError: One failed.
    """
    results: dict[Tag, PushResult] = {}

    async def push_one(wanted: BentoModelInfo) -> None:
        if wanted.is_huggingface:
            results[wanted.tag] = await _register_hub_model(resources, kind, wanted, repositories)
            return
        model = await resources.threads.run(_find, wanted.tag, bento, kind.store)
        results[wanted.tag] = (
            await push_item(resources, kind, model, force=force, threads=threads, repositories=repositories)
            if model is not None
            else await _do_without(resources, kind, wanted)
        )

    await _each(resources, bento, push_one, f"{bento.tag} was not pushed, since {{}} could not be")
    return tuple(results[wanted.tag] for wanted in bento.models)


async def pull_models(resources: Resources, kind: Kind[Model, RecordT], bento: Bento) -> None:
    """Pull a bento's models: into the store, and those that live on the Hub into HF's cache.

    What is here is not asked for. The Hub is asked without the registry, as at BentoML.

    Args:
        resources: Whose registry, threads and budget.
        kind: Models.
        bento: The bento, which is here already.

    Raises:
        NotFoundError: The registry or the Hub has no such model.
        ConfigError: A model lives on the Hub, and huggingface_hub is not installed.
        ModelsError: More than one failed.
        BentoError: One failed; what has come of it from the Hub is kept for the next time.
    """

    async def pull_one(wanted: BentoModelInfo) -> None:
        if wanted.is_huggingface:
            await _fetch_from_hub(resources, wanted)
        else:
            await pull_item(resources, kind, wanted.tag)

    await _each(resources, bento, pull_one, f"{bento.tag} is here, but {{}} could not be pulled")


async def _each(
    resources: Resources, bento: Bento, operation: Callable[[BentoModelInfo], Awaitable[None]], summary: str
) -> None:
    """Do something with each model, and tell of all that failed when all have ended."""
    models = {wanted.tag: wanted for wanted in bento.models}
    failures: dict[Tag, BentoError] = {}

    async def attempt(wanted: BentoModelInfo) -> None:
        try:
            await operation(wanted)
        except BentoError as error:
            failures[wanted.tag] = error

    await for_each(attempt, models.values(), resources.config.transfer.concurrency)
    failed = [(tag, failures[tag]) for tag in models if tag in failures]
    if len(failed) == 1:
        tag, error = failed[0]
        error.args = (f"{summary.format(f'its model {tag}')}: {error}",)
        raise error
    if failed:
        alike: defaultdict[str, list[str]] = defaultdict(list)  # most fail for one reason: nobody listens, say
        for tag, error in failed:
            alike[str(error)].append(str(tag))
        told = "".join(f"\n  {', '.join(tags)}: {why}" for why, tags in alike.items())
        raise ModelsError(
            f"{summary.format(f'{len(failed)} of its {len(models)} models')}:{told}",
            failures={str(tag): error for tag, error in failed},
        ) from failed[0][1]


def _find(tag: Tag, bento: Bento, store: Store[Model]) -> Model | None:
    """A bento's model: in its own directory, where it was exported with its models, or in the store."""
    for place in (ModelStore(bento.path / "models"), store):
        with suppress(NotFoundError):
            return place.get(tag, prefix=False)
    return None


async def _do_without(resources: Resources, kind: Kind[Model, RecordT], wanted: BentoModelInfo) -> PushResult:
    """Go on without a model that is not here, where the registry has it."""
    with resources.progress("push", kind.word, wanted.tag) as progress:
        remote = await kind.routes.get(wanted.tag.name, wanted.tag.version or "")
        if remote is None or remote.upload_status != UPLOADED:
            raise NotFoundError(
                f"it is neither in {kind.store.path} nor on the registry at {resources.client.endpoint}; "
                "`bentoml models list` shows what is here"
            )
        progress.enter("skipped", "not here, but on the registry")
    return PushResult(wanted.tag, skipped=True)


async def _register_hub_model(
    resources: Resources, kind: Kind[Model, RecordT], wanted: BentoModelInfo, repositories: Repositories
) -> PushResult:
    """Register a model that lives on the Hub; the Hub is asked only where the registry does not have it.

    A record that is there is left as it is, also by force, as BentoML does: its version says what it is.
    """
    began = time.monotonic()
    routes, tag, model = kind.routes, wanted.tag, HubModel.of(wanted)
    with resources.progress("push", kind.word, tag) as progress:
        remote = await routes.get(tag.name, tag.version or "")
        if remote is None:
            model = await freeze(model, resources.hub_slots)
            if model.tag != tag:  # an older BentoML gave it another version
                tag = model.tag
                remote = await routes.get(tag.name, tag.version or "")
        if remote is not None:
            progress.enter("skipped", "already there")
            return PushResult(tag, skipped=True, seconds=time.monotonic() - began)
        size = await measure(model, resources.hub_slots)
        manifest = ModelManifestSchema.model_validate(model.manifest(size))
        body = CreateModelSchema(manifest=manifest, version=tag.version or "", build_at=datetime.now(timezone.utc))
        await repositories.ensure(routes, tag.name)
        await create(routes, tag, body)
        progress.note = f"its files stay at {model.url}"
    return PushResult(tag, seconds=time.monotonic() - began)


async def _fetch_from_hub(resources: Resources, wanted: BentoModelInfo) -> None:
    """Bring a model from the Hub into HF's cache, where the bento's code looks for it."""
    with resources.progress("pull", "model", wanted.tag) as progress:
        path = await download(HubModel.of(wanted), resources.hub_slots, progress)
        if progress.bytes_done == 0:
            progress.enter("skipped", f"nothing to fetch: its files are in {path}")
        progress.note = f"its files are in {path}"
