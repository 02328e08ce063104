"""AsyncBentoAPI and AsyncModelAPI: push, pull, list, iter and get, in the order in which things happen."""

from __future__ import annotations

import os
import time
import warnings
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, runtime_checkable

from async_bento._core.concurrency import background_task
from async_bento.api import kinds
from async_bento.api.bento_models import pull_models, push_models
from async_bento.api.kinds import ItemT, RecordT
from async_bento.api.pull import get_item, pull_item, wants_newest
from async_bento.api.push import PushResult, Repositories, is_pushed, push_item
from async_bento.api.resources import Resources, call
from async_bento.errors import ConfigError, NotFoundError
from async_bento.progress.listeners import choose_listener
from async_bento.rest.client import RestApiClient
from async_bento.rest.schemas import (
    BentoWithRepositoryListSchema,
    BentoWithRepositorySchema,
    ModelWithRepositoryListSchema,
    ModelWithRepositorySchema,
)
from async_bento.store.items import Bento, Model
from async_bento.store.store import BentoStore, ModelStore
from async_bento.store.tag import Tag

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType

    from pydantic import SecretStr
    from typing_extensions import Self

    from async_bento.api.kinds import Kind
    from async_bento.config import Config
    from async_bento.progress.events import ProgressListener
    from async_bento.store.tag import TagLike

PAGE = 100
"""Items asked for at once when a list is walked."""


@runtime_checkable
class TaggedItem(Protocol):
    """Anything with a tag, like BentoML's own `BentoModel`, which means a model of the store."""

    @property
    def tag(self) -> TagLike:
        """Its tag."""
        ...


@runtime_checkable
class StoredItem(TaggedItem, Protocol):
    """Anything with a tag and a directory, like BentoML's own `Bento` and `Model`; its `Tag` has a `path` too."""

    @property
    def path(self) -> str | os.PathLike[str]:
        """Its directory."""
        ...


