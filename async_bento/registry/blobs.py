"""The bytes of items: what any storage of them must be able to do, and the one on this disk.

A presigned URL names a method, a key, and an end of its life, under an HMAC of all of it: whoever has it may do that
one thing, without the registry's token. `storage.py` answers to them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlencode

from async_bento.config import MiB
from async_bento.registry.disk import ClaimedPart, Disk, StoredObject
from async_bento.registry.refusals import ForbiddenError, StorageError
from async_bento.registry.spool import Spool
from async_bento.threads import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

HOP = MiB
"""What is read or written in one hop to a worker thread, in bytes; see `config.Transfer.io_chunk`."""

_THREADS = 8
"""Enough to keep a disk busy; more of them would only wait for it."""

PREFIX = "/blobs/"
"""Where the disk's presigned URLs live."""


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


@dataclass(frozen=True)
class Grant:
    """What a presigned URL allows.

    Attributes:
        method: `GET` or `PUT`.
        key: Which object.
        upload_id: Which multipart upload; empty for a whole object.
        part_number: Which part of it, from 1; 0 for a whole object.
    """

    method: str
    key: str
    upload_id: str = ""
    part_number: int = 0


class Presigner:
    """Signs URLs, and knows its own.

    Args:
        secret: What they are signed with.
        expiry: How long they live, in seconds.
    """

    def __init__(self, secret: bytes, expiry: float) -> None:
        self._secret = secret
        self._expiry = expiry

    def sign(self, grant: Grant) -> str:
        """A URL for a grant.

        Args:
            grant: What it allows.

        Returns:
            Its path and query.
        """
        expires = round((time.time() + self._expiry) * 1000)
        query = {"expires": expires, "signature": self._signature(grant, expires)}
        if grant.upload_id:
            query |= {"uploadId": grant.upload_id, "partNumber": grant.part_number}
        return f"{PREFIX}{grant.key}?{urlencode(query)}"

    def check(self, method: str, key: str, query: Mapping[str, str]) -> Grant:
        """Read a URL that was signed here.

        Args:
            method: The request's method.
            key: The key in its path.
            query: Its query.

        Returns:
            What it allows.

        Raises:
            ForbiddenError: It was not signed here, or not for this, or has expired.
        """
        try:
            expires = int(query.get("expires", ""))
            grant = Grant(method, key, query.get("uploadId", ""), int(query.get("partNumber", "0")))
        except ValueError as error:
            raise ForbiddenError("the URL was not signed here") from error
        signature = query.get("signature", "").encode(errors="replace")
        if not hmac.compare_digest(self._signature(grant, expires).encode(), signature):
            raise ForbiddenError("the signature does not fit the request")
        if time.time() * 1000 >= expires:
            raise ForbiddenError("Request has expired")
        return grant

    def _signature(self, grant: Grant, expires: int) -> str:
        # As JSON, since no two grants may look alike, whatever a client calls its upload.
        said = json.dumps([*astuple(grant), expires])
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()


class LocalBlobs:
    """Bytes on this disk.

    Args:
        root: The directory.
        presigner: Signs the URLs.
        min_part_size: How small a part may be that is not the last, in bytes.
    """

    def __init__(self, root: Path, presigner: Presigner, *, min_part_size: int) -> None:
        self.presigner = presigner
        self._disk = Disk(root, min_part_size=min_part_size)
        self._threads = Threads(_THREADS)

    async def start(self) -> None:
        """Make the directories, and sweep out what no upload or object needs any more."""
        await self._threads.run(self._disk.open)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.close()

    async def presign_put(self, key: str) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("PUT", key))

    async def presign_get(self, key: str) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("GET", key))

    async def start_multipart(self, key: str) -> str:
        """See `Blobs`."""
        return await self._threads.run(self._disk.start_upload, key)

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("PUT", key, upload_id, part_number))

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ClaimedPart]) -> None:
        """See `Blobs`."""
        await self._threads.run(self._disk.complete_upload, key, upload_id, parts)

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> str:
        """See `Blobs`."""
        directory = self._disk.new_directory()
        try:
            await self._threads.run(directory.mkdir)
            async with self._spooled(directory, body, size) as spool:
                await self._threads.run(self._disk.publish, key, spool)
                return f'"{spool.md5}"'
        finally:
            await self._threads.run(self._disk.abandon, directory)

    async def put_part(self, grant: Grant, body: AsyncIterable[bytes], size: int) -> str:
        """Keep one part of a multipart upload.

        Args:
            grant: Which part.
            body: Its bytes.
            size: How many they are.

        Returns:
            Its ETag, quotes and all.

        Raises:
            StorageError: There is no such upload, or less arrived than was announced.
        """
        key, upload_id = grant.key, grant.upload_id
        directory = await self._threads.run(self._disk.upload_directory, key, upload_id)
        async with self._spooled(directory, body, size) as spool:
            await self._threads.run(self._disk.keep_part, key, upload_id, grant.part_number, spool)
            return f'"{spool.md5}"'

    @asynccontextmanager
    async def _spooled(self, directory: Path, body: AsyncIterable[bytes], size: int | None) -> AsyncGenerator[Spool]:
        spool = Spool(directory)
        try:
            held: list[bytes] = []
            n_held = 0
            async for chunk in body:
                held.append(chunk)
                n_held += len(chunk)
                if n_held >= HOP:
                    await self._threads.run(spool.write, held)
                    held, n_held = [], 0
            await self._threads.run(spool.write, held)
            if size is not None and spool.size != size:
                raise StorageError("IncompleteBody", f"{spool.size} bytes arrived of {size}")
            await self._threads.run(spool.seal)
            yield spool
        finally:
            await self._threads.run(spool.discard)

    @asynccontextmanager
    async def acquired(self, key: str) -> AsyncGenerator[StoredObject]:
        """An object whose parts stay, for as long as the context lasts.

        Args:
            key: Which object.

        Yields:
            The object.

        Raises:
            RecordNotFoundError: There is none.
        """
        held: list[StoredObject] = []  # whatever becomes of the call that acquires it
        try:
            await self._threads.run(lambda: held.append(self._disk.acquire(key)))
            yield held[0]
        finally:
            for stored in held:
                await self._threads.run(self._disk.release, stored)

    async def read(self, stored: StoredObject, start: int, stop: int) -> AsyncGenerator[bytes]:
        """Read a range of an object that has been acquired, hop by hop.

        Args:
            stored: The object.
            start: Where the range begins.
            stop: Where it ends, exclusive.

        Yields:
            Its bytes.
        """
        for offset in range(start, stop, HOP):
            yield await self._threads.run(self._disk.read, stored, offset, min(HOP, stop - offset))

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """See `Blobs`."""
        async with self.acquired(key) as stored, aclosing(self.read(stored, 0, stored.size)) as chunks:
            yield chunks
