"""Delete bentos and models from the registry, without a local store."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from async_bento.api.records import get_record, wants_newest
from async_bento.errors import APIStatusError, InvalidTagError, NotSupportedError, with_message
from async_bento.rest.responses import is_not_found

if TYPE_CHECKING:
    from async_bento._core.tag import Tag
    from async_bento.api.paging import RecordT
    from async_bento.api.records import FullT, Routes


async def delete_record(routes: Routes[FullT, RecordT], tag: Tag, *, force: bool = False) -> FullT:
    """Delete an item and return its record; that another client deletes it meanwhile is no error."""
    if wants_newest(tag):
        raise InvalidTagError(f"cannot delete {tag}: the tag has no version. Pass a tag like `{tag.name}:VERSION`.")
    record = await get_record(routes, tag)
    try:
        await routes.delete(tag.name, record.version, force=force)
    except APIStatusError as error:
        if error.status == HTTPStatus.CONFLICT and error.server_message.startswith("cannot delete"):
            raise with_message(error, error.server_message) from error.__cause__
        if is_not_found(error) and "record not found" in error.server_message:
            return record
        if error.status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}:
            raise NotSupportedError(
                f"cannot delete {routes.kind} {tag}: the registry at {routes.session.endpoint} has no route to delete "
                f"{routes.kind}s. Delete it in the registry's own pages, if it has them."
            ) from error
        raise
    return record