class ItemAPI(Generic[ItemT, RecordT]):
    """What the APIs of bentos and of models have in common.

    Args:
        resources: What they share.
        kind: Bentos or models.
    """

    def __init__(self, resources: Resources, kind: Kind[ItemT, RecordT]) -> None:
        self._resources = resources
        self._kind: Kind[ItemT, RecordT] = kind

    async def iter(self, *, search: str | None = None, query: str | None = None) -> AsyncGenerator[RecordT]:
        """Walk all of them on the registry, newest first, a page at a time (GET `/api/v1/bentos`, `/api/v1/models`).

        Args:
            search: What the name must hold.
            query: What else must match, in the registry's words: `label:key=value`, `sort:size-desc`, a word.

        Yields:
            One record after the other.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        seen: set[str] = set()  # while the list is walked, a push moves what is on one page to the next
        start = 0
        while True:
            async with self._resources.call():
                page = await self._kind.routes.list(start=start, count=PAGE, search=search, query=query)
            records = page.items if page else []
            new = [record for record in records if record.uid not in seen]
            seen.update(record.uid for record in new if record.uid)
            for record in new:
                yield record
            start += len(records)
            if page is None or not new or 0 < page.total <= start:  # 0 where the server does not say
                return

    @call
    async def get(self, name: str, version: str | None = None) -> RecordT:
        """Get a record from the registry.

        Args:
            name: The name, or the tag.
            version: The version; None or `latest` for the newest.

        Returns:
            The record.

        Raises:
            NotFoundError: The registry has none.
            APIError: The registry was not reached, or refused.
        """
        return await get_item(self._kind, _tag_of(name, version))

    async def _first(self, limit: int | None, search: str | None, query: str | None) -> Sequence[RecordT]:
        records: list[RecordT] = []
        walk = self.iter(search=search, query=query)
        async with aclosing(walk):
            async for record in walk:
                if limit is not None and len(records) >= limit:
                    break
                records.append(record)
        return records

    async def _find(self, item: ItemT | TagLike | str | os.PathLike[str] | TaggedItem) -> ItemT:
        """The item that is meant: itself, at a path, or in the store."""
        item_type, threads = self._kind.store.item_type, self._resources.threads
        if isinstance(item, item_type):
            return item
        if isinstance(item, StoredItem):
            item = item.path
        elif isinstance(item, str) and not (os.sep in item or "/" in item or item in {".", ".."}):
            return await threads.run(self._kind.store.get, item)
        if isinstance(item, (str, os.PathLike)):
            return await threads.run(item_type.from_path, item)
        return await threads.run(self._kind.store.get, item.tag if isinstance(item, TaggedItem) else item)


class AsyncModelAPI(ItemAPI[Model, ModelWithRepositorySchema]):
    """Push, pull, list and get models. It belongs to an `AsyncBentoAPI`, as `api.models`.

    Args:
        resources: What it shares with the API of bentos.
        kind: Models.
    """

    @call
    async def push(
        self, model: Model | TagLike | str | os.PathLike[str] | TaggedItem, *, force: bool = False, threads: int = 10
    ) -> PushResult:
        """Push a model to the registry.

        Args:
            model: A model, its tag, its directory, or a `bentoml.Model` or `bentoml.models.BentoModel`.
            force: Whether to push it also when the registry has it already.
            threads: Parts in flight at most.

        Returns:
            What was done.

        Raises:
            NotFoundError: There is no such model here.
            BentoError: The push failed; the registry has been told.
        """
        return await push_item(
            self._resources,
            self._kind,
            await self._find(model),
            force=force,
            threads=_checked(threads),
            repositories=Repositories(),
        )

    @call
    async def pull(
        self,
        tag: TagLike | str,
        *,
        force: bool = False,
        model_store: ModelStore | None = None,
        query: str | None = None,
    ) -> Model | None:
        """Pull a model from the registry into the local store.

        Args:
            tag: Its tag. Without a version, or with `latest`, the newest on the registry is pulled, unless the local
                one is as new.
            force: Whether to replace the local copy, which stands until the new one is whole.
            model_store: Where to put it; the API's own store by default.
            query: What the newest must match, like `label:stage=prod`; without effect where the tag has a version.

        Returns:
            The local model; None for one whose files live on the Hugging Face Hub.

        Raises:
            NotFoundError: The registry has no such model.
            BentoError: The pull failed; the local copy is as it was.
        """
        wanted = Tag.parse(tag)
        if query and not wants_newest(wanted):
            warnings.warn(f"`query` has no effect: {wanted} names a version", stacklevel=3)
            query = None
        kind = replace(self._kind, store=model_store) if model_store else self._kind
        return await pull_item(self._resources, kind, wanted, force=force, query=query)

    async def list(
        self, *, search: str | None = None, query: str | None = None, limit: int | None = None
    ) -> ModelWithRepositoryListSchema:
        """List the models on the registry, newest first.

        Args:
            search: What the name must hold.
            query: What else must match, in the registry's words: `label:key=value`, `sort:size-desc`, a word.
            limit: How many at most; None for all.

        Returns:
            The models.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        models = await self._first(limit, search, query)
        return ModelWithRepositoryListSchema(count=len(models), total=len(models), items=[*models])


