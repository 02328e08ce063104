"""Calls of huggingface_hub, in threads.

huggingface_hub blocks, and a thread cannot be cancelled. The progress bars that it updates after each chunk stop it
instead (see `DownloadMonitor`).
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, thread as thread_pools
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any, TypeVar

from async_bento._core.concurrency import shielded
from async_bento.errors import ConfigError
from async_bento.integrations.huggingface.errors import translate_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tqdm import tqdm

    from async_bento.integrations.huggingface.model import HubModel
    from async_bento.progress.events import Progress


T = TypeVar("T")

MODELS_AT_ONCE = 4
"""Models that are downloaded at once; times `FILES_AT_ONCE`, as many files as a client moves parts by default."""

FILES_AT_ONCE = 8
"""Files of one model that are downloaded at once: huggingface_hub's own default."""

SECONDS_TO_STOP = 2.0
"""How long a cancelled call waits for its thread. After that, the thread runs on until the next chunk or until
huggingface_hub's timeout. It writes to HF's cache only, which is safe for concurrent writers."""


async def freeze(model: HubModel, slots: asyncio.Semaphore) -> HubModel:
    """Replace the revision by its current commit, unless the bento pins it."""
    if model.is_frozen:
        return model

    def ask() -> str:
        from huggingface_hub import HfApi

        info = HfApi(endpoint=model.endpoint and model.endpoint.rstrip("/"), token=_token(model)).model_info(
            model.model_id, revision=model.revision
        )
        return info.sha or model.revision

    return replace(model, revision=await _call(model, ask, slots), is_frozen=True)


async def measure(model: HubModel, slots: asyncio.Semaphore) -> int:
    """Fetch the size in bytes of the files that the model's patterns select."""

    def ask() -> int:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        info = HfApi(endpoint=model.endpoint and model.endpoint.rstrip("/"), token=_token(model)).model_info(
            model.model_id, revision=model.revision, files_metadata=True
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        return sum(
            sizes[name]
            for name in filter_repo_objects(sizes, allow_patterns=model.include, ignore_patterns=model.exclude)
        )

    return await _call(model, ask, slots)


async def download(model: HubModel, slots: asyncio.Semaphore, progress: Progress) -> str:
    """Download a model into `$BENTOML_HF_CACHE_DIR` or HF's cache, and return its snapshot directory."""
    monitor = DownloadMonitor(progress, asyncio.get_running_loop())

    def fetch() -> str:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

        return snapshot_download(
            model.model_id,
            revision=model.revision,
            endpoint=model.endpoint and model.endpoint.rstrip("/"),
            cache_dir=os.getenv("BENTOML_HF_CACHE_DIR") or None,
            allow_patterns=model.include,
            ignore_patterns=model.exclude,
            max_workers=FILES_AT_ONCE,
            token=_token(model),
            tqdm_class=_bar_class(monitor),
        )

    return await _call(model, fetch, slots, monitor)


async def _call(
    model: HubModel, function: Callable[[], T], slots: asyncio.Semaphore, monitor: DownloadMonitor | None = None
) -> T:
    """Call huggingface_hub in a thread; on cancellation, stop the download and wait up to `SECONDS_TO_STOP`."""
    async with slots:
        result: Future[T] = Future()
        # Daemon threads, also those that it starts, do not delay the exit of the interpreter.
        Thread(target=_run, args=(result, model, function), name="async-bento-hub", daemon=True).start()
        future = asyncio.wrap_future(result)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_retrieve_result)
            if monitor is not None:
                monitor.stopped.set()
            with suppress(asyncio.CancelledError):
                await shielded(asyncio.wait([future], timeout=SECONDS_TO_STOP))
            if monitor is not None and not future.done():
                _detach_from_exit(monitor.workers)
            raise


def _run(result: Future[T], model: HubModel, function: Callable[[], T]) -> None:
    try:
        result.set_result(_translate_errors(model, function))
    except BaseException as error:  # noqa: BLE001 - the awaiting caller raises it
        result.set_exception(error)


def _detach_from_exit(workers: Iterable[Thread]) -> None:
    """Keep the interpreter from joining the threads of a pool at exit, which it does even for daemon threads.

    A stalled request takes huggingface_hub several retries of 10 s each to fail. If a Python version lacks the private
    dict, the exit waits for them.
    """
    queues: dict[Thread, object] = getattr(thread_pools, "_threads_queues", {})
    for worker in workers:
        queues.pop(worker, None)


def _retrieve_result(future: asyncio.Future[Any]) -> None:
    """Retrieve the exception of an abandoned future, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()


def _translate_errors(model: HubModel, function: Callable[[], T]) -> T:
    """Call a function, and raise errors of huggingface_hub and of its HTTP client as a `BentoError`."""
    try:
        import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ConfigError(
            f"cannot access the model {model.named} on the Hugging Face Hub: huggingface_hub is not installed. "
            'Run `pip install "async-bento[huggingface]"`.'
        ) from error
    try:
        return function()
    except Exception as error:
        raise translate_error(model, error) from error


def _token(model: HubModel) -> bool | None:
    """The `token` argument: None for the token that huggingface_hub finds, False for no token."""
    return None if model.is_trusted else False


class StoppedError(Exception):
    """Raised in the threads of huggingface_hub to stop a download."""


class DownloadMonitor:
    """Reports the bars of huggingface_hub, from its threads, to a `Progress` on the event loop.

    Setting `stopped` stops the download: the next update of a bar raises `StoppedError`. Bars are updated at the start
    of each file and after each chunk (10 MiB, or the unit of Xet). `workers` are the threads of huggingface_hub.
    """

    def __init__(self, progress: Progress, loop: asyncio.AbstractEventLoop) -> None:
        self.stopped = Event()
        self.workers: set[Thread] = set()
        self._progress = progress
        self._loop = loop
        self._lock = Lock()
        self._byte_bar: tqdm[Any] | None = None

    def add(self, bar: tqdm[Any]) -> None:
        """Register a bar that counts bytes."""
        # Recent releases create a bar for network bytes, then one for bytes on disk, which has the exact total.
        self._byte_bar = bar

    def update(self, bar: tqdm[Any], moved: float = 0) -> None:
        """Handle the update of a bar by `moved`."""
        if self.stopped.is_set():
            raise StoppedError
        with self._lock:
            bar.n += moved
            if bar is self._byte_bar and bar.total:
                self._loop.call_soon_threadsafe(self._report, int(bar.n), int(bar.total))

    def _report(self, done: int, total: int) -> None:
        if self.stopped.is_set():
            return
        if self._progress.phase != "transferring" or total != self._progress.bytes_total:
            self._progress.enter("transferring", bytes_total=total)
        if done != self._progress.bytes_done:
            self._progress.advance(done - self._progress.bytes_done)


def _bar_class(monitor: DownloadMonitor) -> Any:
    """Make the subclass of tqdm for huggingface_hub; its bars draw nothing."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """A bar that draws nothing."""

        monitor_interval = 0  # no monitor thread

        @classmethod
        def set_lock(cls, lock: Any) -> None:  # called first in each thread of the pools
            monitor.workers.add(current_thread())
            super().set_lock(lock)  # pyright: ignore[reportUnknownMemberType]

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # pyright: ignore[reportUnknownMemberType]
            if options.get("unit") == "B":
                monitor.add(self)

        def update(self, n: float | None = 1) -> bool | None:
            monitor.update(self, n or 0)
            return None

        def refresh(self, *_: Any, **__: Any) -> None:
            monitor.update(self)

    return Bar
