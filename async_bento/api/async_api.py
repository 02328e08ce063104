"""AsyncBentoAPI: push, pull, list, iter, get and delete bentos."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, overload

from async_bento._core.tag import Tag, refuse_pattern
from async_bento.api import kinds
from async_bento.api.async_models import AsyncModelAPI
from async_bento.api.bento_models import push_with_models
from async_bento.api.copy import copy_item, copy_with_models
from async_bento.api.deletion import delete_record
from async_bento.api.destination import make_puller, pull_bento
from async_bento.api.item_api import ItemAPI
from async_bento.api.labels import check_settable_labels, select_version
from async_bento.api.pull import Puller
from async_bento.api.push import Pusher, PushOptions, PushResult
from async_bento.api.push_list import as_list, push_each
from async_bento.api.records import get_record, wanted_tag
from async_bento.api.resources import Resources
from async_bento.errors import ConfigError
from async_bento.progress.listeners import choose_listener
from async_bento.rest.client import RestApiClient
from async_bento.rest.schemas import (
    BentoFullSchema,
    BentoWithRepositoryListSchema,
    BentoWithRepositorySchema,
)
from async_bento.store.items import Bento
from async_bento.store.store import BentoStore, ModelStore
from async_bento.transfer.copy import CopyReads

if TYPE_CHECKING:
    import os
    from builtins import list as list_of  # the APIs have a method `list`
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from pydantic import SecretStr
    from typing_extensions import Self

    from async_bento._core.tag import AnyTag
    from async_bento.api.push_list import AnyItem
    from async_bento.config import Config
    from async_bento.progress.events import ProgressListener


class AsyncBentoAPI(ItemAPI[Bento, BentoWithRepositorySchema]):
    """Push, pull, list, get and delete bentos; `models` does the same for models.

    Endpoint and token come from the strongest of: arguments, a named context, `ASYNC_BENTO_*` and `BENTO_CLOUD_*`
    variables, the current context of `.yatai.yaml`. All calls of one API share one budget of connections and memory, so
    many calls may run concurrently. An API belongs to one event loop at a time.

    Args:
        client: The client of the registry, which the caller closes; built from the next three arguments by default.
        endpoint: The URL of the registry.
        api_token: The token for it.
        context: The name of a context in `.yatai.yaml`.
        bento_store: The store of bentos; `$BENTOML_HOME/bentos` by default.
        model_store: The store of models; `$BENTOML_HOME/models` by default.
        config: The settings; the defaults and the `ASYNC_BENTO_*` variables by default.
        progress: True for bars, or lines of text where no bars can be drawn, as in the log of a CI job; False for
            neither; or a function that takes a `ProgressEvent`. By default True in a terminal or a notebook. The
            variable `ASYNC_BENTO_PROGRESS` is for the command only.

    Attributes:
        models: The API of models.

    Raises:
        ConfigError: An argument or a setting is invalid, or both a client and arguments for one are passed. A missing
            token or context is an error of the first call, which reads `.yatai.yaml`; reading blocks.
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
            raise ConfigError(
                "cannot use an endpoint, token or context with a client: a client has its own. Pass either."
            )
        self._keep_client = client is not None
        client = client or RestApiClient(endpoint, api_token, context=context, config=config)
        resources = Resources(client, config or client.config, choose_listener(progress))
        model_store = model_store or ModelStore()
        super().__init__(resources, kinds.bentos(client, bento_store or BentoStore(), model_store))
        self._model_kind = kinds.models(client, model_store)
        self.models = AsyncModelAPI(resources, self._model_kind)

    def __repr__(self) -> str:
        return repr(self._resources.client).replace("RestApiClient", "AsyncBentoAPI", 1)

    async def __aenter__(self) -> Self:
        self._resources.check_open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, except those of a client that was passed in, and stop the worker threads.

        Calls that are still running are cancelled, and raise `ClosedError`, as does every later call.
        """
        await self._resources.aclose(keep_client=self._keep_client)

    def _twin(self) -> AsyncBentoAPI:
        """Make an API of the same registry, stores and settings for another event loop."""
        return AsyncBentoAPI(
            self._resources.client,
            bento_store=BentoStore(self._kind.store.path),
            model_store=ModelStore(self._model_kind.store.path),
            config=self._resources.config,
            progress=False,
        )

    @overload
    async def push(  # type: ignore[overload-overlap]  # a str is one tag
        self,
        bento: AnyItem,
        *,
        force: bool = False,
        bare: bool = False,
        threads: int = 10,
        labels: Mapping[str, str] | None = None,
        keep_labels: bool = False,
    ) -> PushResult: ...

    @overload
    async def push(
        self,
        bento: Iterable[AnyItem],
        *,
        force: bool = False,
        bare: bool = False,
        threads: int = 10,
        labels: Mapping[str, str] | None = None,
        keep_labels: bool = False,
    ) -> list_of[PushResult]: ...

    async def push(
        self,
        bento: AnyItem | Iterable[AnyItem],
        *,
        force: bool = False,
        bare: bool = False,
        threads: int = 10,
        labels: Mapping[str, str] | None = None,
        keep_labels: bool = False,
    ) -> PushResult | list_of[PushResult]:
        """Push a bento to the registry, its models first; or several bentos concurrently, shared models once.

        Args:
            bento: A bento, its tag, its directory, or a `bentoml.Bento`; or a list of these.
            force: Push the bento and its models also when the registry has them already.
            bare: Push the record alone, without the files, for development.
            threads: The most parts in flight at once, per item.
            labels: Labels to add to those of the bento in the registry, like `{"stage": "prod"}`; also if the registry
                has the bento already. Its models are not labelled.
            keep_labels: Keep the labels of a replaced record that the bento does not set. By default they are dropped,
                with a warning.

        Returns:
            The outcome, with that of each model; for a list, a list of the outcomes in the same order.

        Raises:
            NotFoundError: The store has no such bento, or neither the store nor the registry has one of its models.
            ModelsError: More than one of its models could not be pushed.
            BentoError: The push failed. If it has a record and the registry can be reached, the status is `failed`.
            PushesError: Bentos of a list failed. The others were pushed.

        Examples:
            >>> result = await api.push("iris_classifier:v1")
            >>> results = await api.push(["iris_classifier:v1", "fraud_detector:v1"])
        """
        own = check_settable_labels(labels)
        options = PushOptions(force=force, threads=threads, bare=bare, labels=own, keep_labels=keep_labels)
        async with self._resources.call():
            bentos = Pusher(self._resources, self._kind, options)
            # A model is never pushed without its files; the labels are the bento's.
            models = Pusher(self._resources, self._model_kind, replace(options, bare=False, labels={}))

            async def push_one(bento: AnyItem) -> PushResult:
                found = await self._find(bento)
                return await bentos.once(found.tag, partial(push_with_models, bentos, models, found))

            items, is_list = as_list(bento)
            return await (push_each(push_one, items, "push", "bento") if is_list else push_one(items[0]))

    @overload
    async def copy(  # type: ignore[overload-overlap]  # a str is one tag
        self,
        tag: AnyTag,
        target: AsyncBentoAPI,
        *,
        force: bool = False,
        keep_labels: bool = False,
        with_models: bool = True,
        threads: int = 10,
    ) -> PushResult: ...

    @overload
    async def copy(
        self,
        tag: Iterable[AnyTag],
        target: AsyncBentoAPI,
        *,
        force: bool = False,
        keep_labels: bool = False,
        with_models: bool = True,
        threads: int = 10,
    ) -> list_of[PushResult]: ...

    async def copy(
        self,
        tag: AnyTag | Iterable[AnyTag],
        target: AsyncBentoAPI,
        *,
        force: bool = False,
        keep_labels: bool = False,
        with_models: bool = True,
        threads: int = 10,
    ) -> PushResult | list_of[PushResult]:
        """Copy a bento to another registry, its models first; or several bentos concurrently, shared models once.

        The record is copied with its labels, its description and the time of the build. The bytes pass through memory
        alone: at most `threads` parts and the window of the source. What the target has is skipped. A copy that was
        interrupted, also by a crash, is resumed by the next one.

        Args:
            tag: The tag, or a list of tags. Without a version, or with `latest`, the newest that was uploaded.
            target: The API of the other registry, on the same event loop.
            force: Copy the bento and its models also when the target has them already.
            keep_labels: With `force`, keep the labels of the target's records; those of the copy win.
            with_models: Copy the models of the bento, too.
            threads: The most parts in flight at once, per item.

        Returns:
            The outcome, as of a push to the target; for a list, a list of the outcomes in the same order.

        Raises:
            NotFoundError: The registry has no such bento, or no files of it.
            ConfigError: Both APIs are of the same registry.
            ModelsError: More than one of its models could not be copied.
            BentoError: The copy failed. The status of the target's record is `failed`, if the target can be reached.
            PushesError: Bentos of a list failed. The others were copied.

        Examples:
            >>> production = AsyncBentoAPI(context="production")
            >>> result = await api.copy("iris_classifier:v1", production)
        """
        options = PushOptions(force=force, threads=threads, keep_labels=keep_labels)
        async with self._resources.call(), target._resources.call():
            reads = CopyReads.of(self._resources.pool, threads)
            bentos = self._copier(target, options, reads)
            models = self.models._copier(target.models, options, reads)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - of ItemAPI, too

            async def copy_one(tag: AnyTag) -> PushResult:
                wanted = Tag.parse(tag)
                return await (copy_with_models(bentos, models, wanted) if with_models else copy_item(bentos, wanted))

            tags, is_list = as_list(tag)
            return await (push_each(copy_one, tags, "copy", "bento") if is_list else copy_one(tags[0]))

    async def pull(
        self,
        tag: AnyTag,
        *,
        force: bool = False,
        with_models: bool = False,
        bento_store: BentoStore | None = None,
        path: str | os.PathLike[str] | None = None,
        label: str | Mapping[str, str] | None = None,
    ) -> Bento:
        """Pull a bento from the registry into the local store, or into a directory.

        A pull into the directory `path` neither reads nor changes a store. Its files are in a hidden directory next to
        `path` until one rename puts them there. If it fails or is cancelled, nothing is left of it, and the next pull
        starts from the beginning, while a pull into a store is resumed.

        Args:
            tag: The tag. Without a version, or with `latest`, the newest that was uploaded to the registry is pulled,
                unless the local newest is as new.
            force: Replace the local copy, which stays until the new one is complete.
            with_models: Pull its models too, into their store, or into `models` in the directory `path`. Models on the
                Hugging Face Hub are downloaded to `$BENTOML_HF_CACHE_DIR` or the cache of Hugging Face.
            bento_store: The store to pull into; the API's own store by default.
            path: The directory for the files, with `bento.yaml` at its top: absent, empty, or with a bento, which
                `force` replaces along with all other files there. A mount or the working directory is filled in place.
            label: Pull the newest version with this label, `stage=prod`, or with all labels of a mapping. The tag has
                no version.

        Returns:
            The local bento.

        Raises:
            NotFoundError: The registry has no such bento, or neither the registry nor the Hub has one of its models.
            PathExistsError: The directory `path` is not empty.
            ConfigError: A model is on the Hub, and `async-bento[huggingface]` is not installed. Or `label` is invalid,
                or given for a tag with a version.
            ModelsError: More than one of its models could not be pulled. The bento was, but not into `path`.
            BentoError: The pull failed; the local copy is unchanged.

        Examples:
            >>> bento = await api.pull("iris_classifier", with_models=True)
            >>> print(bento.path)
        """
        refuse_pattern(tag, "pull", "api.list()")
        wanted = Tag.parse(tag)
        selector = select_version(wanted, label)
        bentos = make_puller(self._resources, self._kind, bento_store, path)
        models = Puller(self._resources, self._model_kind) if with_models else None
        async with self._resources.call():
            return await pull_bento(bentos, models, wanted, force=force, selector=selector)

    async def list(
        self, *, search: str | None = None, query: str | None = None, limit: int | None = None
    ) -> BentoWithRepositoryListSchema:
        """List the bentos in the registry, newest first.

        Args:
            search: A part of the name.
            query: A query in the registry's language, like `label:key=value`, `sort:size-desc`, or a word.
            limit: The most bentos to return; None for all.

        Returns:
            The bentos.

        Raises:
            APIError: The registry could not be reached, or refused the request.

        Examples:
            >>> for bento in await api.list(search="iris", limit=10):
            ...     print(bento.tag, bento.size_bytes)
        """
        bentos, total = await self._first(limit, search, query)
        return BentoWithRepositoryListSchema(count=len(bentos), total=total, items=bentos)

    async def get(self, name: AnyTag, version: str | None = None) -> BentoFullSchema:
        """Get the record of a bento from the registry.

        Args:
            name: The name, or a whole tag like `name:version`.
            version: The version; None or `latest` for the newest that was uploaded.

        Returns:
            The record, with its models, whatever the version.

        Raises:
            NotFoundError: The registry has no such record.
            APIError: The registry could not be reached, or refused the request.

        Examples:
            >>> record = await api.get("iris_classifier:v1")
            >>> print(record.tag, [model.tag for model in record.models])
        """
        async with self._resources.call():
            return await get_record(self._resources.client.bentos, wanted_tag(name, version))

    async def delete(self, tag: AnyTag) -> BentoFullSchema:
        """Delete a bento from the registry, without its models; the local store is not changed.

        Args:
            tag: The tag, with a version other than `latest`.

        Returns:
            The record of the deleted bento.

        Raises:
            InvalidTagError: The tag has no version.
            NotFoundError: The registry has no such record.
            NotSupportedError: The registry is not async-bento's own, and cannot delete bentos.
            APIError: The registry could not be reached, or refused the request.
        """
        async with self._resources.call():
            return await delete_record(self._resources.client.bentos, Tag.parse(tag))
