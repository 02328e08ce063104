"""Bentos and models share one code path: a `Kind` holds what differs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from async_bento.api.labels import as_dict, as_items
from async_bento.errors import APIResponseError
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
    from collections.abc import Callable, Collection, Mapping

    from async_bento.rest.client import RestApiClient
    from async_bento.rest.routes import ItemRoutes
    from async_bento.store.store import BentoStore, ModelStore, Store

ItemT = TypeVar("ItemT", Bento, Model)
RecordT = TypeVar("RecordT", bound=ItemSchema)

ManifestT = TypeVar("ManifestT", BentoManifestSchema, ModelManifestSchema)

BARE_REASON = "bento for development"
"""The reason that BentoML gives when it pushes a record without bytes."""


@dataclass(frozen=True)
class RecordBodies:
    """The request bodies that create and update the record of an item."""

    create: CreateBentoSchema | CreateModelSchema
    update: UpdateBentoSchema | UpdateModelSchema

    def with_labels(self, labels: Mapping[str, str]) -> RecordBodies:
        """The same requests, with more labels."""
        changed = {"labels": as_items({**as_dict(self.create.labels), **labels})}
        return RecordBodies(self.create.model_copy(update=changed), self.update.model_copy(update=changed))


@dataclass(frozen=True)
class Kind(Generic[ItemT, RecordT]):
    """Bentos or models: their word, routes and store, and how their records are made.

    `excluded` are names at the top of an item's directory that are not part of its tar. `record_bodies` blocks; its
    second argument is true for a push of the record alone. `copied_bodies` make the same record in another registry.
    """

    word: Literal["bento", "model"]
    routes: ItemRoutes[RepositorySchema, RecordT, ListSchema[RecordT]]
    store: Store[ItemT]
    excluded: Collection[str]
    record_bodies: Callable[[ItemT, bool], RecordBodies]
    copied_bodies: Callable[[RecordT], RecordBodies]

    @property
    def endpoint(self) -> str:
        """The URL of the registry."""
        return self.routes.session.endpoint


def bentos(client: RestApiClient, store: BentoStore, models: ModelStore) -> Kind[Bento, BentoWithRepositorySchema]:
    """The kind of bentos; the sizes of their models, from the model store, count into the sizes of bentos."""

    def record_bodies(bento: Bento, bare: bool) -> RecordBodies:
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
        return RecordBodies(create, update)

    return Kind("bento", client.bentos, store, ("models",), record_bodies, _copied_bento)


def models(client: RestApiClient, store: ModelStore) -> Kind[Model, ModelWithRepositorySchema]:
    """The kind of models."""

    def record_bodies(model: Model, bare: bool) -> RecordBodies:
        del bare  # a model is never pushed without its bytes
        manifest = ModelManifestSchema.model_validate(model.manifest())
        labels = _labels(model)
        create = CreateModelSchema(
            manifest=manifest, labels=labels, version=model.tag.version or "", build_at=model.creation_time
        )
        return RecordBodies(create, UpdateModelSchema(manifest=manifest, labels=labels))

    return Kind("model", client.models, store, (), record_bodies, _copied_model)


def _copied_bento(record: BentoWithRepositorySchema) -> RecordBodies:
    update = UpdateBentoSchema(
        description=record.description, manifest=_required(record.manifest, record), labels=record.labels
    )
    build_at = record.build_at or record.created_at or datetime.now(timezone.utc)
    return RecordBodies(CreateBentoSchema(**dict(update), version=record.version, build_at=build_at), update)


def _copied_model(record: ModelWithRepositorySchema) -> RecordBodies:
    update = UpdateModelSchema(
        description=record.description, manifest=_required(record.manifest, record), labels=record.labels
    )
    build_at = record.build_at or record.created_at or datetime.now(timezone.utc)
    return RecordBodies(CreateModelSchema(**dict(update), version=record.version, build_at=build_at), update)


def _required(manifest: ManifestT | None, record: ItemSchema) -> ManifestT:
    if manifest is None:
        raise APIResponseError(f"cannot copy {record.version}: the registry sent no manifest", field="manifest")
    return manifest


def _labels(item: Item) -> list[LabelItemSchema]:
    return as_items(item.labels)
