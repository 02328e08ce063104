"""A tar in the registry, read without a pull: its headers by ranges, and the contents that a caller requests.

Where the server sends no ranges, or the tar is compressed, the tar is streamed up to the last byte that is needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from async_bento.config import KiB, MiB
from async_bento.progress.events import Progress
from async_bento.transfer.adaptive import MIN_RANGE
from async_bento.transfer.download import download
from async_bento.transfer.download_source import CHANGED
from async_bento.transfer.http import ByteRange
from async_bento.transfer.ranges import NoRangesError, RangeReader
from async_bento.transfer.stream import EndOfPiecesError, OtherTarError, StreamSink
from async_bento.transfer.tar.decompress import MAGIC_SIZE, decompressor_for
from async_bento.transfer.tar.index import TarIndex
from async_bento.transfer.tar.selection import KnownPieces, MatchingFiles, OneFile, Piece
from async_bento.transfer.verify import ObjectChangedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from async_bento._core.concurrency import ByteBudget
    from async_bento.transfer.download_source import DownloadSource
    from async_bento.transfer.http import TransferPool
    from async_bento.transfer.stream import Output
    from async_bento.transfer.tar.index import IndexEntry
    from async_bento.transfer.tar.selection import Selector

logger = logging.getLogger(__package__)

FIRST_WINDOW = 64 * KiB
"""Bytes of the first request: the headers of a hundred files. It also finds the ETag, and so a cached index."""

MIN_WINDOW = 16 * KiB
"""The smallest window, after the content of a large file: a header, its PAX records and some small files."""

MAX_WINDOW = 16 * MiB
"""The largest window, where the windows before had many small files. It is read by several requests at once. If a large
file follows, some are in vain, of no more bytes than the small files had."""

MAX_CACHED = 200_000
"""Members of all cached indexes of a client: about 100 MB."""


class IndexKey(NamedTuple):
    """An object: where its item is, and its ETag."""

    endpoint: str
    kind: str
    tag: str
    etag: str


class IndexCache:
    """Complete indexes of a client, the least recently used evicted first."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[IndexKey, TarIndex] = OrderedDict()

    def get(self, key: IndexKey) -> TarIndex | None:
        """The index of an object."""
        if key in self._indexes:
            self._indexes.move_to_end(key)
        return self._indexes.get(key)

    def add(self, key: IndexKey, index: TarIndex) -> None:
        """Keep a complete index."""
        self._indexes[key] = index
        while sum(len(one.entries) for one in self._indexes.values()) > MAX_CACHED:
            self._indexes.popitem(last=False)


