"""BentoAPI: the blocking counterpart of AsyncBentoAPI.

The calls run on an event loop in a dedicated thread, so they work in plain scripts, in several threads, and where an
event loop is already running, as in a notebook. The methods' docstrings are copied from the async classes by
tests/api/blocking_docstrings.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast, overload

from async_bento.api.async_api import AsyncBentoAPI
from async_bento.api.blocking import close_api, copy_items
from async_bento.api.loop_thread import LoopThread
from async_bento.api.sync_item_api import BlockingItemAPI
from async_bento.api.sync_models import ModelAPI
from async_bento.rest.schemas import BentoWithRepositorySchema

if TYPE_CHECKING:
    import os
    from builtins import list as list_of  # the APIs have a method `list`
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from pydantic import SecretStr
    from typing_extensions import Self

    from async_bento._core.tag import AnyTag
    from async_bento.api.push import PushResult
    from async_bento.api.push_list import AnyItem
    from async_bento.api.sync_item_api import Push
    from async_bento.config import Config
    from async_bento.progress.events import ProgressListener
    from async_bento.rest.client import RestApiClient
    from async_bento.rest.schemas import (
        BentoFullSchema,
        BentoWithRepositoryListSchema,
    )
    from async_bento.store.items import Bento
    from async_bento.store.store import BentoStore, ModelStore


class BentoAPI(BlockingItemAPI[AsyncBentoAPI, BentoWithRepositorySchema]):
    """Push, pull, list, get and delete bentos, blocking; `models` does the same for models.

    The methods and parameters are those of `AsyncBentoAPI`. Use the API in a `with` statement, or call `close` at the
    end. Several threads may share one API. Ctrl-C cancels the running call and waits for its clean-up.

    Args:
        client: The client to use; the API closes it. By default, one is created from the arguments below.
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
        self._async = AsyncBentoAPI(
            client,
            endpoint=endpoint,
            api_token=api_token,
            context=context,
            bento_store=bento_store,
            model_store=model_store,
            config=config,
            progress=progress,
        )
        self._loop = LoopThread(partial(close_api, self._async, client))
        self.models = ModelAPI(self._async.models, self._loop)

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncBentoAPI", "BentoAPI", 1)

    def __enter__(self) -> Self:
        self._loop.check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and stop the threads. A later call raises `ClosedError`.

        Calls that are still running in other threads are cancelled, and raise `ClosedError`.
        """
        self._loop.close()

    @overload
    def push(  # type: ignore[overload-overlap]  # a str is one tag
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
    def push(
        self,
        bento: Iterable[AnyItem],
        *,
        force: bool = False,
        bare: bool = False,
        threads: int = 10,
        labels: Mapping[str, str] | None = None,
        keep_labels: bool = False,
    ) -> list_of[PushResult]: ...

    def push(
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
            >>> result = api.push("iris_classifier:v1")
            >>> results = api.push(["iris_classifier:v1", "fraud_detector:v1"])
        """
        push = cast("Push", self._async.push)
        options = {"force": force, "bare": bare, "threads": threads}
        return self._loop.run(push, bento, **options, labels=labels, keep_labels=keep_labels)

    @overload
    def copy(  # type: ignore[overload-overlap]  # a str is one tag
        self,
        tag: AnyTag,
        target: BentoAPI,
        *,
        force: bool = False,
        keep_labels: bool = False,
        with_models: bool = True,
        threads: int = 10,
    ) -> PushResult: ...

    @overload
    def copy(
        self,
        tag: Iterable[AnyTag],
        target: BentoAPI,
        *,
        force: bool = False,
        keep_labels: bool = False,
        with_models: bool = True,
        threads: int = 10,
    ) -> list_of[PushResult]: ...

    def copy(
        self,
        tag: AnyTag | Iterable[AnyTag],
        target: BentoAPI,
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
            target: The API of the other registry.
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
            >>> production = BentoAPI(context="production")
            >>> result = api.copy("iris_classifier:v1", production)
        """
        copy = cast("Push", self._async.copy)
        return self._loop.run(
            copy_items,
            copy,
            target._async,
            target._loop.open(),
            tag,
            force=force,
            keep_labels=keep_labels,
            with_models=with_models,
            threads=threads,
        )

    def pull(
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
            >>> bento = api.pull("iris_classifier", with_models=True)
            >>> print(bento.path)
        """
        return self._loop.run(
            self._async.pull,
            tag,
            force=force,
            with_models=with_models,
            bento_store=bento_store,
            path=path,
            label=label,
        )

    def list(
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
            >>> for bento in api.list(search="iris", limit=10):
            ...     print(bento.tag, bento.size_bytes)
        """
        return self._loop.run(self._async.list, search=search, query=query, limit=limit)

    def get(self, name: AnyTag, version: str | None = None) -> BentoFullSchema:
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
            >>> record = api.get("iris_classifier:v1")
            >>> print(record.tag, [model.tag for model in record.models])
        """
        return self._loop.run(self._async.get, name, version)

    def delete(self, tag: AnyTag) -> BentoFullSchema:
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
        return self._loop.run(self._async.delete, tag)
