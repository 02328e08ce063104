"""The fetch of one version from the upstream, which any number of requests follow."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from async_bento._core.concurrency import shielded
from async_bento._core.retry import is_missing
from async_bento.errors import BentoError
from async_bento.progress.events import Progress
from async_bento.registry.errors import RecordNotFoundError, RegistryError, StorageError, disk_error
from async_bento.registry.item_types import BENTO
from async_bento.registry.mirror.growing import Growing, GrowingSink
from async_bento.transfer.download import download
from async_bento.transfer.download_source import DownloadSource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento._core.concurrency import Threads
    from async_bento.registry.blobs.disk import DiskBlobs
    from async_bento.registry.blobs.disk_files import StagedFile
    from async_bento.registry.item_types import ItemRef
    from async_bento.registry.mirror.upstream import Remote, Upstream
    from async_bento.transfer.http import TransferPool

_OPEN_TIMEOUT = 45.0
"""Seconds until the upstream has sent the first byte; clients wait for 60 seconds."""

_ABANDONED_AFTER = 600.0
"""Seconds that the bytes of a failed download stay for a request that resumes it."""

_RETRY_AFTER = 5

log = logging.getLogger(__package__)


class Fetched(NamedTuple):
    """A complete file, and the key and the ETag that it is to have."""

    ref: ItemRef
    remote: Remote
    key: str
    etag: str
    file: StagedFile


class Steps(NamedTuple):
    """What a fetch needs of the mirror: `check` gets the size of an object, in a worker thread."""

    upstream: Upstream
    pool: TransferPool
    threads: Threads
    check: Callable[[int], None]
    publish: Callable[[Fetched], Awaitable[None]]


class Fetch:
    """Downloads one version; after a failure, the next request resumes it."""

    def __init__(self, ref: ItemRef, remote: Remote, key: str, blobs: DiskBlobs, steps: Steps) -> None:
        self.remote = remote
        self.key = key
        self._ref = ref
        self._blobs = blobs
        self._steps = steps
        self._sink: GrowingSink | None = None
        self._growing: Growing | None = None
        self._is_kept = False
        self._ended_at = math.inf
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Growing] = asyncio.get_running_loop().create_future()

    @property
    def growing(self) -> Growing | None:
        """The object that arrives; None if its size is not known yet, and after a failure."""
        return self._growing

    @property
    def is_running(self) -> bool:
        """Whether bytes may still arrive."""
        return self._task is not None and not self._task.done()

    @property
    def is_abandoned(self) -> bool:
        """Whether the download has failed, and no request has resumed it for a while."""
        return not self.is_running and time.monotonic() - self._ended_at > _ABANDONED_AFTER

    async def opened(self) -> Growing:
        """Start the download unless it runs, and wait for the object; raise `RegistryError` if there is none."""
        if not self.is_running:
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._ready))
        if self._growing is not None:
            return self._growing
        try:
            # All requests for the version wait for one future: none of them may cancel it.
            return await asyncio.wait_for(asyncio.shield(self._ready), _OPEN_TIMEOUT)
        except asyncio.TimeoutError:
            message = f"cannot fetch {self._ref}: the upstream has not sent a byte yet. Try again."
            raise StorageError("ServiceUnavailable", message, status=503, retry_after=_RETRY_AFTER) from None

    async def cancel(self) -> None:
        """Cancel the download, and remove what has arrived, unless it is being published."""
        if self._task is not None:
            self._task.cancel()
            await shielded(asyncio.gather(self._task, return_exceptions=True))
        if not self._is_kept:
            await self._discard()

    async def _discard(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            await shielded(self._steps.threads.run(sink.file.discard))
        await self._blobs.delete(self.key)

    def _opened(self, growing: Growing) -> None:
        self._lose()
        self._growing = growing
        if not self._ready.done():
            self._ready.set_result(growing)

    def _lose(self) -> None:
        """Fail the readers of an object of which no more bytes arrive."""
        growing, self._growing = self._growing, None
        if growing is not None:
            growing.end()
            growing.close()

    async def _run(self, ready: asyncio.Future[Growing]) -> None:
        try:
            await self._download()
        except BaseException as error:
            self._lose()
            self._ended_at = time.monotonic()
            if isinstance(error, OSError):  # what has arrived may be what fills the disk
                await self._discard()
            failure = self._translate(error)
            if not ready.done():
                ready.set_exception(failure)
                ready.exception()  # which may have no waiter
            if not isinstance(error, Exception):
                raise
            if isinstance(error, (BentoError, RegistryError, OSError)):
                log.warning("%s", failure.message)
            else:
                log.exception("cannot fetch %s", self._ref)

    async def _download(self) -> None:
        upstream, pool, threads = self._steps.upstream, self._steps.pool, self._steps.threads
        # Without a strategy, the bytes come from the upstream's storage if that presigns URLs.
        record = self.remote.record.model_copy(update={"transmission_strategy": None})
        source = DownloadSource(upstream.routes(self._ref), self._ref.name, record, action="pull", verify=True)
        if self._sink is None:
            self._sink = GrowingSink(await self._blobs.start_file(self.key), self._opened, self._steps.check)
        sink = self._sink
        sink.source = source
        await threads.run(sink.prepare)
        with Progress("pull", "bento" if self._ref.item_type is BENTO else "model", source.tag) as progress:
            await download(source, sink, pool, progress)
        growing, file = self._growing, sink.file
        assert growing is not None, "a download has opened its sink"
        growing.end(file.size)
        # From here on, `publish` removes the bytes if it fails, and `cancel` must not.
        self._is_kept = True
        await self._steps.publish(Fetched(self._ref, self.remote, self.key, growing.etag, file))
        self._growing = None
        growing.close()

    def _translate(self, error: BaseException) -> RegistryError:
        if isinstance(error, RegistryError):
            return error
        if is_missing(error):
            return RecordNotFoundError(f"the bytes of {self._ref}")
        if isinstance(error, OSError):
            return disk_error(error)
        reason = str(error) if isinstance(error, BentoError) else "the mirror failed"
        message = f"cannot fetch {self._ref} from the upstream: {reason}"
        return StorageError("BadGateway", message, status=502, retry_after=_RETRY_AFTER)