class RemoteTar:
    """One object: a tar whose members are found as far as they are needed. It must not change meanwhile.

    Raises `ObjectChangedError` once it has changed.
    """

    def __init__(self, source: DownloadSource, pool: TransferPool, cache: IndexCache, endpoint: str) -> None:
        self.index = TarIndex(pool.config.limits)
        self.is_streamed = False
        self._source = source
        self.pool = pool
        self._cache = cache
        self._endpoint = endpoint
        self._reader = RangeReader(source, pool)
        self._lock = asyncio.Lock()
        self._window = b""
        self._window_start = 0
        self._window_size = FIRST_WINDOW

    @property
    def total(self) -> int | None:
        """The size of the tar in bytes; None before the first range, and of a tar that is streamed."""
        return self._reader.total

    @property
    def etag(self) -> str | None:
        """The ETag of the tar; None like `total`, and where the storage sends none."""
        return self._reader.etag

    async def load(self, path: str | None = None, *, stream: bool = True) -> None:
        """Find all members, or those up to `path`; a streamed tar is read only for all members, with `stream`."""
        async with self._lock:
            while not (self.index.is_complete or self.is_streamed or path in self.index.entries):
                try:
                    await self._load_window()
                except NoRangesError:
                    self._stream_because("the registry sends no ranges")
            if self.is_streamed and path is None and stream and not self.index.is_complete:
                await self._download(None, None)

    async def _load_window(self) -> None:
        position = self.index.next_byte
        if self._reader.total is not None and position >= self._reader.total:
            self.index.check_end()
        stop = min(position + self._window_size, self._reader.total or self._window_size)
        async with aclosing(self._reader.chunks(ByteRange(position, stop))) as chunks:
            async for data in chunks:
                if position == 0:
                    if decompressor_for(data[:MAGIC_SIZE]) is not None:
                        self._stream_because("the tar is compressed")
                        return
                    if (key := self._key) and (cached := self._cache.get(key)):
                        self.index = cached
                        return
                self._window, self._window_start = data, position  # small files of it are not requested again
                await self.pool.threads.run(self.index.feed, memoryview(data)[self.index.next_byte - position :])
                position += len(data)
                # The rest of the window may be the content of a large file, which is skipped.
                if self.index.is_complete or self.index.next_byte - position >= MIN_RANGE:
                    break
        self._check_window(position)

    def _check_window(self, stop: int) -> None:
        """Cache a complete index; of an incomplete one, check that the tar has bytes left for it."""
        if self.index.is_complete:
            if key := self._key:
                self._cache.add(key, self.index)
            return
        if self._reader.total is not None and self.index.next_byte > self._reader.total:
            self.index.check_end()
        self._adapt_window(stop)

    def _adapt_window(self, stop: int) -> None:
        """Grow the window where files are small, and shrink it after the content of a large one."""
        is_dense = self.index.next_byte - stop < self._window_size
        size = 2 * self._window_size if is_dense else self._window_size // 4
        self._window_size = min(max(size, MIN_WINDOW), MAX_WINDOW)

    @property
    def _key(self) -> IndexKey | None:
        etag = self._reader.etag
        return IndexKey(self._endpoint, self._source.kind, self._source.tag, etag) if etag else None

    def _stream_because(self, reason: str) -> None:
        self.is_streamed = True
        logger.info("%s: %s, so the tar is downloaded as far as it is needed", self._source.tag, reason)

    async def chunks(self, start: int, stop: int, window: ByteBudget | None = None) -> AsyncGenerator[bytes]:
        """The bytes `[start, stop)` of a tar that is not streamed; those of the last window are not read again."""
        offset = start - self._window_start
        if 0 <= offset < len(self._window) and start < stop:
            head = self._window[offset : offset + stop - start]
            start += len(head)
            yield head
        async with aclosing(self._reader.chunks(ByteRange(start, stop), window)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def copy(self, pieces: Sequence[Piece], output: Output, progress: Progress) -> None:
        """Pass pieces to an output, in the order of the tar."""
        if self.is_streamed:
            await self._download(KnownPieces(pieces), output, progress)
            return
        progress.enter("transferring", bytes_total=sum(piece.stop - piece.start for piece in pieces))
        run = self.pool.threads.run
        for prefix, start, stop in _joined(pieces):
            await run(output.feed, prefix)
            async with aclosing(self.chunks(start, stop)) as chunks:
                async for chunk in chunks:
                    await run(output.feed, chunk)
                    progress.advance(len(chunk))

    async def copy_content(self, entry: IndexEntry, output: Output) -> None:
        """Pass the content of a file to an output."""
        await self.copy([Piece(b"", entry.content, entry.stop, entry)], output, self._silent)

    async def copy_streamed(self, path: str, output: Output) -> bool:
        """Pass the content of a file that is not in the index to an output; False if it is no file, or a link."""
        selector = OneFile(path)
        await self._download(selector, output)
        return selector.is_found

    async def copy_matching(
        self, include: Sequence[str], exclude: Sequence[str], output: Output, progress: Progress
    ) -> bool:
        """Pass the members that match, and what they need, to an output while the tar is streamed and indexed.

        False where a member needs bytes that have passed; a second download can copy them by the index.
        """
        selector = MatchingFiles(include, exclude)
        await self._download(selector, output, progress)
        return selector.is_possible

    async def _download(
        self, selector: Selector | None, output: Output | None, progress: Progress | None = None
    ) -> None:
        """Stream the tar up to the last piece; keep the index of the whole tar."""
        sink = StreamSink(self.pool.config.limits, selector, output)
        try:
            await download(self._source, sink, self.pool, progress or self._silent)
            sink.close()
        except EndOfPiecesError:
            pass
        except OtherTarError:
            raise ObjectChangedError(CHANGED) from None
        if sink.index.is_complete:
            self.index = sink.index

    @property
    def _silent(self) -> Progress:
        return Progress("pull", "model" if self._source.kind == "model" else "bento", self._source.tag, None)


def _joined(pieces: Sequence[Piece]) -> Iterator[tuple[bytes, int, int]]:
    """Join pieces that follow one another, so that small files share a request."""
    prefix, start, stop = b"", 0, 0
    for piece in pieces:
        if not piece.prefix and piece.start == stop:
            stop = piece.stop
        elif piece.start == piece.stop and start == stop:
            prefix += piece.prefix
        else:
            yield prefix, start, stop
            prefix, start, stop, _ = piece
    yield prefix, start, stop
