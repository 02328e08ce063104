"""What huggingface_hub does for us, in threads: it is imported when the first model of the Hub is met.

It blocks, and a thread cannot be cancelled; it is told instead, through the progress bars that it updates with each
chunk (see `Watch`).
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
from async_bento.integrations.huggingface.errors import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tqdm import tqdm

    from async_bento.integrations.huggingface.model import HubModel
    from async_bento.progress.events import Progress


T = TypeVar("T")

MODELS_AT_ONCE = 4
"""Models on their way from the Hub at once; with `FILES_AT_ONCE`, as many files as a client moves parts by default."""

FILES_AT_ONCE = 8
"""Files of one model on their way at once: huggingface_hub's own default."""

SECONDS_TO_STOP = 2.0
"""How long a cancelled call waits for its thread. One that hangs in a request is left behind: it writes to HF's cache
alone, which other processes may write to as well, and ends with the next chunk or with huggingface_hub's timeout."""


async def freeze(model: HubModel, slots: asyncio.Semaphore) -> HubModel:
    """Let the revision be a commit, as the Hub has it now.

    Args:
        model: The model.
        slots: What bounds how much is asked of the Hub at once.

    Returns:
        The model; itself where its bento says which commit it is.

    Raises:
        ConfigError: huggingface_hub is not installed.
        NotFoundError: The Hub has no such model.
        HubError: The Hub was not reached, or refused.
    """
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
    """Ask the Hub for the size of a model's files.

    Args:
        model: The model.
        slots: What bounds how much is asked of the Hub at once.

    Returns:
        The size of those files that its patterns let through, in bytes.

    Raises:
        ConfigError: huggingface_hub is not installed.
        NotFoundError: The Hub has no such model.
        HubError: The Hub was not reached, or refused.
    """

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
    """Bring a model's files into `$BENTOML_HF_CACHE_DIR`, or else HF's own cache. What is there is not fetched again.

    Args:
        model: The model.
        slots: What bounds how much is asked of the Hub at once.
        progress: Who is told.

    Returns:
        The directory of its snapshot.

    Raises:
        ConfigError: huggingface_hub is not installed.
        NotFoundError: The Hub has no such model.
        StoreError: The cache cannot be written.
        HubError: The Hub was not reached, or refused.
    """
    watch = Watch(progress, asyncio.get_running_loop())

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
            tqdm_class=bar_class(watch),
        )

    return await _call(model, fetch, slots, watch)


async def _call(model: HubModel, function: Callable[[], T], slots: asyncio.Semaphore, watch: Watch | None = None) -> T:
    """Call what speaks to the Hub. When cancelled, tell it, and wait a moment for its end."""
    async with slots:
        work: Future[T] = Future()
        # A daemon, and so are the threads that it starts: the interpreter does not wait for their end to end itself.
        Thread(target=_do, args=(work, model, function), name="async-bento-hub", daemon=True).start()
        future = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_forget)
            if watch is not None:
                watch.stopped.set()
            with suppress(asyncio.CancelledError):
                await shielded(asyncio.wait([future], timeout=SECONDS_TO_STOP))
            if watch is not None and not future.done():
                _leave_behind(watch.workers)
            raise


def _do(work: Future[T], model: HubModel, function: Callable[[], T]) -> None:
    try:
        work.set_result(_translated(model, function))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
        work.set_exception(error)


def _leave_behind(workers: Iterable[Thread]) -> None:
    """Let the interpreter end before the threads of a pool have: daemons or not, it would wait for them.

    Each of huggingface_hub's tries takes its 10 seconds to notice that nothing comes, and it makes several. Where
    Python keeps its books otherwise, that long is waited.
    """
    books: dict[Thread, object] = getattr(thread_pools, "_threads_queues", {})
    for worker in workers:
        books.pop(worker, None)


def _forget(future: asyncio.Future[Any]) -> None:
    """Retrieve the outcome: the cancellation is what the caller hears of."""
    if not future.cancelled():
        future.exception()


def _translated(model: HubModel, function: Callable[[], T]) -> T:
    """Let what huggingface_hub, and whatever HTTP client it has these days, may raise become ours."""
    try:
        import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ConfigError(
            f"the model {model.named} lives on the Hugging Face Hub, which needs huggingface_hub: run `pip install "
            '"async-bento[huggingface]"`'
        ) from error
    try:
        return function()
    except Exception as error:
        raise explained(model, error) from error


def _token(model: HubModel) -> bool | None:
    """None for whatever token huggingface_hub finds, False for none."""
    return None if model.is_trusted else False


class StoppedError(Exception):
    """Raised in a thread of huggingface_hub whose download is to end."""


class Watch:
    """Looks at the bars that huggingface_hub would draw, from its threads, and tells of them on the event loop.

    They are also how a download hears that it is cancelled: a bar that is touched then raises, and a bar is touched
    for each file that begins and each chunk (10 MiB, or what Xet reports) that has come.

    Args:
        progress: Who is told.
        loop: Where.

    Attributes:
        stopped: Set when the download is to end.
        workers: The threads of huggingface_hub's own pools.
    """

    def __init__(self, progress: Progress, loop: asyncio.AbstractEventLoop) -> None:
        self.stopped = Event()
        self.workers: set[Thread] = set()
        self._progress = progress
        self._loop = loop
        self._lock = Lock()
        self._counts: tqdm[Any] | None = None

    def add(self, bar: tqdm[Any]) -> None:
        """Take note of a bar that counts bytes.

        Args:
            bar: The bar. Recent releases make one for what comes over the network, then one for what is on the disk,
                which has the exact total; older ones make one.
        """
        self._counts = bar

    def look(self, bar: tqdm[Any], moved: float = 0) -> None:
        """Tell how far the bars are.

        Args:
            bar: The one that has changed.
            moved: By how much.

        Raises:
            StoppedError: The download is to end.
        """
        if self.stopped.is_set():
            raise StoppedError
        with self._lock:
            bar.n += moved
            if bar is self._counts and bar.total:
                self._loop.call_soon_threadsafe(self._tell, int(bar.n), int(bar.total))

    def _tell(self, done: int, total: int) -> None:
        if self.stopped.is_set():
            return
        if self._progress.phase != "transferring" or total != self._progress.bytes_total:
            self._progress.enter("transferring", bytes_total=total)
        if done != self._progress.bytes_done:
            self._progress.advance(done - self._progress.bytes_done)


def bar_class(watch: Watch) -> Any:
    """Make the class of bars that huggingface_hub is to use.

    Args:
        watch: Who looks at them.

    Returns:
        A subclass of tqdm, which huggingface_hub demands; it draws nothing.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """A bar that draws nothing."""

        monitor_interval = 0  # no thread to redraw it

        @classmethod
        def set_lock(cls, lock: Any) -> None:  # each thread of its pools begins with it
            watch.workers.add(current_thread())
            super().set_lock(lock)  # pyright: ignore[reportUnknownMemberType]

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # pyright: ignore[reportUnknownMemberType]
            if options.get("unit") == "B":
                watch.add(self)

        def update(self, n: float | None = 1) -> bool | None:
            watch.look(self, n or 0)
            return None

        def refresh(self, *_: Any, **__: Any) -> None:
            watch.look(self)

    return Bar
