"""The body of an upload: what it writes, when it waits for the peer, and what the peer has acknowledged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_bento import IntegrityError
from async_bento._core import platform
from async_bento.progress.events import Progress
from async_bento.transfer.body import WRITE_SIZE, UploadBody
from async_bento.transfer.http import ByteRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Body(UploadBody):
    """A body of 10 bytes, made of some chunks, whose last bytes are held back."""

    def __init__(self, chunks: Sequence[bytes], size: int = 10) -> None:
        self.progress = Progress("push", "model", "mod:m1", None)
        super().__init__(object(), ByteRange(0, size), self.progress)
        self._chunks = chunks
        self.before_chunks: list[bool] = []
        """Whether the body was waiting before each chunk."""

    async def _write(self, writer: Any) -> None:
        held = memoryview(b"")
        for chunk in self._chunks:
            self.before_chunks.append(self.is_waiting)
            held = await self._send_chunk(writer, held, chunk)
        await self._send_last(writer, held)


class Writer:
    """Records the writes, and calls a function in each of them."""

    def __init__(self, transport: object = None, in_write: Callable[[], object] = lambda: None) -> None:
        self.transport = transport
        self.written: list[bytes] = []
        self._in_write = in_write

    async def write(self, chunk: memoryview) -> None:
        self._in_write()
        self.written.append(bytes(chunk))


async def send(body: UploadBody, writer: object) -> None:
    """Write a body to a writer that stands in for that of aiohttp."""
    target: Any = writer
    await body.write(target)


async def test_body_is_waiting_for_peer_only() -> None:
    """While the disk is read, no stall is counted."""
    body, in_writes = Body([b"12345", b"67", b"890"]), list[bool]()
    assert body.is_waiting  # for a connection

    await send(body, Writer(in_write=lambda: in_writes.append(body.is_waiting)))

    assert body.before_chunks == [False, False, False]
    assert in_writes == [True, True, True]
    assert body.is_waiting  # for the response


@pytest.mark.parametrize("error", [ConnectionResetError(), aiohttp.ClientConnectionError()], ids=repr)
async def test_body_is_sent_again_after_error(error: Exception) -> None:
    """An error of the connection is none of reading the bytes."""

    def lose_connection() -> None:
        raise error

    body, writer = Body([b"12345", b"67890"]), Writer()
    with pytest.raises(type(error)):
        await send(body, Writer(in_write=lose_connection))
    assert body.failure is None
    assert body.progress.bytes_done == 5

    await send(body, writer)

    assert b"".join(writer.written) == b"1234567890"
    assert body.before_chunks == [False] * 4
    assert body.progress.bytes_done == 10
    body.rewind()
    assert body.progress.bytes_done == 0


async def test_body_writes_are_small() -> None:
    chunks = [b"x" * (2 * WRITE_SIZE + 100), b"y" * 5]
    writer = Writer()
    await send(Body(chunks, 2 * WRITE_SIZE + 105), writer)

    assert [len(written) for written in writer.written] == [WRITE_SIZE, 100, WRITE_SIZE, 5]
    assert b"".join(writer.written) == b"".join(chunks)


async def test_body_last_bytes_held_until_checked() -> None:
    """A storage that has all bytes responds at once."""
    body, writer = Body([b"12345", b"6789"]), Writer()

    with pytest.raises(IntegrityError, match=r"^cannot send a part of 10 bytes: 9 bytes were read$") as caught:
        await send(body, writer)

    assert writer.written == [b"12345"]
    assert body.failure is caught.value
    assert not body.may_have_arrived
    body.rewind()
    assert body.failure is None


@pytest.mark.parametrize(("in_kernel", "acknowledged"), [(2, 5), (0, 7), (None, 7)])
async def test_body_acknowledged_excludes_buffers(
    monkeypatch: pytest.MonkeyPatch, in_kernel: int | None, acknowledged: int
) -> None:
    monkeypatch.setattr(platform, "unacknowledged", lambda _: in_kernel)
    transport = SimpleNamespace(get_write_buffer_size=lambda: 3, is_closing=lambda: False, get_extra_info=lambda _: 1)
    body, writer = Body([b"1234567890"]), Writer(transport)

    await send(body, writer)

    assert body.acknowledged == acknowledged
    assert body.is_followed == (in_kernel is not None)
    transport.is_closing = lambda: True  # then the kernel is not asked
    assert (body.acknowledged, body.is_followed) == (7, True)
    writer.transport = None
    assert (body.acknowledged, body.is_followed) == (10, True)


async def test_body_without_socket_is_not_followed() -> None:
    transport = SimpleNamespace(
        get_write_buffer_size=lambda: 3, is_closing=lambda: False, get_extra_info=lambda _: None
    )
    body = Body([b"1234567890"])
    await send(body, Writer(transport))
    assert (body.acknowledged, body.is_followed) == (7, False)
