"""The disk storage: `disk_files.py`, called from an event loop."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads
from async_bento.registry.blobs.base import IO_CHUNK, check_body_size
from async_bento.registry.blobs.disk_files import DiskFiles, StagedFile, StoredObject
from async_bento.registry.blobs.presign import Grant, Presigner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Sequence
    from pathlib import Path

    from async_bento.registry.blobs.base import CompletedPart

_THREADS = 8
"""Enough to keep a disk busy; further threads would only wait for the disk."""


class DiskBlobs:
    """Stores blobs below one directory."""

    def __init__(self, root: Path, presigner: Presigner, *, min_part_size: int) -> None:
        self.presigner = presigner
        self._files = DiskFiles(root, min_part_size=min_part_size)
        self._threads = Threads(_THREADS)

    async def start(self) -> None:
        """Create the directories; remove what killed processes left, and abandoned uploads."""
        await self._threads.run(self._files.recover)

    def close(self) -> None:
        """Stop the worker threads."""
        self._threads.close()

    async def presign_put(self, key: str) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("PUT", key))

    async def presign_get(self, key: str) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("GET", key))

    async def start_multipart(self, key: str) -> str:
        """See `Blobs`."""
        return await self._threads.run(self._files.start_upload, key)

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("PUT", key, upload_id, part_number))

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> None:
        """See `Blobs`."""
        await self._threads.run(self._files.complete_upload, key, upload_id, parts)

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> str:
        """See `Blobs`."""
        directory = self._files.new_directory()
        try:
            await self._threads.run(self._files.start_body, key, directory)
            async with self._staged(directory, body, size) as file:
                await self._threads.run(self._files.commit_object, key, file)
                return f'"{file.md5}"'
        finally:
            await self._threads.run(self._files.abort_upload, key, directory.name)

    async def put_part(self, grant: Grant, body: AsyncIterable[bytes], size: int) -> str:
        """Store the part that a URL grants, and return its ETag."""
        key, upload_id = grant.key, grant.upload_id
        directory = await self._threads.run(self._files.upload_directory, key, upload_id)
        async with self._staged(directory, body, size) as file:
            await self._threads.run(self._files.commit_part, key, upload_id, grant.part_number, file)
            return f'"{file.md5}"'

    async def delete(self, key: str) -> None:
        """See `Blobs`."""
        await self._threads.run(self._files.delete, key)

    @asynccontextmanager
    async def _staged(
        self, directory: Path, body: AsyncIterable[bytes], size: int | None
    ) -> AsyncGenerator[StagedFile]:
        """Receive a body into a synced temporary file; remove the file unless the block publishes it."""
        file = StagedFile(directory)
        try:
            chunks: list[bytes] = []
            n_bytes = 0
            async for chunk in body:
                chunks.append(chunk)
                n_bytes += len(chunk)
                if n_bytes >= IO_CHUNK:
                    await self._threads.run(file.write, chunks)
                    chunks, n_bytes = [], 0
            await self._threads.run(file.write, chunks)
            check_body_size(file.size, size)
            await self._threads.run(file.sync)
            yield file
        finally:
            await self._threads.run(file.discard)

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[_OpenObject]:
        """See `Blobs`."""
        acquired: list[StoredObject] = []  # a cancelled call may still acquire in its thread
        try:
            await self._threads.run(lambda: acquired.append(self._files.acquire(key)))
            yield _OpenObject(acquired[0], self._files, self._threads)
        finally:
            for stored in acquired:
                await self._threads.run(self._files.release, stored)


class _OpenObject:
    def __init__(self, stored: StoredObject, files: DiskFiles, threads: Threads) -> None:
        self.size = stored.size
        self.etag = stored.etag
        self._stored = stored
        self._files = files
        self._threads = threads

    async def read(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        for offset in range(start, stop, IO_CHUNK):
            yield await self._threads.run(self._files.read, self._stored, offset, min(IO_CHUNK, stop - offset))
