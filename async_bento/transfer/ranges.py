"""Ranges of a remote tar, read at any position, from one object that must not change; for remote tars and copies."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from async_bento._core.retry import BUSY, Retries
from async_bento.errors import APIStatusError, PartError
from async_bento.transfer.adaptive import AdaptiveRanges
from async_bento.transfer.download import read_range
from async_bento.transfer.download_source import CHANGED
from async_bento.transfer.http import ByteRange, get
from async_bento.transfer.verify import ObjectChangedError
from async_bento.transfer.window import PendingRanges

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento._core.concurrency import ByteBudget
    from async_bento.rest.transport import Target
    from async_bento.transfer.download_source import DownloadSource
    from async_bento.transfer.http import TransferPool


class NoRangesError(Exception):
    """The server sends the whole tar, whatever range was asked for."""


class RangeReader:
    """Reads ranges with retries; `total` and `etag` are those of the object, known after the first range."""

    def __init__(self, source: DownloadSource, pool: TransferPool) -> None:
        self.total: int | None = None
        self.etag: str | None = None
        self._source = source
        self._pool = pool
        self._ranges = AdaptiveRanges(pool.config.transfer)
        self._ranges_done = 0

    async def read(self, byte_range: ByteRange) -> bytes:
        """Read one range, which may end before its `stop`, at the end of the object."""
        return b"".join(await self._read_pieces(byte_range))

    async def pieces(self, byte_range: ByteRange) -> AsyncGenerator[bytes]:
        """Yield the bytes of a range in the pieces that arrive; after an error, request the rest of the range."""
        retries, has_no_ranges = Retries(self._pool.config.retry, progress=lambda: self._ranges_done), False
        position = byte_range.start
        while True:
            target = await self._source.target()
            if has_no_ranges and target.credentials is not None:  # `ask_storage` led to no storage
                raise NoRangesError
            try:
                async with self._pool.slot(target):
                    numbered = replace(target, attempt=retries.failures + 1)
                    rest = ByteRange(position, byte_range.stop)
                    async with aclosing(self._read_once(numbered, target, rest)) as pieces:
                        async for piece in pieces:
                            position += len(piece)
                            yield piece
            except NoRangesError:
                if self.total is not None:
                    raise ObjectChangedError("the server no longer supports range requests") from None
                has_no_ranges = True
                if target.credentials is None or not self._source.ask_storage():
                    raise
            except Exception as error:
                # After the last byte there is no rest to request: an empty range is not valid (RFC 9110, 14.1.1).
                is_all = position == min(byte_range.stop, self.total or byte_range.stop)
                if is_all or not await self._source.wait_after_failure(retries, target, error):
                    raise
            else:
                self._ranges_done += 1
                return

    async def _read_pieces(self, byte_range: ByteRange) -> list[bytes]:
        async with aclosing(self.pieces(byte_range)) as pieces:
            return [piece async for piece in pieces]

    async def _read_once(self, numbered: Target, target: Target, byte_range: ByteRange) -> AsyncGenerator[bytes]:
        started, arrived = time.perf_counter(), 0
        try:
            async with get(numbered, byte_range, self._pool.config, etag=self.etag) as received:
                if not received.is_partial:
                    raise NoRangesError
                if self.total is None:
                    self.total, self.etag = received.total, received.etag
                elif received.total != self.total or (received.etag and self.etag and received.etag != self.etag):
                    raise ObjectChangedError(CHANGED)  # some storages ignore If-Match
                size = min(byte_range.stop, self.total or byte_range.stop) - byte_range.start
                async for piece in read_range(received, size, self._source.failed):
                    arrived += len(piece)
                    yield piece
        except (APIStatusError, PartError) as error:
            if error.status in BUSY:
                self._ranges.throttle(time.perf_counter())
            if error.status == HTTPStatus.NOT_FOUND and self.total is not None:
                raise ObjectChangedError("the item was deleted") from error
            self._source.check_refusal(error, target, byte_range)
            raise
        now = time.perf_counter()
        self._ranges.record(arrived, now - started, now)

    async def chunks(self, byte_range: ByteRange, window: ByteBudget | None = None) -> AsyncGenerator[bytes]:
        """Read a large range in order, several requests at once within a window: the one that all downloads share."""
        async with aclosing(self.chunks_in_pieces(byte_range, window)) as chunks:
            async for pieces in chunks:
                yield b"".join(pieces)

    async def chunks_in_pieces(
        self, byte_range: ByteRange, window: ByteBudget | None = None
    ) -> AsyncGenerator[list[bytes]]:
        """Like `chunks`, with each chunk in the pieces that arrived."""
        position = byte_range.start
        async with aclosing(PendingRanges(self._read_pieces, self._ranges, window or self._pool.window)) as pending:
            while pending or position < byte_range.stop:
                position = await pending.request(position, byte_range.stop)
                pieces = await pending.first
                pending.release_first()
                yield pieces
