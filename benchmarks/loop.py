"""Push a model through aiohttp at the least cost, to compare async-bento with.

    python benchmarks/loop.py DIRECTORY TAG [md5] [sendfile]

The model is sent as a tar in presigned parts to the registry of $BENTO_CLOUD_API_ENDPOINT, with neither retry nor
resume, progress or checks. `md5` hashes each part, as a verified push must. With `sendfile`, the kernel sends large
files, and a thread hashes just ahead of it; it needs a storage without TLS.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tarfile
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from aiohttp.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp.abc import AbstractStreamWriter

MiB = 1024 * 1024
PART = 16 * MiB
PARTS_AT_ONCE = 10
READ = MiB
HASH_READ = MiB // 4
SENDFILE_STEP = 16 * MiB
SENDFILE_LEAST = 64 * 1024
"""Smaller files are copied."""


class Segment(NamedTuple):
    """Bytes of a tar, in memory or in a file."""

    offset: int
    size: int
    data: bytes
    path: str


def members(directory: str, name: str) -> Iterator[tuple[bytes, str]]:
    """Yield the bytes and the file of each piece of a tar."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        status = entry.stat()
        header = tarfile.TarInfo(f"{name}/{entry.name}")
        header.mode, header.mtime = status.st_mode & 0o7777, int(status.st_mtime)
        if entry.is_dir():
            header.type = tarfile.DIRTYPE
            yield header.tobuf(), ""
            yield from members(entry.path, header.name)
        else:
            header.size = status.st_size
            yield header.tobuf(), ""
            yield b"", entry.path
            yield bytes(-status.st_size % tarfile.BLOCKSIZE), ""


def plan(directory: str) -> list[Segment]:
    """List the segments of the tar of a directory."""
    segments: list[Segment] = []
    offset = 0
    for data, path in members(directory, "."):
        if size := os.stat(path).st_size if path else len(data):
            segments.append(Segment(offset, size, data, path))
            offset += size
    end = bytes(2 * tarfile.BLOCKSIZE + -(offset + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)
    return [*segments, Segment(offset, len(end), end, "")]


class Part(Payload):
    """The bytes `[start, stop)` of a tar as a request body."""

    def __init__(self, segments: list[Segment], start: int, stop: int, *, md5: bool, sendfile: bool) -> None:
        super().__init__(b"", content_type="application/octet-stream")
        self._size = stop - start
        self._segments = segments
        self._start, self._stop = start, stop
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._sendfile = sendfile

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return ""

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)

    async def write(self, writer: AbstractStreamWriter) -> None:
        if self._sendfile:
            for segment, start, stop in self._cut(self._start, self._stop):
                if segment.path and stop - start >= SENDFILE_LEAST:
                    await self._send_file(writer, segment.path, start - segment.offset, stop - segment.offset)
                else:
                    await writer.write(await asyncio.to_thread(self._read, start, stop))
        else:
            for start in range(self._start, self._stop, READ):
                await writer.write(await asyncio.to_thread(self._read, start, min(self._stop, start + READ)))

    def _cut(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        """Yield each segment in a range, with the limits of its bytes in the range."""
        index = bisect_right(self._segments, start, key=lambda segment: segment.offset) - 1
        while start < stop:
            segment = self._segments[index]
            end = min(segment.offset + segment.size, stop)
            yield segment, start, end
            start, index = end, index + 1

    def _read(self, first: int, last: int) -> bytearray:
        """Read and hash a range of the tar."""
        buffer = bytearray(last - first)
        view = memoryview(buffer)
        for segment, start, stop in self._cut(first, last):
            target = view[start - first : stop - first]
            if segment.path:
                with open(segment.path, "rb", buffering=0) as file:
                    file.seek(start - segment.offset)
                    while target:
                        target = target[file.readinto(target) :]
            else:
                target[:] = segment.data[start - segment.offset : stop - segment.offset]
        if self._md5:
            self._md5.update(buffer)
        return buffer

    async def _send_file(self, writer: AbstractStreamWriter, path: str, start: int, stop: int) -> None:
        """Let the kernel send a range of a file, while a thread hashes the next step."""
        writer.send_headers()
        transport: Any = getattr(writer, "transport")  # noqa: B009 - only aiohttp's own writer has it
        loop = asyncio.get_running_loop()
        with open(path, "rb", buffering=0) as file:
            steps = [(offset, min(SENDFILE_STEP, stop - offset)) for offset in range(start, stop, SENDFILE_STEP)]
            hashing = loop.run_in_executor(None, self._hash, file.fileno(), *steps[0])
            for step, following in zip(steps, [*steps[1:], None], strict=True):
                await hashing
                if following:
                    hashing = loop.run_in_executor(None, self._hash, file.fileno(), *following)
                await loop.sendfile(transport, file, *step)

    def _hash(self, file: int, offset: int, size: int) -> None:
        buffer = memoryview(bytearray(HASH_READ))
        while self._md5 and size:
            count = os.preadv(file, [buffer[: min(HASH_READ, size)]], offset)
            self._md5.update(buffer[:count])
            offset, size = offset + count, size - count


async def push(directory: str, tag: str, *, md5: bool, sendfile: bool) -> None:
    """Push a directory as a model."""
    segments = plan(directory)
    total = segments[-1].offset + segments[-1].size
    name, _, version = tag.partition(":")
    headers = {"X-YATAI-API-TOKEN": os.environ["BENTO_CLOUD_API_KEY"], "X-Bentoml-Version": "1.4.39"}
    endpoint = os.environ["BENTO_CLOUD_API_ENDPOINT"] + "/api/v1"
    async with aiohttp.ClientSession(headers=headers) as api, aiohttp.ClientSession() as storage:

        async def call(method: str, path: str, **body: object) -> Any:
            async with api.request(method, endpoint + path, json=body) as response:
                return await response.json()

        await call("POST", "/model_repositories", name=name, description="")
        item = f"/model_repositories/{name}/models"
        manifest = {"module": "", "api_version": "v1", "bentoml_version": "1.4.39", "size_bytes": total}
        built = "2026-01-01 00:00:00.000000"
        await call("POST", item, version=version, description="", labels=[], build_at=built, manifest=manifest)
        item += f"/{version}"
        await call("PATCH", item + "/start_upload")
        upload = (await call("PATCH", item + "/start_multipart_upload"))["upload_id"]
        slots = asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(number: int, start: int) -> dict[str, object]:
            async with slots:
                path = item + "/presign_multipart_upload_url"
                url = (await call("PATCH", path, upload_id=upload, part_number=number))["presigned_upload_url"]
                part = Part(segments, start, min(total, start + PART), md5=md5, sendfile=sendfile)
                length = {"Content-Length": str(part.size)}
                async with storage.put(url, data=part, headers=length, skip_auto_headers=["Content-Type"]) as response:
                    response.raise_for_status()
                    return {"part_number": number, "etag": response.headers["ETag"]}

        starts = range(0, total, PART)
        parts = await asyncio.gather(*(send(number, start) for number, start in enumerate(starts, start=1)))
        await call("PATCH", item + "/complete_multipart_upload", upload_id=upload, parts=parts)
        await call("PATCH", item + "/finish_upload", status="success", reason="")


if __name__ == "__main__":
    asyncio.run(push(sys.argv[1], sys.argv[2], md5="md5" in sys.argv[3:], sendfile="sendfile" in sys.argv[3:]))
