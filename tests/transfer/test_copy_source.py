"""The source of a copy: its part sizes, the verification of its parts, and its stream."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from anyio import fail_after

from async_bento import Config, IntegrityError
from async_bento.config import MiB
from async_bento.rest.schemas import ChecksumsSchema
from async_bento.transfer import copy
from async_bento.transfer.copy import CopySource, _Stream
from async_bento.transfer.http import ByteRange
from async_bento.transfer.source import choose_part_size
from async_bento.transfer.verify import DamagedPartError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

WANTED = 16 * MiB


def source_of(sizes: Sequence[int]) -> CopySource:
    """The source of a tar whose registry has the checksums of parts of these sizes."""
    reads: Any = SimpleNamespace(pool=SimpleNamespace(config=Config()))
    download: Any = SimpleNamespace(failed="cannot copy mod:m1")
    check: Any = None
    source = CopySource(download, reads, check, "m1")
    source.size = sum(sizes)
    source._checksums = ChecksumsSchema(size=source.size, etag="", parts=[(size, "0" * 32) for size in sizes])
    return source


@pytest.mark.parametrize("sizes", [[5, 5, 5], [5, 5, 3], [16, 16, 1], [6, 1], [6, 6, 6, 6]], ids=str)
async def test_copy_keeps_parts_of_source(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "MAX_PARTS", 4)
    source = source_of([size * MiB for size in sizes])
    assert source.choose_part_size(WANTED, 10) == sizes[0] * MiB
    assert await source.fingerprint()


@pytest.mark.parametrize("sizes", [[4, 4, 1], [17, 17, 1], [6, 6, 7], [6, 7, 6], [6], [6] * 5, [7, 6, 6]], ids=str)
async def test_copy_of_other_parts_not_resumed(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum of a part of the source covers several parts, or a part of them."""
    monkeypatch.setattr(copy, "MAX_PARTS", 4)
    source = source_of([size * MiB for size in sizes])
    assert source.choose_part_size(WANTED, 1) == choose_part_size(source.size, WANTED, 1)
    assert await source.fingerprint() is None


async def test_copy_damaged_part_has_number() -> None:
    source = source_of([5 * MiB, 5 * MiB, 5 * MiB])
    source.choose_part_size(WANTED, 1)

    with pytest.raises(DamagedPartError) as caught:
        await source._verify_part(ByteRange(5 * MiB, 10 * MiB), [], "1" * 32, asyncio.Event())

    error = caught.value
    assert (error.number, error.start, error.stop) == (2, 5 * MiB, 10 * MiB)
    assert (error.expected, error.actual) == ("0" * 32, "1" * 32)


async def test_copy_stream_is_bounded() -> None:
    """The stream holds the chunk that is read, and one ahead."""
    read: list[bytes] = []

    async def chunks() -> AsyncGenerator[bytes]:
        for chunk in (b"abc", b"def", b"ghi", b"jkl"):
            read.append(chunk)
            yield chunk

    with fail_after(20):
        async with aclosing(_Stream(chunks(), 7)) as stream:
            assert await stream.next(2) == b"ab"
            assert stream.position == 9
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(read) == 3
            assert [await stream.next(9) for _ in range(4)] == [b"c", b"def", b"ghi", b"jkl"]
            assert stream.position == 19
            with pytest.raises(IntegrityError, match="the tar ended early"):
                await stream.next(9)
