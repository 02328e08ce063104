"""The requests for the index and the contents of a remote tar."""

from __future__ import annotations

import io
import tarfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import Config, UnsafeArchiveError
from async_bento._core.concurrency import Threads
from async_bento.transfer import remote
from async_bento.transfer.remote import IndexCache, IndexKey, RemoteTar, _joined
from async_bento.transfer.tar.selection import Piece
from tests.builders import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from async_bento.transfer.http import ByteRange

entry: Any = None


@pytest.mark.parametrize(
    ("pieces", "joined"),
    [
        ([], [(b"", 0, 0)]),
        ([(b"", 0, 10), (b"", 10, 20)], [(b"", 0, 20)]),
        ([(b"", 5, 10), (b"", 12, 20)], [(b"", 0, 0), (b"", 5, 10), (b"", 12, 20)]),
        ([(b"", 0, 10), (b"p", 10, 20), (b"", 20, 30)], [(b"", 0, 10), (b"p", 10, 30)]),
        ([(b"p", 5, 5), (b"q", 7, 7), (b"r", 9, 12)], [(b"pq", 0, 0), (b"r", 9, 12)]),
        ([(b"", 0, 10), (b"p", 20, 20), (b"q", 30, 30)], [(b"", 0, 10), (b"pq", 20, 20)]),
        ([(b"p", 5, 9), (b"q", 9, 9)], [(b"", 0, 0), (b"p", 5, 9), (b"q", 9, 9)]),
    ],
)
def test_remote_pieces_share_requests(
    pieces: list[tuple[bytes, int, int]], joined: list[tuple[bytes, int, int]]
) -> None:
    assert [*_joined([Piece(*piece, entry) for piece in pieces])] == joined


def test_remote_index_cache_evicts_least_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_CACHED", 3)
    cache = IndexCache()
    keys = [IndexKey("https://registry.example", "model", "mod:m1", etag) for etag in "abcd"]
    indexes: list[Any] = [SimpleNamespace(entries=range(count)) for count in (1, 2, 1, 1)]
    cache.add(keys[0], indexes[0])
    cache.add(keys[1], indexes[1])
    assert cache.get(keys[0]) is indexes[0]

    cache.add(keys[2], indexes[2])

    assert [cache.get(key) for key in keys] == [indexes[0], None, indexes[2], None]


def tar_of(sizes: list[int]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"./{number}")
            info.size = size
            tar.addfile(info, io.BytesIO(bytes([number % 251]) * size))
    return output.getvalue()


class Reader:
    """Reads ranges of a tar, and records them."""

    def __init__(self, tar: bytes) -> None:
        self.tar = tar
        self.total: int | None = None
        self.etag: str | None = None
        self.ranges: list[tuple[int, int]] = []
        self._calls = 0

    async def chunks(self, byte_range: ByteRange, window: object = None) -> AsyncGenerator[bytes]:
        self._calls += 1
        assert self._calls < 50, "the index makes no progress"
        if byte_range.size:
            self.ranges.append(tuple(byte_range))
        self.total, self.etag = len(self.tar), '"etag"'
        for start in range(byte_range.start, min(byte_range.stop, len(self.tar)), MiB):
            yield self.tar[start : min(start + MiB, byte_range.stop)]


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads(1)
    yield threads
    threads.close()


def remote_tar(threads: Threads, reader: Any) -> RemoteTar:
    source: Any = SimpleNamespace(kind="model", tag="mod:m1")
    pool: Any = SimpleNamespace(config=Config(), threads=threads)
    tar = RemoteTar(source, pool, IndexCache(), "https://registry.example")
    tar._reader = reader
    return tar


async def test_remote_window_grows_over_small_files(threads: Threads) -> None:
    reader = Reader(tar_of([7680] * 200))  # members of 8 KiB
    tar = remote_tar(threads, reader)

    await tar.load()

    assert len(tar.index.entries) == 200
    ends = [64, 192, 448, 960, 1600 + 10]  # KiB, with the end of the tar and its padding
    assert [stop for _, stop in reader.ranges] == [end * KiB for end in ends]
    assert [start for start, _ in reader.ranges] == [0, *(end * KiB for end in ends[:-1])]


async def test_remote_window_shrinks_after_large_file(threads: Threads) -> None:
    """The content of a large file is skipped, and what follows it may be small."""
    reader = Reader(tar_of([7680, 3 * MiB - 512, 100, 3 * MiB - 512, 100]))
    tar = remote_tar(threads, reader)

    await tar.load()

    member = 8 * KiB
    second = member + 3 * MiB + 1024
    assert len(tar.index.entries) == 5
    assert reader.ranges == [
        (0, 64 * KiB),
        (member + 3 * MiB, member + 3 * MiB + 16 * KiB),
        (second + 3 * MiB, len(reader.tar)),
    ]


@pytest.mark.parametrize(
    ("start", "stop", "requested"),
    [
        (0, 10, []),
        (10, 64 * KiB, []),
        (10, 70 * KiB, [(64 * KiB, 70 * KiB)]),
        (64 * KiB, 70 * KiB, [(64 * KiB, 70 * KiB)]),
        (90 * KiB, 95 * KiB, [(90 * KiB, 95 * KiB)]),
        (10, 10, []),
    ],
)
async def test_remote_window_is_read_once(
    threads: Threads, start: int, stop: int, requested: list[tuple[int, int]]
) -> None:
    reader = Reader(tar_of([500_000, 3]))
    tar = remote_tar(threads, reader)
    await tar.load("0")
    reader.ranges.clear()

    chunks = [chunk async for chunk in tar.chunks(start, stop)]

    assert b"".join(chunks) == reader.tar[start:stop]
    assert reader.ranges == requested


async def test_remote_later_window_is_read_once(threads: Threads) -> None:
    reader = Reader(tar_of([3 * MiB, 100, 100]))
    tar = remote_tar(threads, reader)
    await tar.load()
    start, _ = reader.ranges[-1]
    reader.ranges.clear()

    for first in (start, start + 600):
        assert b"".join([chunk async for chunk in tar.chunks(first, first + 50)]) == reader.tar[first : first + 50]

    assert not reader.ranges


@pytest.mark.parametrize("size", [1024, 1536, 512])
async def test_remote_tar_without_end_is_rejected(threads: Threads, size: int) -> None:
    """It ends after a member, after the header of another one, or within a member."""
    tar = remote_tar(threads, Reader(tar_of([100, 100])[:size]))
    with pytest.raises(UnsafeArchiveError, match="the tar is truncated"):
        await tar.load()


async def test_remote_index_is_cached_by_etag(threads: Threads) -> None:
    reader = Reader(tar_of([7680] * 200))
    first = remote_tar(threads, reader)
    await first.load()
    reader.ranges.clear()
    second = remote_tar(threads, reader)
    second._cache = first._cache

    await second.load()

    assert second.index is first.index
    assert reader.ranges == [(0, 64 * KiB)]
