"""The disk storage: `disk_files.py`, called from an event loop."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads, shielded
from async_bento.registry.blobs.base import IO_CHUNK, Content, check_body_size
from async_bento.registry.blobs.disk_files import DiskFiles, StagedFile
from async_bento.registry.blobs.presign import Grant, Presigner
from async_bento.registry.errors import NoSuchUploadError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Sequence
    from datetime import datetime
    from pathlib import Path

    from async_bento.registry.blobs.base import CompletedPart, StoredKey

_THREADS = 8
"""Enough to keep a disk busy; further threads would only wait for the disk."""

_KEYS_PER_STEP = 1000
"""Keys per call of a thread; a page of S3 has as many."""


class DiskBlobs:
    """Stores blobs below one directory."""

    def __init__(self, root: Path, presigner: Presigner, *, min_part_size: int, min_free: int = 0) -> None:
        self.presigner = presigner
        self._files = DiskFiles(root, min_part_size=min_part_size, min_free=min_free)
        self._threads = Threads(_THREADS)

    def close(self) -> None:
        """Stop the worker threads."""
        self._threads.close()

    async def check(self) -> None:
        """See `Blobs`."""
        await self._threads.run(self._files.check)

    async def presign_put(self, key: str) -> str:
        """See `Blobs`."""
        await self._threads.run(self._files.start, key)
        return self.presigner.sign(Grant("PUT", key))

    async def presign_get(self, key: str) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("GET", key))

    async def start_multipart(self, key: str) -> str:
        """See `Blobs`."""
        await self._threads.run(self._files.start, key)
        # The last segment of a key is random, so it serves as the id of the upload.
        return key.rpartition("/")[2]

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        """See `Blobs`."""
        return self.presigner.sign(Grant("PUT", key, upload_id, part_number))

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> Content:
        """See `Blobs`."""
        return await self._threads.run(self._files.complete, key, parts)

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> Content:
        """See `Blobs`."""
        await self._threads.run(self._files.start, key)
        try:
            await self.put_part(key, 1, body, size)
            content = await self._threads.run(self._files.finish_put, key)
            if content is None:
                raise NoSuchUploadError
        except BaseException:
            await shielded(self._threads.run(self._files.delete, key))
            raise
        return content

    async def put_part(self, key: str, number: int, body: AsyncIterable[bytes], size: int | None) -> str:
        """Add a part to an upload, and return its ETag."""
        await self._threads.run(self._files.check_open, key)  # before the body is received
        async with self._staged(key, body, size) as file:
            await self._threads.run(self._files.add_part, key, number, file)
            return f'"{file.md5}"'

    async def start_file(self, key: str) -> Path:
        """Start an upload of one file, and return the directory to write it in."""
        await self._threads.run(self._files.start, key)
        return self._files.directory(key)

    async def add_file(self, key: str, file: StagedFile) -> Content:
        """Complete an upload by its file."""
        await self._threads.run(file.sync)
        await self._threads.run(self._files.add_part, key, 1, file)
        content = await self._threads.run(self._files.finish_put, key)
        if content is None:
            raise NoSuchUploadError
        return content

    async def delete_unfinished(self, key: str) -> None:
        """Remove an upload that still accepts parts; leave an object."""
        with suppress(NoSuchUploadError):
            await self._threads.run(self._files.check_open, key)
            await self._threads.run(self._files.delete, key)

    async def finish_put(self, key: str) -> Content | None:
        """See `Blobs`."""
        return await self._threads.run(self._files.finish_put, key)

    @asynccontextmanager
    async def open(self, key: str, content: Content) -> AsyncGenerator[_OpenObject]:
        """See `Blobs`."""
        acquired: list[str] = []  # a cancelled call may still acquire in its thread

        def acquire() -> None:
            self._files.acquire(key)
            acquired.append(key)

        try:
            await self._threads.run(acquire)
            yield _OpenObject(key, content, self._files, self._threads)
        finally:
            for each in acquired:
                await shielded(self._threads.run(self._files.release, each))

    async def find_damage(self, key: str, content: Content) -> str | None:
        """See `Blobs`."""
        return await self._threads.run(self._files.find_damage, key, content)

    async def delete(self, key: str, upload_id: str | None = None) -> None:
        """See `Blobs`."""
        await self._threads.run(self._files.delete, key)

    async def uploaded_at(self, key: str, upload_id: str | None) -> datetime | None:
        """See `Blobs`."""
        return await self._threads.run(self._files.modified_at, key)

    async def abort_unknown(self, oldest: datetime) -> None:
        """See `Blobs`; uploads without a record are found among the `stored` keys."""

    async def stored(self) -> AsyncGenerator[Sequence[StoredKey]]:
        """See `Blobs`."""
        chunks = self._files.stored(_KEYS_PER_STEP)
        while (chunk := await self._threads.run(next, chunks, None)) is not None:
            yield chunk

    @asynccontextmanager
    async def _staged(self, key: str, body: AsyncIterable[bytes], size: int | None) -> AsyncGenerator[StagedFile]:
        """Receive a body into a synced temporary file; remove the file unless the block publishes it."""
        file = StagedFile(self._files.directory(key))
        if size is not None:
            await self._threads.run(self._files.check_free, size)
        chunks: list[bytes] = []
        n_bytes = 0

        def write() -> None:
            if size is None:
                self._files.check_free(n_bytes)
            file.write(chunks)

        try:
            async for chunk in body:
                chunks.append(chunk)
                n_bytes += len(chunk)
                if n_bytes >= IO_CHUNK:
                    await self._threads.run(write)
                    chunks, n_bytes = [], 0
            await self._threads.run(write)
            # Before the sync: a body that was cut off is not worth the flush.
            check_body_size(file.size, size)
            await self._threads.run(file.sync)
            yield file
        finally:
            await shielded(self._threads.run(file.discard))


class _OpenObject:
    def __init__(self, key: str, content: Content, files: DiskFiles, threads: Threads) -> None:
        self.size = content.size
        self.etag = content.etag
        self._key = key
        self._content = content
        self._files = files
        self._threads = threads

    async def read(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        for offset in range(start, stop, IO_CHUNK):
            size = min(IO_CHUNK, stop - offset)
            yield await self._threads.run(self._files.read, self._key, self._content, offset, size)