class AsyncBentoAPI(ItemAPI[Bento, BentoWithRepositorySchema]):
    """Push, pull, list and get bentos; `models` does the same for models.

    Endpoint and token are looked for in this order: arguments, a named context,
    `ASYNC_BENTO_*` and `BENTO_CLOUD_*` variables, the current context. All calls of one API share one budget of
    connections and memory, so many may run at once. An API belongs to one event loop at a time.

    Args:
        client: Who speaks to the registry, and stays the caller's to close; made of what follows by default.
        endpoint: The registry's URL.
        api_token: The token for it.
        context: A context of `.yatai.yaml`.
        bento_store: Where bentos lie; `$BENTOML_HOME/bentos` by default.
        model_store: Where models lie; `$BENTOML_HOME/models` by default.
        config: The settings; the defaults and the `ASYNC_BENTO_*` variables by default.
        progress: True for bars, or for lines of text where none can be drawn, as in the log of a CI job; False for
            neither; or who is told: any function that takes a `ProgressEvent`. By default True where someone looks.

    Raises:
        ConfigError: There is no token, a setting does not fit, or both a client and what makes one are given.
    """

    def __init__(
        self,
        client: RestApiClient | None = None,
        *,
        endpoint: str | None = None,
        api_token: str | SecretStr | None = None,
        context: str | None = None,
        bento_store: BentoStore | None = None,
        model_store: ModelStore | None = None,
        config: Config | None = None,
        progress: bool | ProgressListener | None = None,
    ) -> None:
        if client is not None and (endpoint or api_token or context):
            raise ConfigError("a client has its endpoint and token already: pass either the client or those")
        self._lent = client is not None
        client = client or RestApiClient(endpoint, api_token, context=context, config=config)
        resources = Resources(client, config or client.config, choose_listener(progress))
        model_store = model_store or ModelStore()
        super().__init__(resources, kinds.bentos(client, bento_store or BentoStore(), model_store))
        self._model_kind = kinds.models(client, model_store)
        self.models = AsyncModelAPI(resources, self._model_kind)

    def __repr__(self) -> str:
        return repr(self._resources.client).replace("RestApiClient", "AsyncBentoAPI", 1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, but those of a client that was given, and let the threads end.

        Calls that still run are ended as if they had been cancelled, and raise `ClosedError`.
        """
        await self._resources.aclose(keep_client=self._lent)

    @call
    async def push(
        self,
        bento: Bento | TagLike | str | os.PathLike[str] | TaggedItem,
        *,
        force: bool = False,
        bare: bool = False,
        threads: int = 10,
    ) -> PushResult:
        """Push a bento to the registry, its models first.

        Args:
            bento: A bento, its tag, its directory, or a `bentoml.Bento`.
            force: Whether to push it and its models also when the registry has them already.
            bare: Whether to push its record alone, without its files, for development.
            threads: Parts in flight at most, for each item.

        Returns:
            What was done.

        Raises:
            NotFoundError: There is no such bento here, or a model of it is neither here nor on the registry.
            ModelsError: More than one of its models could not be pushed.
            BentoError: The push failed; the registry has been told.
        """
        began = time.monotonic()
        found = await self._find(bento)
        repositories = Repositories()

        async def look() -> bool:  # while its models are pushed; of one without, the push itself asks
            return bool(found.models) and not force and await is_pushed(self._kind.routes, found.tag)

        async with background_task(look()) as looking:
            models = await push_models(
                self._resources,
                self._model_kind,
                found,
                force=force,
                threads=_checked(threads),
                repositories=repositories,
            )
            is_there = await looking
        result = await push_item(
            self._resources,
            self._kind,
            found,
            force=force,
            threads=threads,
            repositories=repositories,
            bare=bare,
            is_there=is_there,
            models=models,
        )
        return replace(result, seconds=time.monotonic() - began)

    @call
    async def pull(
        self,
        tag: TagLike | str,
        *,
        force: bool = False,
        with_models: bool = False,
        bento_store: BentoStore | None = None,
    ) -> Bento:
        """Pull a bento from the registry into the local store.

        Args:
            tag: Its tag. Without a version, or with `latest`, the newest on the registry is pulled, unless the local
                one is as new.
            force: Whether to replace the local copy, which stands until the new one is whole.
            with_models: Whether to pull its models too; those that live on the Hugging Face Hub come from there, into
                `$BENTOML_HF_CACHE_DIR` or HF's own cache.
            bento_store: Where to put it; the API's own store by default.

        Returns:
            The local bento.

        Raises:
            NotFoundError: The registry has no such bento, or it or the Hub lacks one of its models.
            ConfigError: A model lives on the Hub, and `async-bento[huggingface]` is not installed.
            ModelsError: The bento is here, and more than one of its models could not be pulled.
            BentoError: The pull failed; the local copy is as it was.
        """
        kind = replace(self._kind, store=bento_store) if bento_store else self._kind
        bento = await pull_item(self._resources, kind, Tag.parse(tag), force=force)
        if bento is None:
            raise NotFoundError(f"{tag} has no files on the registry")
        if with_models:
            await pull_models(self._resources, self._model_kind, bento)
        return bento

    async def list(
        self, *, search: str | None = None, query: str | None = None, limit: int | None = None
    ) -> BentoWithRepositoryListSchema:
        """List the bentos on the registry, newest first.

        Args:
            search: What the name must hold.
            query: What else must match, in the registry's words: `label:key=value`, `sort:size-desc`, a word.
            limit: How many at most; None for all.

        Returns:
            The bentos.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        bentos = await self._first(limit, search, query)
        return BentoWithRepositoryListSchema(count=len(bentos), total=len(bentos), items=[*bentos])


def _tag_of(name: str, version: str | None) -> Tag:
    return Tag.parse(name) if version is None else Tag(name, version)


def _checked(threads: int) -> int:
    if threads < 1:
        raise ConfigError(f"threads={threads}: there must be one part in flight at least")
    return threads
