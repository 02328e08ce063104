"""Find records in the registry: by tag, or the newest of a name. No local store is used."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from async_bento._core.tag import LATEST, Tag
from async_bento.api.paging import RecordT, walk
from async_bento.errors import NotFoundError
from async_bento.rest.schemas import UNFINISHED, ItemSchema, ModelManifestSchema

FullT = TypeVar("FullT", bound=ItemSchema)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import TypeAlias

    from async_bento._core.tag import AnyTag
    from async_bento._core.validation import JsonObject
    from async_bento.rest.routes import ItemRoutes
    from async_bento.rest.schemas import ListSchema, RepositorySchema

    Routes: TypeAlias = ItemRoutes[RepositorySchema, FullT, ListSchema[RecordT]]
    Records: TypeAlias = ItemRoutes[RepositorySchema, RecordT, ListSchema[RecordT]]

logger = logging.getLogger(__package__)

_LIST_COMMANDS = {"bento": "async-bento list", "model": "async-bento models list"}

_PAGE_SIZE = 20  # records per request for the newest


class Selector(NamedTuple):
    """Which versions of a name count: those that match a query of the registry and have all of some labels."""

    query: str | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def terms(self) -> str | None:
        """The whole query in the registry's language, or None."""
        terms = [f"label:{key}={value}" for key, value in self.labels]
        return " ".join([*filter(None, [self.query]), *terms]) or None

    def matches(self, record: ItemSchema) -> bool:
        """Whether a record has the labels. A registry may ignore the query."""
        return {*self.labels} <= {(label.key, label.value) for label in record.labels}


ANY = Selector()


def wants_newest(tag: Tag) -> bool:
    """Whether a tag leaves the version to the registry: it has none, or `latest`."""
    return tag.version in {None, LATEST}


def wanted_tag(name: AnyTag, version: str | None) -> Tag:
    """The tag that a name, or a whole tag, and a version name together."""
    if version is None:
        return Tag.parse(name)
    return Tag(name if isinstance(name, str) else Tag.parse(name).name, version)


async def get_record(routes: Routes[FullT, RecordT], tag: Tag, selector: Selector = ANY) -> FullT:
    """Get a record by its own route; of a tag without a version, the newest that was uploaded and is selected.

    The records of a list lack the models of a bento.
    """
    if found := await routes.get(tag.name, await find_version(routes, tag, selector)):
        return found
    raise not_found(routes, tag, selector)


async def find_version(routes: Routes[FullT, RecordT], tag: Tag, selector: Selector = ANY) -> str:
    """The version of a tag; of a tag without one, the newest that was uploaded and is selected."""
    if tag.version and not wants_newest(tag):
        return tag.version
    async with aclosing(newest_records(routes, tag, selector)) as records:
        async for record in records:
            return record.version
    raise not_found(routes, tag, selector)


async def record_exists(routes: Routes[FullT, RecordT], tag: Tag) -> bool:
    """Whether the registry has an item whose upload is complete."""
    try:
        return _is_uploaded(await get_record(routes, tag))
    except NotFoundError:
        return False


def not_found(routes: Routes[FullT, RecordT], tag: Tag, selector: Selector = ANY) -> NotFoundError:
    """The error for a tag that no record matches."""
    matching = f" that matches {selector.query!r}" if selector.query else ""
    if selector.labels:
        labels = ", ".join(f"{key}={value}" for key, value in selector.labels)
        matching += f" with the label{'s' if len(selector.labels) > 1 else ''} {labels}"
    command = _LIST_COMMANDS[routes.kind]
    if context := routes.session.context:
        command += f" --context {context}"
    return NotFoundError(
        f"no {routes.kind} {tag}{matching} in the registry at {routes.session.endpoint}. "
        f"`{command}` shows its {routes.kind}s."
    )


async def newest_records(
    routes: Routes[FullT, RecordT], tag: Tag, selector: Selector = ANY, passed_over: list[str] | None = None
) -> AsyncGenerator[RecordT]:
    """Iterate over the uploaded records of a name, newest first; if none was uploaded, the newest record alone.

    The versions of newer records that were not uploaded are logged, and appended to `passed_over`.
    """

    async def fetch(*, start: int, count: int) -> ListSchema[RecordT] | None:
        return await routes.list(tag.name, start=start, count=count, query=selector.terms)

    not_uploaded: list[RecordT] = []
    has_uploaded = False
    async with aclosing(walk(fetch, _PAGE_SIZE)) as pages:
        async for record in (record async for page in pages for record in page if selector.matches(record)):
            if not _is_uploaded(record):
                not_uploaded.append(record)
                continue
            if not has_uploaded:
                for newer in not_uploaded:
                    version = f"{newer.version} ({newer.upload_status})"
                    logger.info("%s %s: passed over %s, which was not uploaded", routes.kind, tag.name, version)
                    if passed_over is not None:
                        passed_over.append(version)
            has_uploaded = True
            yield record
    if not_uploaded and not has_uploaded:
        yield not_uploaded[0]


def _is_uploaded(record: ItemSchema) -> bool:
    return record.upload_status not in UNFINISHED or hub_metadata(record) is not None


def hub_metadata(record: ItemSchema) -> JsonObject | None:
    """Where the Hugging Face Hub has the files of a model; None for an item whose files are in the registry."""
    manifest = getattr(record, "manifest", None)
    if isinstance(manifest, ModelManifestSchema) and manifest.metadata.get("registry") == "huggingface":
        return manifest.metadata
    return None
