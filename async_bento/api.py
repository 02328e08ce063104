"""AsyncBentoAPI and AsyncModelAPI: push, pull, list, iter and get, in the order in which things happen."""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Literal, Protocol, runtime_checkable

from async_bento import kind as kinds
from async_bento.concurrency import Threads, for_each
from async_bento.errors import ConfigError, NotFoundError
from async_bento.kind import ItemT, RecordT
from async_bento.progress import Progress, ProgressListener, TqdmListener, is_watched
from async_bento.pull import get_item, pull_item, wants_newest
from async_bento.push import PushResult, Repositories, push_item
from async_bento.store.items import Bento, Model
from async_bento.store.store import BentoStore, ModelStore
from async_bento.store.tag import Tag
from async_bento.transfer.http import Transport
from async_bento.wire.client import RestApiClient
from async_bento.wire.schemas import (
    UPLOADED,
    BentoSchema,
    BentoWithRepositoryListSchema,
    BentoWithRepositorySchema,
    ModelSchema,
    ModelWithRepositoryListSchema,
    ModelWithRepositorySchema,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType

    from pydantic import SecretStr
    from typing_extensions import Self

    from async_bento.config import Config
    from async_bento.kind import Kind
    from async_bento.store.info import BentoModelInfo
    from async_bento.store.tag import TagLike

DISK_THREADS = 16
"""Threads of a client that read and write files and compute hashes: enough to keep a disk's queue filled."""

PAGE = 100
"""Items asked for at once when a list is walked."""


@runtime_checkable
class StoredItem(Protocol):
    """Anything with a directory, like BentoML's own `Bento` and `Model`."""

    @property
    def path(self) -> str | os.PathLike[str]:
        """Its directory."""
        ...


class Connection:
    """What the APIs of one client share: the registry, the threads, the budget, and who is told of progress.

    Args:
        client: Who speaks to the registry.
        config: The settings.
        listener: Who is told of progress.
    """

    def __init__(self, client: RestApiClient, config: Config, listener: ProgressListener | None) -> None:
        self.client = client
        self.config = config
        self.listener = listener
        self._threads: Threads | None = None
        self._transport: Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def transport(self) -> Transport:
        """What all transfers share on the running event loop."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._loop is not loop:
            transfer = self.config.transfer
            self._loop = loop
            self._threads = self._threads or Threads(DISK_THREADS)
            self._transport = Transport(
                config=self.config,
                threads=self._threads,
                slots=asyncio.Semaphore(transfer.concurrency),
                window=asyncio.Semaphore(max(1, transfer.window // transfer.range_size)),
            )
        return self._transport

    async def aclose(self, *, keep_client: bool) -> None:
        """Let the threads end and close the connections; both come back when they are needed again.

        Args:
            keep_client: Whether the connections are someone else's to close.
        """
        if self._threads is not None:
            self._threads.close()
        self._threads = self._transport = None
        if not keep_client:
            await self.client.aclose()


class ItemAPI(Generic[ItemT, RecordT]):
    """What the APIs of bentos and of models have in common.

    Args:
        connection: What they share.
        kind: Bentos or models.
    """

    def __init__(self, connection: Connection, kind: Kind[ItemT, RecordT]) -> None:
        self._connection = connection
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
            page = await self._kind.routes.list(start=start, count=PAGE, search=search, query=query)
            records = page.items if page else []
            new = [record for record in records if record.uid not in seen]
            seen.update(record.uid for record in new if record.uid)
            for record in new:
                yield record
            start += len(records)
            if page is None or not new or start >= page.total:
                return

    async def _first(self, limit: int | None, search: str | None, query: str | None) -> Sequence[RecordT]:
        records: list[RecordT] = []
        walk = self.iter(search=search, query=query)
        async with aclosing(walk):
            async for record in walk:
                if limit is not None and len(records) >= limit:
                    break
                records.append(record)
        return records

    def _progress(self, direction: Literal["push", "pull"], tag: Tag) -> Progress:
        return Progress(direction, self._kind.word, str(tag), self._connection.listener)

    async def _find(self, item: ItemT | TagLike | str | os.PathLike[str] | StoredItem) -> ItemT:
        """The item that is meant: itself, at a path, or in the store."""
        item_type, threads = self._kind.store.item_type, self._connection.transport.threads
        if isinstance(item, item_type):
            return item
        if isinstance(item, StoredItem):
            item = item.path
        elif isinstance(item, str) and not (os.sep in item or "/" in item or item in {".", ".."}):
            return await threads.run(self._kind.store.get, item)
        if isinstance(item, (str, os.PathLike)):
            return await threads.run(item_type.from_path, item)
        return await threads.run(self._kind.store.get, item)


class AsyncModelAPI(ItemAPI[Model, ModelWithRepositorySchema]):
    """Push, pull, list and get models. It belongs to an `AsyncBentoAPI`, as `api.models`.

    Args:
        connection: What it shares with the API of bentos.
        kind: Models.
    """

    async def push(
        self, model: Model | TagLike | str | os.PathLike[str] | StoredItem, *, force: bool = False, threads: int = 10
    ) -> PushResult:
        """Push a model to the registry.

        Args:
            model: A model, its tag, its directory, or a `bentoml.Model`.
            force: Whether to push it also when the registry has it already.
            threads: Parts in flight at most.

        Returns:
            What was done.

        Raises:
            NotFoundError: There is no such model here.
            BentoError: The push failed; the registry has been told.
        """
        found = await self._find(model)
        return await self.push_found(found, force=force, threads=threads, repositories=Repositories())

    async def push_found(self, model: Model, *, force: bool, threads: int, repositories: Repositories) -> PushResult:
        """Push a model that has been found, maybe beside others.

        Args:
            model: The model.
            force: Whether to push it also when the registry has it already.
            threads: Parts in flight at most.
            repositories: Those that are known to be there.

        Returns:
            What was done.

        Raises:
            BentoError: The push failed; the registry has been told.
        """
        with self._progress("push", model.tag) as progress:
            return await push_item(
                self._kind,
                model,
                force=force,
                bare=False,
                threads=_checked(threads),
                repositories=repositories,
                transport=self._connection.transport,
                progress=progress,
            )

    async def skip_if_pushed(self, wanted: BentoModelInfo, bento: Bento) -> PushResult:
        """Do without a model that is not here, where the registry has it.

        Args:
            wanted: The model.
            bento: The bento that needs it.

        Returns:
            That it was skipped.

        Raises:
            NotFoundError: The registry does not have it either.
            APIError: The registry was not reached, or refused.
        """
        with self._progress("push", wanted.tag) as progress:
            remote = await self._kind.routes.get(wanted.tag.name, wanted.tag.version or "")
            # What lives on a hub has a record and no bytes.
            if remote is None or not (wanted.is_huggingface or remote.upload_status == UPLOADED):
                raise NotFoundError(
                    f"{bento.tag} needs the model {wanted.tag}, which is neither in {self._kind.store.path} nor on the "
                    f"registry at {self._connection.client.endpoint}; `bentoml models list` shows what is here"
                )
            progress.enter("skipped", "not here, but on the registry")
            return PushResult(wanted.tag, skipped=True)

    async def pull(self, tag: TagLike | str, *, force: bool = False, query: str | None = None) -> Model | None:
        """Pull a model from the registry into the local store.

        Args:
            tag: Its tag. Without a version, or with `latest`, the newest on the registry is pulled, unless the local
                one is as new.
            force: Whether to replace the local copy, which stands until the new one is whole.
            query: What the newest must match, like `label:stage=prod`; without effect where the tag has a version.

        Returns:
            The local model; None for one whose files live on the Hugging Face Hub.

        Raises:
            NotFoundError: The registry has no such model.
            BentoError: The pull failed; the local copy is as it was.
        """
        wanted = Tag.parse(tag)
        if query and not wants_newest(wanted):
            warnings.warn(f"`query` has no effect: {wanted} names a version", stacklevel=2)
            query = None
        with self._progress("pull", wanted) as progress:
            return await pull_item(
                self._kind,
                wanted,
                force=force,
                query=query,
                transport=self._connection.transport,
                progress=progress,
            )

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

    async def get(self, name: str, version: str | None = None) -> ModelSchema:
        """Get a model's record from the registry.

        Args:
            name: Its name, or its tag.
            version: Its version; None or `latest` for the newest.

        Returns:
            The record.

        Raises:
            NotFoundError: The registry has no such model.
            APIError: The registry was not reached, or refused.
        """
        return await get_item(self._kind, _tag_of(name, version))


class AsyncBentoAPI(ItemAPI[Bento, BentoWithRepositorySchema]):
    """Push, pull, list and get bentos; `models` does the same for models.

    Endpoint and token are looked for as `async_bento.config.find_credentials` says: arguments, a named context,
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
        progress: True for bars, False for none, or who is told; bars where someone looks by default.

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
        connection = Connection(client, config or client.config, _listener(progress))
        self._models_here = model_store or ModelStore()
        super().__init__(connection, kinds.bentos(client, bento_store or BentoStore(), self._models_here))
        self.models = AsyncModelAPI(connection, kinds.models(client, self._models_here))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(endpoint={self._connection.client.endpoint!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, but those of a client that was given, and let the threads end."""
        await self._connection.aclose(keep_client=self._lent)

    async def push(
        self,
        bento: Bento | TagLike | str | os.PathLike[str] | StoredItem,
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
            NotFoundError: There is no such bento here, or one of its models is neither here nor on the registry.
            BentoError: The push failed; the registry has been told.
        """
        began = time.monotonic()
        found = await self._find(bento)
        repositories = Repositories()
        models = await self._push_models(found, force=force, threads=_checked(threads), repositories=repositories)
        with self._progress("push", found.tag) as progress:
            progress.note = _count_models(models)
            result = await push_item(
                self._kind,
                found,
                force=force,
                bare=bare,
                threads=threads,
                repositories=repositories,
                transport=self._connection.transport,
                progress=progress,
            )
        return replace(result, models=models, seconds=time.monotonic() - began)

    async def _push_models(
        self, bento: Bento, *, force: bool, threads: int, repositories: Repositories
    ) -> tuple[PushResult, ...]:
        results: dict[Tag, PushResult] = {}

        async def push_one(wanted: BentoModelInfo) -> None:
            model = await self._connection.transport.threads.run(_find_model, wanted, bento, self._models_here)
            results[wanted.tag] = (
                await self.models.push_found(model, force=force, threads=threads, repositories=repositories)
                if model is not None
                else await self.models.skip_if_pushed(wanted, bento)
            )

        await for_each(push_one, bento.models, self._connection.config.transfer.concurrency)
        return tuple(results[wanted.tag] for wanted in bento.models)

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
            with_models: Whether to pull its models too.
            bento_store: Where to put it; the API's own store by default.

        Returns:
            The local bento.

        Raises:
            NotFoundError: The registry has no such bento, or lacks one of its models.
            BentoError: The pull failed; the local copy is as it was.
        """
        kind = replace(self._kind, store=bento_store) if bento_store else self._kind
        wanted = Tag.parse(tag)
        with self._progress("pull", wanted) as progress:
            bento = await pull_item(kind, wanted, force=force, transport=self._connection.transport, progress=progress)
        if bento is None:
            raise NotFoundError(f"{wanted} has no files on the registry")
        if with_models:
            await self._pull_models(bento)
        return bento

    async def _pull_models(self, bento: Bento) -> None:
        async def pull_one(wanted: BentoModelInfo) -> None:
            await self.models.pull(wanted.tag)

        await for_each(pull_one, bento.models, self._connection.config.transfer.concurrency)

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

    async def get(self, name: str, version: str | None = None) -> BentoSchema:
        """Get a bento's record from the registry.

        Args:
            name: Its name, or its tag.
            version: Its version; None or `latest` for the newest.

        Returns:
            The record.

        Raises:
            NotFoundError: The registry has no such bento.
            APIError: The registry was not reached, or refused.
        """
        return await get_item(self._kind, _tag_of(name, version))


def _listener(progress: bool | ProgressListener | None) -> ProgressListener | None:
    if progress is None:
        progress = is_watched()
    if isinstance(progress, bool):
        return TqdmListener() if progress else None
    return progress


def _tag_of(name: str, version: str | None) -> Tag:
    return Tag.parse(name) if version is None else Tag(name, version)


def _checked(threads: int) -> int:
    if threads < 1:
        raise ConfigError(f"threads={threads}: there must be one part in flight at least")
    return threads


def _find_model(wanted: BentoModelInfo, bento: Bento, store: ModelStore) -> Model | None:
    """A bento's model: in its own directory, where it was exported with its models, or in the store."""
    for place in (ModelStore(bento.path / "models"), store):
        with suppress(NotFoundError):
            return place.get(wanted.tag, prefix=False)
    return None


def _count_models(models: Sequence[PushResult]) -> str:
    if not models:
        return ""
    skipped = sum(model.skipped for model in models)
    return f"{len(models)} model{'s' if len(models) > 1 else ''}" + (f", {skipped} skipped" if skipped else "")
