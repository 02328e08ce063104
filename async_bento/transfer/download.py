"""A tar's way from the registry: ranges in parallel, handed on in order, unpacked while later ones are on their way."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from async_bento._core.concurrency import shielded
from async_bento._core.retry import BUSY, with_retries
from async_bento.errors import APIResponseError, IntegrityError, PartError, TransferError
from async_bento.transfer.adaptive import Pace
from async_bento.transfer.http import get

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from async_bento.progress.events import Progress
    from async_bento.rest.routes import AnyRoutes
    from async_bento.rest.schemas import ItemSchema
    from async_bento.rest.transport import Target
    from async_bento.transfer.http import Received, Transport


_CHANGED = "it was pushed anew meanwhile"


class Begun(NamedTuple):
    """What an interrupted download has left.

    Attributes:
        position: The byte to go on with.
        total: Bytes of the tar.
        etag: The ETag it must still have.
    """

    position: int
    total: int
    etag: str


class Sink(Protocol):
    """What takes the bytes of a tar, in order.

    Attributes:
        begun: What it has already, or None for nothing. Not so any more after a `restart`.
    """

    begun: Begun | None

    async def started(self, total: int | None, etag: str | None) -> None:
        """Take note of what will come, before the first bytes do.

        Args:
            total: Bytes of the tar, or None where that is not known.
            etag: Its ETag, or None.
        """
        ...

    async def feed(self, data: Sequence[bytes]) -> None:
        """Take the next bytes.

        Args:
            data: The bytes, in pieces.
        """
        ...

    async def restart(self) -> None:
        """Forget all that was fed: the bytes come again from the first."""
        ...


async def download(
    routes: AnyRoutes, item: ItemSchema, name: str, sink: Sink, transport: Transport, progress: Progress
) -> int:
    """Fetch a tar the way the registry wants it.

    Args:
        routes: The routes of its kind.
        item: Its record.
        name: Its repository.
        sink: What takes the bytes.
        transport: What all transfers share.
        progress: Where to count.

    Returns:
        Bytes of the tar.

    Raises:
        BentoError: It failed.
    """
    job = _Download(routes, item, name, sink, transport, progress)
    try:
        await job.run()
    except _RewindError as error:
        await job.start_afresh(error)
        try:
            await job.run()
        except _RewindError as again:
            raise TransferError(f"cannot pull {name}:{item.version}: {again}, twice; pull it again") from None
    return progress.bytes_done


class _RewindError(Exception):
    """What has come so far is of no use to what comes now."""


class _OnItsWay(NamedTuple):
    """A range that was asked for, and its share of the window in bytes."""

    task: asyncio.Task[list[bytes] | None]
    size: int


def _all_here(ranges: Iterable[_OnItsWay]) -> bool:
    return all(one.task.done() for one in ranges)


@dataclass
class _Download:
    routes: AnyRoutes
    item: ItemSchema
    name: str
    sink: Sink
    transport: Transport
    progress: Progress
    _address: Target | None = field(default=None, init=False)
    _presigning: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _etag: str | None = field(default=None, init=False)
    _total: int | None = field(default=None, init=False)
    _arrived: int = field(default=0, init=False)
    _known: asyncio.Future[None] | None = field(default=None, init=False)
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.transport.config.transfer)

    async def run(self) -> None:
        """Fetch what the sink does not have yet."""
        start = 0
        if begun := self.sink.begun:
            start, self._total, self._etag = begun.position, begun.total, begun.etag
            self.progress.resume(start, begun.total)
            await self.sink.started(begun.total, begun.etag)
        on_their_way: deque[_OnItsWay] = deque()
        try:
            if begun is None:
                start = await self._begin(on_their_way)
            await self._go_on(start, on_their_way)
        finally:
            for one in on_their_way:
                one.task.cancel()
            await shielded(asyncio.gather(*(one.task for one in on_their_way), return_exceptions=True))
            for one in on_their_way:
                self.transport.window.release(one.size)

    async def start_afresh(self, why: _RewindError) -> None:
        """Forget what has come.

        Args:
            why: Why it is of no use.
        """
        await self.sink.restart()
        self._etag = self._total = None
        self.progress.restart(f": {why}")

    async def _begin(self, on_their_way: deque[_OnItsWay]) -> int:
        """Ask for the first range, and wait until its head has told size and ETag, or until it has come to its end."""
        size = self._pace.size
        await self.transport.window.acquire(size)
        self._known = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(self._range(0, size))
        on_their_way.append(_OnItsWay(first, size))
        answer: list[asyncio.Future[Any]] = [first, self._known]
        await asyncio.wait(answer, return_when=asyncio.FIRST_COMPLETED)
        return size

    async def _go_on(self, start: int, on_their_way: deque[_OnItsWay]) -> None:
        """Fetch the rest, several ranges at once, within the window; each is handed on when its turn has come.

        Args:
            start: The first byte that nobody has asked for.
            on_their_way: What was asked for; none is left in it at the end.
        """
        while on_their_way or start < (self._total or 0):
            start = await self._ask_for_more(start, on_their_way)
            first, size = on_their_way[0]
            if not first.done():
                under_way = [one.task for one in on_their_way if not one.task.done()]
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # whose failure ends all, without waiting for its turn
                continue
            data = first.result()
            if self.progress.phase == "transferring" and start >= (self._total or 0) and _all_here(on_their_way):
                self.progress.enter("extracting")
            if data is not None:
                await self.sink.feed(data)
            self.transport.window.release(size)
            on_their_way.popleft()

    async def _ask_for_more(self, start: int, on_their_way: deque[_OnItsWay]) -> int:
        """Ask for as many ranges as the pace and the window allow.

        A share of the window is waited for only while none is held: items that share it never wait for each other.
        """
        total, window = self._total or 0, self.transport.window
        while start < total:
            size, under_way = self._pace.size, sum(not one.task.done() for one in on_their_way)
            if on_their_way and (under_way >= self._pace.at_once or window.would_block(size)):
                break
            await window.acquire(size)
            stop = min(start + size, total)
            on_their_way.append(_OnItsWay(asyncio.create_task(self._range(start, stop)), size))
            start = stop
        return start

    async def _range(self, start: int, stop: int) -> list[bytes] | None:
        """Fetch a range until it is there; None where the server sent the whole tar instead, and the sink has it."""

        async def once() -> list[bytes] | None:
            async with self.transport.slots:
                data = await self._get(start, stop)
            self._arrived += 1
            return data

        return await with_retries(
            self.transport.config.retry, once, progress=lambda: self._arrived, retrying=self.progress.retry
        )

    async def _get(self, start: int, stop: int) -> list[bytes] | None:
        """Fetch a range once.

        Returns:
            The range; None where the server sent the whole tar instead, and the sink has it.
        """
        address = await self._where()
        began = time.monotonic()
        with self.progress.attempt() as count:
            try:
                async with get(address, self.transport.config, start, stop, etag=self._etag) as received:
                    if received.ranged:
                        data = await self._read(received, start, stop, count)
                        now = time.monotonic()
                        self._pace.came(sum(map(len, data)), now - began, now)
                        return data
                    if self._total is not None:
                        raise _RewindError("the server gives no ranges any more")
                    await self._stream(received, count)
                    return None
            except PartError as error:
                if error.status == HTTPStatus.FORBIDDEN and self._address is address:
                    self._address = None  # expired: the next try has a new one
                if error.status in BUSY:
                    self._pace.refused(time.monotonic())
                if error.status == HTTPStatus.PRECONDITION_FAILED:
                    raise _RewindError(_CHANGED) from error
                if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start > 0:
                    raise _RewindError(_CHANGED) from error
                raise

    async def _read(self, received: Received, start: int, stop: int, count: Callable[[int], None]) -> list[bytes]:
        if self._total is None:
            self._total, self._etag = received.total, received.etag
            self.progress.enter("transferring", bytes_total=received.total)
            await self.sink.started(received.total, received.etag)
            if self._known is not None and not self._known.done():
                self._known.set_result(None)
        elif received.total != self._total or (received.etag and self._etag and received.etag != self._etag):
            raise _RewindError(_CHANGED)  # there are storages that know no If-Match
        size = min(stop, self._total or stop) - start
        data: list[bytes] = []  # as they come: put together, they would be copied for nothing
        arrived = 0
        async for chunk in received.response.content.iter_any():
            arrived += len(chunk)
            if arrived > size:
                raise IntegrityError(f"{self._tag}: the storage sent more than the {size} bytes it was asked for")
            data.append(chunk)
            count(len(chunk))
        if arrived < size:
            raise IntegrityError(f"{self._tag}: the connection ended within a range")
        return data

    async def _stream(self, received: Received, count: Callable[[int], None]) -> None:
        self.progress.enter("transferring", bytes_total=received.total)
        await self.sink.started(received.total, received.etag)
        io_chunk = self.transport.config.transfer.io_chunk
        data: list[bytes] = []
        size = 0
        try:
            async for chunk in received.response.content.iter_any():
                data.append(chunk)
                size += len(chunk)
                count(len(chunk))
                if size >= io_chunk:
                    await self.sink.feed(data)
                    data, size = [], 0
            await self.sink.feed(data)
        except Exception:
            await self.sink.restart()
            raise

    async def _where(self) -> Target:
        """The address, presigned anew when the last one has expired."""
        async with self._presigning:
            if self._address is None:
                self._address = await self._ask_where()
            return self._address

    async def _ask_where(self) -> Target:
        if self.item.transmission_strategy != "proxy":
            item = await self.routes.presign_download(self.name, self.item.version)
            if item.presigned_download_url.get_secret_value():
                return self.routes.session.storage_target(item.presigned_download_url)
            if self.item.transmission_strategy is not None:
                raise APIResponseError(
                    f"the registry presigned no download of {self._tag}", field="presigned_download_url"
                )
        return self.routes.download_target(self.name, self.item.version)

    @property
    def _tag(self) -> str:
        return f"{self.name}:{self.item.version}"
