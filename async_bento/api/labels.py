"""Labels in the registry: validate, change and search them, without a local store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from async_bento._core.tag import Tag
from async_bento.api.records import Selector, find_version, not_found, wants_newest
from async_bento.errors import APIResponseError, APIStatusError, ConfigError, NotSupportedError
from async_bento.rest.responses import is_not_found
from async_bento.rest.schemas import ItemSchema, LabelItemSchema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from async_bento.api.paging import RecordT
    from async_bento.api.records import Routes

ItemT = TypeVar("ItemT", bound=ItemSchema)

_MAX_LENGTH = 128
"""Characters of a key and of a value: columns of Yatai's database (`000001_initialize_tables.up.sql`)."""

_NO_ROUTE = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}


@dataclass(frozen=True)
class Relabelled(Generic[ItemT]):
    """A record whose labels were changed, and the labels before and after."""

    record: ItemT
    before: dict[str, str]
    after: dict[str, str]


def check_changes(labels: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Validate changes of labels; the value None removes a label. Keys to remove may be of any form."""
    changes = cast("Mapping[object, object]", {} if labels is None else labels)
    if not isinstance(cast("object", changes), Mapping):
        raise ConfigError(f"invalid labels {changes!r}: they are not a mapping. Pass a dict like {{'stage': 'prod'}}.")
    return {_check_key(key, value): _check_value(key, value) for key, value in changes.items()}


def check_settable_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Validate labels to set."""
    changes = check_changes(labels)
    for key, value in changes.items():
        if value is None:
            raise ConfigError(f"invalid label {key!r}: it has no value. A push can set labels, and not remove them.")
    return {key: value for key, value in changes.items() if value is not None}


def select_version(tag: Tag, label: str | Mapping[str, str] | None, query: str | None = None) -> Selector:
    """Build the selector of a version by labels, `key=value` or a mapping of several, and by a query."""
    if isinstance(label, str):
        key, equals, value = label.partition("=")
        if not equals:
            raise ConfigError(f"invalid label {label!r}: it has no value. Pass `key=value`, or a dict.")
        label = {key: value}
    labels = check_settable_labels(label)
    if labels and not wants_newest(tag):
        raise ConfigError(f"cannot select {tag} by label: the tag names a version. Leave the version or the label out.")
    for key, value in labels.items():
        if key.endswith("!"):
            raise ConfigError(
                f"cannot select {tag} by {key}={value}: a label selects the versions that have it. To leave these out, "
                f"pass query='-label:{key[:-1]}={value}' to `iter`."
            )
        if "," in value or value.split() != [value]:
            raise ConfigError(
                f"cannot select {tag} by the label {key}={value}: registries cannot search for a value that is empty "
                "or has spaces or commas. Name the version."
            )
    return Selector(query, tuple(labels.items()))


async def change_labels(
    routes: Routes[ItemT, RecordT], tag: Tag, changes: Mapping[str, str | None]
) -> Relabelled[ItemT]:
    """Change labels of a record; the rest of the record stays as it is.

    Registries replace all labels, so they are read first; a change that another client makes meanwhile may be lost.
    """
    version = await find_version(routes, tag)
    exact = Tag(tag.name, version)
    found = await routes.get_raw(exact.name, version)
    if found is None:
        raise not_found(routes, exact)
    record, raw = found
    before = as_dict(record.labels)
    after = {key: value for key, value in {**before, **changes}.items() if value is not None}
    if after == before:
        return Relabelled(record, before, after)
    try:
        updated = await routes.update_labels(exact.name, version, raw, as_items(after))
    except APIStatusError as error:
        if is_not_found(error) and "record not found" in error.server_message:
            raise not_found(routes, exact) from error
        if error.status in _NO_ROUTE:
            raise NotSupportedError(
                f"cannot set labels of {routes.kind} {exact}: the registry at {routes.session.endpoint} has no route "
                f"to change {routes.kind}s. Push the {routes.kind} with the labels."
            ) from error
        raise
    current = as_dict(updated.labels)
    if any(current.get(key) != value for key, value in changes.items()):
        raise APIResponseError(
            f"cannot set labels of {routes.kind} {exact}: the registry at {routes.session.endpoint} has ignored the "
            "change, or another client has changed the labels at the same time. Try again.",
            field="labels",
        )
    return Relabelled(updated, before, current)


def lost_labels(before: Mapping[str, str], after: Mapping[str, str], wanted: Mapping[str, str]) -> tuple[str, ...]:
    """Labels that a record had and has no longer, but for those that are wanted with another value."""
    return written({key: value for key, value in before.items() if after.get(key) != value and key not in wanted})


def as_dict(labels: Iterable[LabelItemSchema]) -> dict[str, str]:
    """Labels by key; of several with one key, the last counts."""
    return {label.key: label.value for label in labels}


def as_items(labels: Mapping[str, str]) -> list[LabelItemSchema]:
    """Labels as a record has them."""
    return [LabelItemSchema(key=key, value=value) for key, value in labels.items()]


def written(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Labels like `stage=prod`."""
    return tuple(f"{key}={value}" for key, value in labels.items())


def _check_key(key: object, value: object) -> str:
    if not isinstance(key, str) or not key:
        raise ConfigError(f"invalid key {key!r} of a label: it is not text, or empty. Pass a str.")
    if value is None:
        return key
    if len(key) > _MAX_LENGTH:
        raise ConfigError(f"invalid key {key!r} of a label: it has {len(key)} characters. The limit is {_MAX_LENGTH}.")
    if not key.isprintable() or not {" ", ",", "="}.isdisjoint(key):
        raise ConfigError(
            f"invalid key {key!r} of a label: registries cannot search for it. Leave out spaces, ',' and '='."
        )
    return key


def _check_value(key: object, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"invalid value {value!r} of label {key!r}: it is not text. Pass a str.")
    if value is not None and len(value) > _MAX_LENGTH:
        raise ConfigError(
            f"invalid value {value!r} of label {key!r}: it has {len(value)} characters. The limit is {_MAX_LENGTH}."
        )
    if value is not None and not value.isprintable():
        raise ConfigError(f"invalid value {value!r} of label {key!r}: it has line breaks or control characters.")
    return value
