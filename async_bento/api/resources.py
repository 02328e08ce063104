"""What the APIs of one client share: the registry, the threads, the budget, and who is told of progress."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import anyio

from async_bento._core.concurrency import ByteBudget, Threads, shielded
from async_bento.errors import ClosedError
from async_bento.integrations.huggingface.client import MODELS_AT_ONCE
from async_bento.progress.events import Progress
from async_bento.transfer.http import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
    from typing import Any, Concatenate

    from typing_extensions import ParamSpec

    from async_bento.config import Config
    from async_bento.progress.events import ProgressListener
    from async_bento.rest.client import RestApiClient
    from async_bento.store.tag import Tag

    P = ParamSpec("P")

T = TypeVar("T")

DISK_THREADS = 16
"""Threads of a client that read and write files and compute hashes: enough to keep a disk's queue filled."""


class Resources:
    """One client's hold on a registry.

    Args:
        client: Who speaks to the registry.
        config: The settings.
        listener: Who is told of progress.
    """

    def __init__(self, client: RestApiClient, config: Config, listener: ProgressListener | None) -> None:
        self.client = client
        self.config = config
        self.listener = listener
        self._threads: Threads | None = None
        self._hub_slots: asyncio.Semaphore | None = None
        self._hub_loop: asyncio.AbstractEventLoop | None = None
        self._transport: Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[anyio.CancelScope, anyio.Event] = {}

    @property
    def threads(self) -> Threads:
        """Where blocking work is done."""
        if self._threads is None:
            self._threads = Threads(DISK_THREADS)
        return self._threads

    @property
    def hub_slots(self) -> asyncio.Semaphore:
        """Models on their way from or to the Hugging Face Hub on the running event loop, `MODELS_AT_ONCE` in all."""
        loop = asyncio.get_running_loop()
        if self._hub_slots is None or self._hub_loop is not loop:
            self._hub_loop = loop
            self._hub_slots = asyncio.Semaphore(MODELS_AT_ONCE)
        return self._hub_slots

    @property
    def transport(self) -> Transport:
        """What all transfers share on the running event loop."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._loop is not loop:
            transfer = self.config.transfer
            self._loop = loop
            self._transport = Transport(
                config=self.config,
                threads=self.threads,
                slots=asyncio.Semaphore(transfer.concurrency),
                window=ByteBudget(transfer.window),
            )
        return self._transport

    def progress(self, direction: Literal["push", "pull"], kind: Literal["bento", "model"], tag: Tag) -> Progress:
        """Begin to tell of an item.

        Args:
            direction: Which way it goes.
            kind: `bento` or `model`.
            tag: Which one.

        Returns:
            Its progress, a context manager.
        """
        return Progress(direction, kind, str(tag), self.listener)

    @asynccontextmanager
    async def call(self) -> AsyncGenerator[None]:
        """Let what is done within be ended by `aclose`.

        Yields:
            Nothing.

        Raises:
            ClosedError: It was.
        """
        scope, ended = anyio.CancelScope(), anyio.Event()
        self._calls[scope] = ended
        try:
            with scope:
                yield
        finally:
            del self._calls[scope]
            ended.set()
        if scope.cancelled_caught:
            raise ClosedError(
                "the API was closed while this call ran; end it, or wait for it, before you close the API"
            )

    async def aclose(self, *, keep_client: bool) -> None:
        """End the calls that run, let the threads end and close the connections; a later call opens them again.

        Args:
            keep_client: Whether the connections are someone else's to close.
        """
        await shielded(self._close(keep_client))

    async def _close(self, keep_client: bool) -> None:
        calls = {**self._calls}
        for scope in calls:
            scope.cancel()
        for ended in calls.values():  # each tells the registry first, for which it needs a connection
            await ended.wait()
        if self._threads is not None:
            self._threads.close()
        self._threads = self._transport = None
        if not keep_client:
            await self.client.aclose()


class _HasConnection(Protocol):
    _resources: Resources


SelfT = TypeVar("SelfT", bound=_HasConnection)


def call(
    method: Callable[Concatenate[SelfT, P], Awaitable[T]],
) -> Callable[Concatenate[SelfT, P], Coroutine[Any, Any, T]]:
    """Let a method of an API be ended when that is closed.

    Args:
        method: The method.

    Returns:
        The same, which raises `ClosedError` then.
    """

    @wraps(method)
    async def called(self: SelfT, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._resources.call():  # pyright: ignore[reportPrivateUsage]
            return await method(self, *args, **kwargs)

    return called
