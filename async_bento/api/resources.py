"""What the APIs of one client share: worker threads, request slots and the byte budget."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio

from async_bento._core.concurrency import ByteBudget, Threads, shielded
from async_bento._core.fork import watch_forks
from async_bento._core.loops import running_loop
from async_bento.errors import ClosedError, ConfigError
from async_bento.integrations.huggingface.client import MODELS_AT_ONCE
from async_bento.progress.events import Progress
from async_bento.transfer.http import TransferPool
from async_bento.transfer.remote import IndexCache

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento._core.tag import Tag
    from async_bento.config import Config
    from async_bento.progress.events import Direction, ProgressListener
    from async_bento.rest.client import RestApiClient

DISK_THREADS = 16
"""Threads of a client that read and write files and compute hashes: enough to keep the queue of a disk filled."""


CLOSED = "the API was closed. Create a new one."
CLOSED_DURING_CALL = "the API was closed during this call. Wait for the call before you close the API."


class _Call(NamedTuple):
    """A running call: its event loop, the scope that cancels it, and an event for its end."""

    loop: asyncio.AbstractEventLoop
    scope: anyio.CancelScope
    ended: anyio.Event


class Resources:
    """Worker threads, request slots and byte budget shared by the calls of one client."""

    def __init__(self, client: RestApiClient, config: Config, listener: ProgressListener | None) -> None:
        self.client = client
        self.config = config
        self.listener = listener
        self.indexes = IndexCache()
        self._threads: Threads | None = None
        self._hub_slots: asyncio.Semaphore | None = None
        self._hub_loop: asyncio.AbstractEventLoop | None = None
        self._pool: TransferPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[_Call] = set()
        self._closed = False
        watch_forks(self)

    def forget_parent(self) -> None:
        """See `ForkAware`: the parent's calls never end here."""
        self._calls = set()
        self._pool = self._hub_slots = None

    @property
    def threads(self) -> Threads:
        """The worker threads for blocking work."""
        if self._threads is None:
            self._threads = Threads(DISK_THREADS)
        return self._threads

    @property
    def hub_slots(self) -> asyncio.Semaphore:
        """Bounds the models in transfer with the Hugging Face Hub on the running event loop."""
        loop = asyncio.get_running_loop()
        if self._hub_slots is None or self._hub_loop is not loop:
            self._hub_loop = loop
            self._hub_slots = asyncio.Semaphore(MODELS_AT_ONCE)
        return self._hub_slots

    @property
    def pool(self) -> TransferPool:
        """What all transfers share on the running event loop."""
        loop = asyncio.get_running_loop()
        if self._pool is None or self._loop is not loop:
            transfer = self.config.transfer
            self._loop = loop
            self._pool = TransferPool(
                config=self.config,
                threads=self.threads,
                slots=asyncio.Semaphore(transfer.concurrency),
                window=ByteBudget(transfer.window),
            )
        return self._pool

    def progress(self, direction: Direction, word: Literal["bento", "model"], tag: Tag) -> Progress:
        """The progress of one item, a context manager."""
        return Progress(direction, word, str(tag), self.listener)

    @asynccontextmanager
    async def call(self) -> AsyncGenerator[None]:
        """Run one API call, which `aclose` cancels; a cancelled call raises ClosedError."""
        self.check_open()
        call = _Call(running_loop(), anyio.CancelScope(), anyio.Event())
        self._calls.add(call)
        try:
            self._check_loop()
            with call.scope:
                yield
        finally:
            self._calls.discard(call)  # not there in a child that was forked during the call
            call.ended.set()
        if call.scope.cancelled_caught:
            raise ClosedError(CLOSED_DURING_CALL)

    def check_open(self) -> None:
        """Raise ClosedError if the API was closed."""
        if self._closed:
            raise ClosedError(CLOSED)

    def _check_loop(self) -> None:
        """Raise ConfigError if another event loop, in another thread, runs calls at the moment."""
        loop = asyncio.get_running_loop()
        if any(call.loop is not loop and not call.loop.is_closed() for call in [*self._calls]):
            raise ConfigError(
                "cannot use an AsyncBentoAPI on two event loops at once: calls are running on another loop. Use one "
                "AsyncBentoAPI per event loop, or a BentoAPI, which several threads may share."
            )

    async def aclose(self, *, keep_client: bool) -> None:
        """Cancel running calls, stop the threads, and close the client unless it belongs to the caller."""
        self._check_loop()
        # Before the first await: no call may start meanwhile.
        self._closed = True
        await shielded(self._close(keep_client))

    async def _close(self, keep_client: bool) -> None:
        calls = [call for call in self._calls if not call.loop.is_closed()]  # the others never end
        for call in calls:
            call.scope.cancel()
        for call in calls:  # a cancelled push reports to the registry first, which needs a connection
            await call.ended.wait()
        if self._threads is not None:
            self._threads.close()
        self._threads = self._pool = None
        if not keep_client:
            await self.client.aclose()
