"""AsyncModelAPI: push, pull, list, iter, get and delete models."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, overload

from async_bento._core.tag import Tag, refuse_pattern
from async_bento.api.copy import copy_item
from async_bento.api.deletion import delete_record
from async_bento.api.destination import make_puller
from async_bento.api.item_api import ItemAPI
from async_bento.api.labels import check_settable_labels, select_version
from async_bento.api.push import Pusher, PushOptions, PushResult
from async_bento.api.push_list import as_list, push_each
from async_bento.api.records import get_record, wanted_tag, wants_newest
from async_bento.rest.schemas import ModelWithRepositoryListSchema, ModelWithRepositorySchema
from async_bento.store.items import Model
from async_bento.transfer.copy import CopyReads

if TYPE_CHECKING:
    import os
    from builtins import list as list_of  # the API has a method `list`
    from collections.abc import Iterable, Mapping

    from async_bento._core.tag import AnyTag
    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.push_list import AnyItem
    from async_bento.integrations.huggingface.model import HuggingFaceModel
    from async_bento.store.store import ModelStore


class AsyncModelAPI(ItemAPI[Model, ModelWithRepositorySchema]):
    """Push, pull, list, get and delete models: `api.models` of an `AsyncBentoAPI`."""

    @overload
    async def push(  # type: ignore[overload-overlap]  # a str is one tag
        self,
        model: AnyItem,
        *,
        force: bool = False,
        threads: int = 10,
        labels: Mapping[str, str] | None = None,
        keep_labels: bool = False,
    ) -> PushResult: ...

    @overload
    async def push(
        self,
        model: Iterable[AnyItem],
        *,
        force: bool = False,
        threads: int = 10,
        labels: Mapping[str, str] | None = None,
        keep_labels: bool = False,
    ) -> list_of[PushResult]: ...

    async def push(
        self,
        model: AnyItem | Iterable[AnyItem],
        *,
        force: bool = False,
        threads: int = 10,
        labels: Mapping[str, str] | None = None,
        keep_labels: bool = False,
    ) -> PushResult | list_of[PushResult]:
        """Push a model to the registry, or several models concurrently.

        Args:
            model: A model, its tag, its directory, or a `bentoml.Model` or `bentoml.models.BentoModel`; or a list of
                these.
            force: Push the model also when the registry has it already.
            threads: The most parts in flight at once, per model.
            labels: Labels to add to those of the model in the registry, like `{"stage": "prod"}`; also if the registry
                has the model already.
            keep_labels: Keep the labels of a replaced record that the model does not set. By default they are dropped,
                with a warning.

        Returns:
            The outcome; for a list, a list of the outcomes in the same order.

        Raises:
            NotFoundError: The store has no such model.
            BentoError: The push failed. If it has a record and the registry can be reached, the status is `failed`.
            PushesError: Models of a list failed. The others were pushed.

        Examples:
            >>> result = await api.models.push("iris_weights:w1")
            >>> print(result.tag, result.bytes_sent)
        """
        own = check_settable_labels(labels)
        options = PushOptions(force=force, threads=threads, labels=own, keep_labels=keep_labels)
        async with self._resources.call():
            pusher = Pusher(self._resources, self._kind, options)

            async def push_one(model: AnyItem) -> PushResult:
                found = await self._find(model)
                return await pusher.once(found.tag, partial(pusher.push, found))

            models, is_list = as_list(model)
            return await (push_each(push_one, models, "push", "model") if is_list else push_one(models[0]))

    @overload
    async def copy(  # type: ignore[overload-overlap]  # a str is one tag
        self,
        tag: AnyTag,
        target: AsyncBentoAPI,
        *,
        force: bool = False,
        keep_labels: bool = False,
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
        threads: int = 10,
    ) -> list_of[PushResult]: ...

    async def copy(
        self,
        tag: AnyTag | Iterable[AnyTag],
        target: AsyncBentoAPI,
        *,
        force: bool = False,
        keep_labels: bool = False,
        threads: int = 10,
    ) -> PushResult | list_of[PushResult]:
        """Copy a model to another registry, or several models concurrently.

        The record is copied with its labels. The bytes pass through memory alone: at most `threads` parts and the
        window of the source. What the target has is skipped. A copy that was interrupted, also by a crash, is resumed
        by the next one. Of a model on the Hugging Face Hub, the record alone is copied.

        Args:
            tag: The tag, or a list of tags. Without a version, or with `latest`, the newest that was uploaded.
            target: The API of the other registry, on the same event loop.
            force: Copy the model also when the target has it already.
            keep_labels: With `force`, keep the labels of the target's record; those of the copy win.
            threads: The most parts in flight at once, per item.

        Returns:
            The outcome, as of a push to the target; for a list, a list of the outcomes in the same order.

        Raises:
            NotFoundError: The registry has no such model, or no files of it.
            ConfigError: Both APIs are of the same registry.
            BentoError: The copy failed. The status of the target's record is `failed`, if the target can be reached.
            PushesError: Models of a list failed. The others were copied.

        Examples:
            >>> production = AsyncBentoAPI(context="production")
            >>> result = await api.models.copy("iris_weights:w1", production)
        """
        other = target.models
        options = PushOptions(force=force, threads=threads, keep_labels=keep_labels)
        async with self._resources.call(), other._resources.call():  # noqa: SLF001 - of this class
            models = self._copier(other, options, CopyReads.of(self._resources.pool, threads))

            async def copy_one(tag: AnyTag) -> PushResult:
                return await copy_item(models, Tag.parse(tag))

            tags, is_list = as_list(tag)
            return await (push_each(copy_one, tags, "copy", "model") if is_list else copy_one(tags[0]))

    async def pull(
        self,
        tag: AnyTag,
        *,
        force: bool = False,
        model_store: ModelStore | None = None,
        query: str | None = None,
        path: str | os.PathLike[str] | None = None,
        label: str | Mapping[str, str] | None = None,
    ) -> Model | HuggingFaceModel:
        """Pull a model from the registry into the local store, or into a directory.

        Args:
            tag: The tag. Without a version, or with `latest`, the newest that was uploaded to the registry is pulled,
                unless the local newest is as new.
            force: Replace the local copy, which stays until the new one is complete.
            model_store: The store to pull into; the API's own store by default.
            query: A query that the newest must match, like `label:stage=prod`; ignored for a tag with a version.
            path: The directory for the files, absent or empty, as in `AsyncBentoAPI.pull`. No store is used.
            label: Pull the newest version with this label, `stage=prod`, or with all labels of a mapping. The tag has
                no version.

        Returns:
            The local model. A model on the Hugging Face Hub is downloaded from there, into `$BENTOML_HF_CACHE_DIR` or
            the cache of Hugging Face.

        Raises:
            NotFoundError: The registry has no such model, or the Hub does not have it.
            PathExistsError: The directory `path` is not empty.
            ConfigError: The model is on the Hub, and `path` is given or `async-bento[huggingface]` is not installed.
                Or `label` is invalid, or given for a tag with a version.
            HubError: The Hub was not reached, or refused.
            BentoError: The pull failed; the local copy is unchanged.

        Examples:
            >>> model = await api.models.pull("iris_weights")
            >>> print(model.path)
        """
        refuse_pattern(tag, "pull", "api.models.list()")
        wanted = Tag.parse(tag)
        if query and not wants_newest(wanted):
            warnings.warn(
                f"`query` is ignored: {wanted} names a version. Leave the version or `query` out.", stacklevel=2
            )
            query = None
        selector = select_version(wanted, label, query)
        puller = make_puller(self._resources, self._kind, model_store, path)
        async with self._resources.call():
            return await puller.pull(wanted, force=force, selector=selector)

    async def list(
        self, *, search: str | None = None, query: str | None = None, limit: int | None = None
    ) -> ModelWithRepositoryListSchema:
        """List the models in the registry, newest first.

        Args:
            search: A part of the name.
            query: A query in the registry's language, like `label:key=value`, `sort:size-desc`, or a word.
            limit: The most models to return; None for all.

        Returns:
            The models.

        Raises:
            APIError: The registry could not be reached, or refused the request.

        Examples:
            >>> for model in await api.models.list(search="iris", limit=10):
            ...     print(model.tag, model.size_bytes)
        """
        models, total = await self._first(limit, search, query)
        return ModelWithRepositoryListSchema(count=len(models), total=total, items=models)

    async def get(self, name: AnyTag, version: str | None = None) -> ModelWithRepositorySchema:
        """Get the record of a model from the registry.

        Args:
            name: The name, or a whole tag like `name:version`.
            version: The version; None or `latest` for the newest that was uploaded.

        Returns:
            The record.

        Raises:
            NotFoundError: The registry has no such record.
            APIError: The registry could not be reached, or refused the request.

        Examples:
            >>> record = await api.models.get("iris_weights:w1")
            >>> print(record.tag, record.upload_status)
        """
        async with self._resources.call():
            return await get_record(self._resources.client.models, wanted_tag(name, version))

    async def delete(self, tag: AnyTag, *, force: bool = False) -> ModelWithRepositorySchema:
        """Delete a model from the registry; the local store is not changed.

        Args:
            tag: The tag, with a version other than `latest`.
            force: Delete the model also if a bento in the registry names it.

        Returns:
            The record of the deleted model.

        Raises:
            InvalidTagError: The tag has no version.
            NotFoundError: The registry has no such record.
            NotSupportedError: The registry is not async-bento's own, and cannot delete models.
            APIError: The registry could not be reached, or refused the request (409 if a bento names the model).
        """
        async with self._resources.call():
            return await delete_record(self._resources.client.models, Tag.parse(tag), force=force)
