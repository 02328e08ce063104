"""huggingface_hub's progress bars, looked at instead of drawn."""

from __future__ import annotations

from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from tqdm import tqdm

    from async_bento.progress import Progress


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
