"""The interface of a blob storage, and what all storages share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from async_bento._core.s3 import bare_etag, is_md5
from async_bento.config import MiB
from async_bento.registry.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

IO_CHUNK = MiB
"""Bytes per read or write of a file or a response; see `config.Transfer.io_chunk`."""

UPLOAD_LIFETIME = 24 * 3600.0
"""Seconds without a new part until an upload is removed: a push killed at night resumes the next morning."""


class CompletedPart(NamedTuple):
    """A part as the client lists it to complete an upload: its number from 1, its ETag with or without quotes."""

    number: int
    etag: str


class Part(NamedTuple):
    """A part of an object: its size in bytes, its MD5 in hexadecimal."""

    size: int
    md5: str


class Content(NamedTuple):
    """The bytes of an object: their number, the quoted ETag, and the parts in order; none if their MD5s are unknown."""

    size: int
    etag: str
    parts: tuple[Part, ...] = ()

    @classmethod
    def of_parts(cls, etag: str, parts: Iterable[tuple[int, str]]) -> Content:
        """Describe an object by the sizes and ETags of its parts, which are MD5s except with a key of KMS."""
        found = tuple(Part(size, bare_etag(part_etag)) for size, part_etag in parts)
        known = found if all(is_md5(part.md5) for part in found) else ()
        return cls(sum(part.size for part in found), etag, known)


class StoredKey(NamedTuple):
    """A key that the storage has bytes for, and when the last of them arrived."""

    key: str
    modified_at: datetime


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
    """Stores objects under keys such as `bentos/iris/v1/3f9c…`, each of which is used for one upload only.

    A URL that begins with a slash is relative to the address at which the client has reached the registry.
    """

    async def check(self) -> None:
        """Raise `RegistryError` or `OSError` while the storage cannot be used."""
        ...

    async def presign_put(self, key: str) -> str:
        """Start an upload of one body, and sign a URL that accepts it in one PUT."""
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

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> Content:
        """Make an object of the parts; raise `StorageError` unless each of them was uploaded."""
        ...

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> Content:
        """Store a body of `size` bytes, if known; raise `StorageError` if the size differs."""
        ...

    async def finish_put(self, key: str) -> Content | None:
        """Return what arrived by the URL of `presign_put`, if anything; a disk accepts nothing more from then on."""
        ...

    def open(self, key: str, content: Content) -> AbstractAsyncContextManager[OpenBlob]:
        """Open an object, whose bytes outlive a deletion; raise `RecordNotFoundError` if it does not exist."""
        ...

    async def find_damage(self, key: str, content: Content) -> str | None:
        """Compare the stored bytes with what was stored; return what is wrong with them."""
        ...

    async def delete(self, key: str, upload_id: str | None = None) -> None:
        """Remove an object, or abort its upload; neither need exist.

        A download that runs gets the rest of its bytes where the storage allows it: on disk, and from most S3 servers.
        """
        ...

    async def uploaded_at(self, key: str, upload_id: str | None) -> datetime | None:
        """Return when the last bytes of an upload arrived; None if there are none."""
        ...

    async def abort_unknown(self, oldest: datetime) -> None:
        """Abort multipart uploads that got no part since `oldest`, also those that no record names."""
        ...

    def stored(self) -> AsyncGenerator[Sequence[StoredKey]]:
        """Yield all keys, some at a time."""
        ...


def check_body_size(received: int, announced: int | None) -> None:
    """Raise `StorageError` if a body is shorter or longer than its announced size."""
    if announced is not None and received != announced:
        raise StorageError("IncompleteBody", f"the body is incomplete: {received} bytes received of {announced}")
