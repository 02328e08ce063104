"""The checksums of a tar: its size and ETag, and the MD5 of each part, compared while a tar is extracted or copied."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from async_bento._core.concurrency import gathered
from async_bento._core.s3 import bare_etag
from async_bento.config import MiB
from async_bento.errors import APIResponseError, ArchiveError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence

    from async_bento._core.concurrency import Threads
    from async_bento.rest.schemas import ChecksumsSchema
    from async_bento.transfer.download import Sink

MAX_REPEATED = 128 * MiB
"""Bytes of the largest part that a resumed pull downloads again from its start, to verify all of it. The parts of
BentoML have 100 MiB; a larger part is an item that was pushed in one request."""

_MD5 = re.compile(r"[0-9a-fA-F]{32}")


class ObjectChangedError(Exception):
    """The bytes so far do not belong to the object that the server has now."""


class OtherObjectError(ObjectChangedError):
    """The object has another size or ETag than its checksums."""


class DamagedPartError(Exception):
    """The bytes `[start, stop)`, one of the parts, do not have the expected MD5."""

    def __init__(self, number: int, start: int, stop: int, *, expected: str, actual: str) -> None:
        super().__init__(f"part {number} arrived damaged")
        self.number = number
        self.start = start
        self.stop = stop
        self.expected = expected
        self.actual = actual
        self.repeated: str | None = None  # the MD5 in another download


def check_object(checksums: ChecksumsSchema, total: int | None, etag: str | None) -> None:
    """Raise OtherObjectError for another size or ETag; a server, or a proxy, may send none, or a weak ETag."""
    if total is not None and total != checksums.size:
        raise OtherObjectError(f"{total} bytes instead of {checksums.size}")
    if etag and checksums.etag and not etag.startswith("W/") and bare_etag(etag) != bare_etag(checksums.etag):
        raise OtherObjectError(f"the ETag {etag} instead of {checksums.etag}")


class Verifier:
    """Passes a tar on to a sink, in order, and compares the MD5 of each part once its last byte was passed on.

    Of a part that `start` lies within, the rest is not verified.
    """

    def __init__(self, checksums: ChecksumsSchema, failed: str, start: int = 0) -> None:
        if problem := _problem(checksums):
            raise APIResponseError(
                f"{failed}: the registry sent invalid checksums: {problem}. Push it again with force (`--force`).",
                field="checksums.parts",
            )
        self._failed = failed
        self._size = checksums.size
        self._expected = [md5.lower() for _, md5 in checksums.parts]
        self._ends = [*accumulate(size for size, _ in checksums.parts)]
        self.position = start
        """The next byte of the tar."""
        self._md5 = hashlib.md5(usedforsecurity=False) if start in {0, *self._ends} else None
        self._refusal: ArchiveError | None = None

    def next_checkpoint(self, position: int) -> int:
        """The first byte, from `position` on, at which another pull may resume."""
        index = bisect_left(self._ends, position)
        # A pull resumes at any byte of a part above `MAX_REPEATED`, whose rest is then not verified.
        if not position or index == len(self._ends) or self._start_of(index) < self._ends[index] - MAX_REPEATED:
            return position
        return self._ends[index]

    async def check(self, data: Sequence[bytes], threads: Threads) -> None:
        """Hash the next bytes; raise `DamagedPartError` at the end of a part that is damaged."""
        await self.feed(data, None, threads)

    async def feed(self, data: Sequence[bytes], sink: Sink | None, threads: Threads) -> None:
        """Feed the next bytes to the sink, and hash them in another thread meanwhile."""
        for piece in self._split(data):
            calls: list[Awaitable[None]] = [threads.run(self._hash, piece)]
            if sink is not None and self._refusal is None:
                calls.append(threads.run(sink.feed, piece))
            # Both have ended before the next piece: neither the MD5 nor the sink serves two threads.
            for outcome in await gathered(*calls):
                if isinstance(outcome, ArchiveError):
                    self._refusal = outcome  # raised at the end of the part, unless the part is damaged
                elif outcome is not None:
                    raise outcome
            self._advance(sum(map(len, piece)))

    def finish(self) -> None:
        """Raise IntegrityError if the end of the tar is missing."""
        if self._refusal is not None:
            raise self._refusal
        if self.position < self._size:
            raise IntegrityError(f"{self._failed}: {self.position} of {self._size} bytes arrived. Try again.")

    def _split(self, data: Sequence[bytes]) -> Iterator[list[bytes | memoryview]]:
        """Split the next bytes at the ends of the parts, without a copy."""
        position = self.position
        piece: list[bytes | memoryview] = []
        for chunk in data:
            rest = memoryview(chunk)
            while rest:
                index = bisect_right(self._ends, position)
                if index == len(self._ends):
                    raise IntegrityError(f"{self._failed}: the storage sent more than {self._size} bytes")
                taken = rest[: self._ends[index] - position]
                piece.append(taken)
                position += len(taken)
                rest = rest[len(taken) :]
                if position == self._ends[index]:
                    yield piece
                    piece = []
        if piece:
            yield piece

    def _hash(self, piece: Sequence[bytes | memoryview]) -> None:
        if self._md5 is not None:
            for chunk in piece:
                self._md5.update(chunk)

    def _advance(self, count: int) -> None:
        index = bisect_right(self._ends, self.position)
        self.position += count
        is_end = self.position == self._ends[index]
        if is_end and self._md5 is not None and (actual := self._md5.hexdigest()) != self._expected[index]:
            start, stop = self._start_of(index), self._ends[index]
            raise DamagedPartError(index + 1, start, stop, expected=self._expected[index], actual=actual)
        if is_end:
            if self._refusal is not None:
                raise self._refusal
            self._md5 = hashlib.md5(usedforsecurity=False)

    def _start_of(self, index: int) -> int:
        return self._ends[index - 1] if index else 0


def _problem(checksums: ChecksumsSchema) -> str:
    """Why checksums contradict themselves; empty if they do not."""
    for number, (size, md5) in enumerate(checksums.parts, 1):
        if size < 0 or not _MD5.fullmatch(md5):
            return f"part {number} has no MD5" if size >= 0 else f"part {number} has {size} bytes"
    total = sum(size for size, _ in checksums.parts)
    return "" if total == checksums.size else f"the parts have {total} bytes, and the tar {checksums.size}"
