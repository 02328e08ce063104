"""Bentos and models differ in words, not in steps: a `Kind` holds the words, so that one path serves both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from async_bento.rest.request_schemas import CreateBentoSchema, CreateModelSchema, UpdateBentoSchema, UpdateModelSchema
from async_bento.rest.schemas import (
    BentoManifestSchema,
    BentoWithRepositorySchema,
    ItemSchema,
    LabelItemSchema,
    ListSchema,
    ModelManifestSchema,
    ModelWithRepositorySchema,
    RepositorySchema,
)
from async_bento.store.items import Bento, Item, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from async_bento.rest.client import RestApiClient
    from async_bento.rest.routes import ItemRoutes
    from async_bento.store.store import BentoStore, ModelStore, Store

ItemT = TypeVar("ItemT", Bento, Model)
RecordT = TypeVar("RecordT", bound=ItemSchema)


@dataclass(frozen=True)
class Record:
    """What the registry is told of an item.

    Attributes:
        create: The body of the request that registers it.
        update: The body of the one that renews it.
    """

    create: CreateBentoSchema | CreateModelSchema
    update: UpdateBentoSchema | UpdateModelSchema


@dataclass(frozen=True)
class Kind(Generic[ItemT, RecordT]):
    """The words of bentos, or of models.

    Attributes:
        word: `bento` or `model`.
        routes: Its routes.
        store: Where its items lie.
        left_out: Names at the top of an item's directory that are not part of its tar.
        record: Makes what the registry is told; the second argument says whether only that is pushed. Blocks.
        command: What pulls an item, for messages.
    """

    word: Literal["bento", "model"]
    routes: ItemRoutes[RepositorySchema, RecordT, ListSchema[RecordT]]
    store: Store[ItemT]
    left_out: Collection[str]
    record: Callable[[ItemT, bool], Record]
    command: str


def bentos(client: RestApiClient, store: BentoStore, models: ModelStore) -> Kind[Bento, BentoWithRepositorySchema]:
    """The words of bentos.

    Args:
        client: Who speaks to the registry.
        store: Where bentos lie.
        models: Where their models lie; they count into a bento's size.

    Returns:
        The kind.
    """

    def record(bento: Bento, bare: bool) -> Record:
        manifest = BentoManifestSchema.model_validate(bento.manifest(size_bytes=models.total_size(bento), dev=bare))
        labels = _labels(bento)
        update = UpdateBentoSchema(description=bento.doc, manifest=manifest, labels=labels)
        create = CreateBentoSchema(
            description=update.description,
            manifest=manifest,
            labels=labels,
            version=bento.tag.version or "",
            build_at=bento.creation_time,
        )
        return Record(create, update)

    return Kind("bento", client.bentos, store, ("models",), record, "async-bento pull")


def models(client: RestApiClient, store: ModelStore) -> Kind[Model, ModelWithRepositorySchema]:
    """The words of models.

    Args:
        client: Who speaks to the registry.
        store: Where models lie.

    Returns:
        The kind.
    """

    def record(model: Model, bare: bool) -> Record:
        del bare  # a model is never pushed without its bytes
        manifest = ModelManifestSchema.model_validate(model.manifest())
        labels = _labels(model)
        create = CreateModelSchema(
            manifest=manifest, labels=labels, version=model.tag.version or "", build_at=model.creation_time
        )
        return Record(create, UpdateModelSchema(manifest=manifest, labels=labels))

    return Kind("model", client.models, store, (), record, "async-bento models pull")


def _labels(item: Item) -> list[LabelItemSchema]:
    return [LabelItemSchema(key=key, value=value) for key, value in item.labels.items()]
