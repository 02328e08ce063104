"""What the APIs of one client share: the registry, the threads, the budget, and who is told of progress."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from async_bento.concurrency import Budget, Threads
from async_bento.huggingface.hub import MODELS_AT_ONCE
from async_bento.progress import Progress
from async_bento.transfer.http import Transport

if TYPE_CHECKING:
    from async_bento.config import Config
    from async_bento.progress import ProgressListener
    from async_bento.store.tag import Tag
    from async_bento.wire.client import RestApiClient

DISK_THREADS = 16
"""Threads of a client that read and write files and compute hashes: enough to keep a disk's queue filled."""


class Connection:
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
        self._hub_threads: Threads | None = None
        self._transport: Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def threads(self) -> Threads:
        """Where blocking work is done."""
        if self._threads is None:
            self._threads = Threads(DISK_THREADS)
        return self._threads

    @property
    def hub_threads(self) -> Threads:
        """Where the Hugging Face Hub is spoken to: apart from the disk's work, since a download may take hours."""
        if self._hub_threads is None:
            self._hub_threads = Threads(MODELS_AT_ONCE)
        return self._hub_threads

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
                window=Budget(transfer.window),
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

    async def aclose(self, *, keep_client: bool) -> None:
        """Let the threads end and close the connections; both come back when they are needed again.

        Args:
            keep_client: Whether the connections are someone else's to close.
        """
        for threads in (self._threads, self._hub_threads):
            if threads is not None:
                threads.close()
        self._threads = self._hub_threads = self._transport = None
        if not keep_client:
            await self.client.aclose()
