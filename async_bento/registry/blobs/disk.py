"""The bytes of items on this disk: `disk.py`, from an event loop."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads
from async_bento.config import MiB
from async_bento.registry.blobs.objects import Disk, StoredObject
from async_bento.registry.blobs.presign import Grant, Presigner
from async_bento.registry.blobs.spool import Spool
from async_bento.registry.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
    from pathlib import Path

    from async_bento.registry.blobs.base import ClaimedPart

HOP = MiB
"""What is read or written in one hop to a worker thread, in bytes; see `config.Transfer.io_chunk`."""

_THREADS = 8
"""Enough to keep a disk busy; more of them would only wait for it."""


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
