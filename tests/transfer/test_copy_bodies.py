"""The part of a copy is sent while it arrives."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from anyio import fail_after

from async_bento import PartError
from async_bento.transfer.copy_bodies import PartRead

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


async def join(pieces: Sequence[bytes]) -> str:
    return b"".join(pieces).decode()


async def test_pieces_are_passed_on_at_once() -> None:
    passed_on = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        for chunk in (b"a", b"b", b"c"):
            passed_on.clear()
            yield chunk
            await passed_on.wait()

    with fail_after(20):
        async with aclosing(PartRead(chunks(), join)) as part:
            await part.wait_started()
            received = []
            async for piece in part.pieces():
                received.append(piece)
                passed_on.set()
            assert received == [b"a", b"b", b"c"]
            assert await part.verified() == "abc"
            assert [piece async for piece in part.pieces()] == received  # sent again after an error


async def test_read_error_wakes_sender() -> None:
    started = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        yield b"a"
        await started.wait()
        raise PartError("the source is gone", status=404)

    with fail_after(20):
        async with aclosing(PartRead(chunks(), join)) as part:
            pieces = part.pieces()
            assert await anext(pieces) == b"a"
            asyncio.get_running_loop().call_later(0, started.set)
            with pytest.raises(PartError, match="the source is gone"):
                await anext(pieces)
