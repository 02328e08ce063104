"""The interface of a blob storage, and what all storages share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from async_bento.config import MiB
from async_bento.registry.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Sequence
    from contextlib import AbstractAsyncContextManager

IO_CHUNK = MiB
"""Bytes per read or write of a file or a response; see `config.Transfer.io_chunk`."""

UPLOAD_LIFETIME = 24 * 3600.0
"""Seconds without a new part until a multipart upload is removed: a push killed at night resumes the next morning."""


class CompletedPart(NamedTuple):
    """A part as the client lists it to complete an upload: its number from 1, its ETag with or without quotes."""

    number: int
    etag: str


class OpenBlob(Protocol):
    """An open object: its size in bytes, and its quoted ETag."""

    @property
    def size(self) -> int: ...

    @property
    def etag(self) -> str: ...

    def read(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        """Read the bytes from `start` to before `stop`; raise `OSError` if the storage fails."""
        ...


class Blobs(Protocol):
    """Stores objects under keys such as `bentos/iris/v1.tar`.

    A URL that begins with a slash is relative to the address at which the client has reached the registry.
    """

    async def presign_put(self, key: str) -> str:
        """Sign a URL that accepts the whole object in one PUT."""
        ...

    async def presign_get(self, key: str) -> str:
        """Sign a URL that returns the object, or a range of it."""
        ...

    async def start_multipart(self, key: str) -> str:
        """Start a multipart upload and return its id."""
        ...

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        """Sign a URL that accepts one part."""
        ...

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> None:
        """Publish the parts as the object; raise `StorageError` unless each of them was uploaded."""
        ...

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> str:
        """Store a body of `size` bytes, if known, and return its ETag; raise `StorageError` if the size differs."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object and abort its uploads, also those that a presigned URL has started; neither need exist.

        A download that runs gets the rest of its bytes where the storage allows it: on disk, and from most S3 servers.
        """
        ...

    def open(self, key: str) -> AbstractAsyncContextManager[OpenBlob]:
        """Open an object, whose bytes outlive a replacement; raise `RecordNotFoundError` if it does not exist."""
        ...


def check_body_size(received: int, announced: int | None) -> None:
    """Raise `StorageError` if a body is shorter or longer than its announced size."""
    if announced is not None and received != announced:
        raise StorageError("IncompleteBody", f"the body is incomplete: {received} bytes received of {announced}")
