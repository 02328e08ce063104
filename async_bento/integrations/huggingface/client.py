"""Calls of huggingface_hub, in threads.

huggingface_hub blocks, and a thread cannot be cancelled. The progress bars that it updates after each chunk stop it
instead (see `DownloadMonitor`).
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, thread as thread_pools
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any, TypeVar

from async_bento._core.concurrency import shielded
from async_bento._core.thread_pool import start_thread
from async_bento.errors import BentoError, ConfigError
from async_bento.integrations.huggingface.errors import translate_error
from async_bento.store.items import directory_size

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from huggingface_hub.hf_api import ModelInfo
    from tqdm import tqdm

    from async_bento.integrations.huggingface.model import HubModel
    from async_bento.progress.events import Progress


T = TypeVar("T")

MODELS_AT_ONCE = 4
"""Models that are downloaded at once; times `FILES_AT_ONCE`, as many files as a client moves parts by default."""

FILES_AT_ONCE = 8
"""Files of one model that are downloaded at once: huggingface_hub's own default."""

SECONDS_BETWEEN_REPORTS = 0.5
"""Between two looks at the growth of the cache; a person reads two figures a second."""

SECONDS_TO_STOP = 2.0
"""How long a cancelled call waits for its thread. After that, the thread runs on until the next chunk or until
huggingface_hub's timeout. It writes to HF's cache only, which is safe for concurrent writers."""


async def freeze(model: HubModel, slots: asyncio.Semaphore) -> HubModel:
    """Replace the revision by its current commit, unless the bento pins it; without the Hub, by the cached commit."""
    if model.is_frozen:
        return model

    def ask() -> str:
        return _model_info(model).sha or model.revision

    def read(snapshot: Path) -> str:
        return snapshot.name

    return replace(model, revision=await _call(model, partial(_ask_or_read, model, ask, read), slots), is_frozen=True)


async def measure(model: HubModel, slots: asyncio.Semaphore) -> int:
    """Get the size in bytes of the files that the model's patterns select, from the Hub or else from the cache."""

    def ask() -> int:
        files = _model_info(model, files_metadata=True).siblings or []
        return _selected_size(model, {file.rfilename: file.size or 0 for file in files})

    def read(snapshot: Path) -> int:
        files = [file for file in snapshot.rglob("*") if file.is_file()]
        return _selected_size(model, {file.relative_to(snapshot).as_posix(): file.stat().st_size for file in files})

    return await _call(model, partial(_ask_or_read, model, ask, read), slots)


async def download(model: HubModel, slots: asyncio.Semaphore, progress: Progress) -> str:
    """Download a model into `$BENTOML_HF_CACHE_DIR` or HF's cache, and return its snapshot directory."""
    monitor = DownloadMonitor(progress, asyncio.get_running_loop())

    def fetch() -> str:
        with monitor.watch(_cache_directory(model) / "blobs"):
            return _snapshot(model, _bar_class(monitor))

    return await _call(model, fetch, slots, monitor)


def _model_info(model: HubModel, *, files_metadata: bool = False) -> ModelInfo:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=model.source, token=_token(model))
    return api.model_info(model.model_id, revision=model.revision, files_metadata=files_metadata)


def _snapshot(model: HubModel, bar_class: Any = None, *, local_files_only: bool = False) -> str:
    """Download the files that the model's patterns select, unless the cache has them; return their directory."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    return snapshot_download(
        model.model_id,
        revision=model.revision,
        endpoint=model.source,
        cache_dir=os.getenv("BENTOML_HF_CACHE_DIR") or None,
        allow_patterns=model.include,
        ignore_patterns=model.exclude,
        token=_token(model),
        max_workers=FILES_AT_ONCE,
        tqdm_class=bar_class,
        local_files_only=local_files_only,
    )


def _ask_or_read(model: HubModel, ask: Callable[[], T], read: Callable[[Path], T]) -> T:
    """Ask the Hub, or read the snapshot in the cache if the Hub is out of reach or HF_HUB_OFFLINE is set."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return ask()
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001 - of requests or of httpx, depending on the release; raised below
        try:
            snapshot = _snapshot(model, local_files_only=True)
        except LocalEntryNotFoundError:
            # The Hub's error: that the cache lacks the model explains nothing.
            raise error from error.__cause__
        return read(Path(snapshot))


def _selected_size(model: HubModel, sizes: Mapping[str, int]) -> int:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    names = filter_repo_objects(sizes, allow_patterns=model.include, ignore_patterns=model.exclude)
    return sum(sizes[name] for name in names)


def _cache_directory(model: HubModel) -> Path:
    """The directory of a model in HF's cache."""
    from huggingface_hub import constants

    cache = os.getenv("BENTOML_HF_CACHE_DIR") or constants.HF_HUB_CACHE
    return Path(cache, f"models--{model.model_id.replace('/', '--')}")


async def _call(
    model: HubModel, function: Callable[[], T], slots: asyncio.Semaphore, monitor: DownloadMonitor | None = None
) -> T:
    """Call huggingface_hub in a thread; on cancellation, stop the download and wait up to `SECONDS_TO_STOP`."""
    async with slots:
        result: Future[T] = Future()
        # Daemon threads, also those that it starts, do not delay the exit of the interpreter.
        start_thread(Thread(target=_run, args=(result, model, function), name="async-bento-hub", daemon=True))
        future = asyncio.wrap_future(result)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_retrieve_result)
            if monitor is not None:
                monitor.stopped.set()
            # A second cancellation must not skip what follows.
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
    except BentoError:
        raise
    except Exception as error:
        raise translate_error(model, error) from error


def _token(model: HubModel) -> bool | None:
    """The `token` argument: None for the token that huggingface_hub finds, False for no token."""
    return None if model.is_trusted else False


class StoppedError(Exception):
    """Raised in the threads of huggingface_hub to stop a download."""


class DownloadMonitor:
    """Reports the bars of huggingface_hub, from its threads, to a `Progress` on the event loop.

    Setting `stopped` stops the download: the next update of a bar that counts bytes raises `StoppedError`. Such bars
    are updated at the start of each file and after each chunk (10 MiB, or the unit of Xet). Before 1.0, huggingface_hub
    has no such bars: the bytes are then the growth of its cache, and a cancelled download continues in its threads.
    `workers` are the threads of huggingface_hub.
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

    @contextmanager
    def watch(self, directory: Path) -> Generator[None]:
        """Report how much a directory grows during the block, unless there is a bar that counts bytes."""
        before = directory_size(directory)
        ended = Event()

        def report() -> None:
            grown = directory_size(directory) - before
            if self._byte_bar is None and grown > 0:
                with suppress(RuntimeError):  # after a cancelled download, the event loop may be closed
                    self._loop.call_soon_threadsafe(self._report, grown, None)

        def poll() -> None:
            while not ended.wait(SECONDS_BETWEEN_REPORTS) and not self.stopped.is_set():
                report()

        poller = Thread(target=poll, name="async-bento-hub-progress", daemon=True)
        start_thread(poller)
        try:
            yield
        finally:
            ended.set()
            poller.join()
        report()

    def _report(self, done: int, total: int | None) -> None:
        # A call that was scheduled before the cancellation.
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
            self.counts_bytes = options.get("unit") == "B"
            if self.counts_bytes:
                monitor.add(self)

        def update(self, n: float | None = 1) -> bool | None:
            if self.counts_bytes:  # tqdm updates a bar of files in callbacks that must not raise
                monitor.update(self, n or 0)
            return None

        def refresh(self, *_: Any, **__: Any) -> None:
            if self.counts_bytes:
                monitor.update(self)

    return Bar
