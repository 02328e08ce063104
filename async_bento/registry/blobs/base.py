"""The bytes of items, and what any storage of them must be able to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

UPLOAD_LIFETIME = 24 * 3600.0
"""How long an upload that nobody completes is kept, in seconds: a push that was killed may be resumed next morning."""


class ClaimedPart(NamedTuple):
    """A part, as whoever completes an upload knows it.

    Attributes:
        number: Which part, from 1.
        etag: Its ETag, with or without quotes.
    """

    number: int
    etag: str


class Blobs(Protocol):
    """A storage of bytes under keys like `bentos/iris/v1.tar`.

    URLs that begin with a slash are completed with the address the client has reached the registry at.
    """

    async def presign_put(self, key: str) -> str:
        """A URL that takes the whole object in one PUT."""
        ...

    async def presign_get(self, key: str) -> str:
        """A URL that gives the object, or ranges of it."""
        ...

    async def start_multipart(self, key: str) -> str:
        """Begin a multipart upload, and return its id."""
        ...

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        """A URL that takes one part."""
        ...

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ClaimedPart]) -> None:
        """Make the parts the object.

        Raises:
            StorageError: There is no such upload, or the parts are not what has arrived.
        """
        ...

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> str:
        """Make a body the object, if all of it arrives, and return its ETag; its size in bytes may not be known.

        Raises:
            StorageError: Less or more arrived than was announced.
        """
        ...

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The object's bytes, in order, for as long as the context lasts.

        Raises:
            RecordNotFoundError: There is no such object.
        """
        ...
