"""A file of a mirror that grows while it is downloaded: its readers, its ETag, and what a resumed download keeps."""

from __future__ import annotations

import asyncio
import hashlib
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from async_bento._core.concurrency import Threads
from async_bento.registry.downloads import SourceLostError
from async_bento.registry.mirror.growing import Growing, GrowingReader, GrowingSink
from async_bento.transfer.resumable_extract import ResumePoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

DATA = b"0123456789"


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(1)
    yield threads
    threads.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FileIO]:
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        yield file


async def read(reader: GrowingReader, start: int = 0, stop: int | None = None) -> bytes:
    with anyio.fail_after(10):
        return b"".join([chunk async for chunk in reader.read(start, stop)])


async def test_file_closes_with_last_reader(file: FileIO, threads: Threads) -> None:
    growing = Growing(10, '"a"', file, 0)
    assert growing.is_open
    growing.end(10)
    growing.end()  # the download fails after its last byte
    assert growing.is_open
    async with growing.reader(threads) as first, growing.reader(threads) as second:
        growing.close()
        assert growing.is_open
        assert await read(first) == await read(second, 0, 10) == DATA
    assert not growing.is_open
    assert file.closed


async def test_failed_download_fails_readers(file: FileIO, threads: Threads) -> None:
    growing = Growing(10, '"a"', file, 5)
    async with growing.reader(threads) as reader:
        growing.end()
        assert not growing.is_open
        with pytest.raises(SourceLostError):
            await read(reader, 0, 5)
    growing.close()
    assert file.closed


async def test_read_ends_with_its_range(file: FileIO, threads: Threads) -> None:
    """The bytes after the range have not arrived yet."""
    growing = Growing(10, '"a"', file, 5)
    async with growing.reader(threads) as reader:
        assert await read(reader, 2, 5) == b"234"


@pytest.mark.parametrize("size", [0, None])
async def test_empty_object_is_read(file: FileIO, threads: Threads, size: int | None) -> None:
    growing = Growing(size, '"a"', file, 0)
    growing.end(0)
    async with growing.reader(threads) as reader:
        assert reader.size == 0
        assert await read(reader, 0, size) == b""


@pytest.fixture
async def sink(tmp_path: Path) -> GrowingSink:
    return GrowingSink(tmp_path, lambda _: None, lambda _: None)


def close(sink: GrowingSink) -> None:
    assert sink.growing is not None
    sink.growing.close()
    sink.file.discard()


@pytest.mark.parametrize(
    ("etag", "known", "sent"),
    [
        ('"a"', '"b"', '"a"'),
        ('"a"', None, '"a"'),
        ('W/"a"', '"b"', '"b"'),
        (None, '"b"', '"b"'),
        ('W/"a"', None, None),
        (None, None, None),
    ],
)
async def test_etag_is_of_upstream(sink: GrowingSink, etag: str | None, known: str | None, sent: str | None) -> None:
    """A strong ETag of the response, or that of the record, or else a random one."""
    source: Any = SimpleNamespace(checksums=None if known is None else SimpleNamespace(etag=known))
    sink.source = source
    await asyncio.to_thread(sink.start, 10, etag)
    assert sink.growing is not None
    assert sink.growing.etag == sent if sent else re.fullmatch('"[0-9a-f]{32}"', sink.growing.etag)
    await asyncio.to_thread(close, sink)


def every_four(position: int) -> int:
    """Return the end of the part of four bytes after a position."""
    return -(-position // 4) * 4


@pytest.mark.parametrize(
    ("total", "etag", "parts", "kept"),
    [
        (10, '"a"', None, 5),  # all but the last bytes, which may be damaged
        (10, '"a"', every_four, 4),
        (10, 'W/"a"', None, 0),
        (10, None, every_four, 0),
        (None, '"a"', None, 0),
    ],
)
async def test_download_keeps_verified_bytes(
    sink: GrowingSink,
    threads: Threads,
    total: int | None,
    etag: str | None,
    parts: Callable[[int], int] | None,
    kept: int,
) -> None:
    def arrive() -> None:
        sink.start(total, etag, parts)
        for data in (DATA[:4], DATA[4:5], DATA[5:7]):
            sink.feed([data])
        assert sink.growing is not None
        sink.growing.close()
        sink.prepare()
        assert sink.resume_point == (ResumePoint(kept, 10, '"a"', parts is not None) if kept else None)
        sink.start(total, etag, parts)

    await asyncio.to_thread(sink.prepare)
    assert sink.resume_point is None
    await asyncio.to_thread(arrive)
    assert sink.growing is not None
    async with sink.growing.reader(threads) as reader:
        assert await read(reader, 0, kept) == DATA[:kept]
    await asyncio.to_thread(sink.feed, [DATA[kept:]])
    assert await asyncio.to_thread(sink.file.path.read_bytes) == DATA
    assert (sink.file.size, sink.file.md5) == (10, hashlib.md5(DATA, usedforsecurity=False).hexdigest())
    await asyncio.to_thread(close, sink)
