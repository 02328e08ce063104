"""LoopThread: the event loop, in a thread of its own, on which a BentoAPI runs its calls."""

from __future__ import annotations

import asyncio
import atexit
import threading
import warnings
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet, finalize

import anyio

from async_bento._core.fork import watch_forks, watch_loop
from async_bento._core.thread_pool import start_thread
from async_bento.api.resources import CLOSED, CLOSED_DURING_CALL
from async_bento.errors import ClosedError, ConfigError
from async_bento.progress.events import is_notebook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    Start = Callable[[Coroutine[Any, Any, None]], Future[None]]

T = TypeVar("T")

_POLL_INTERVAL = 0.2  # seconds until a waiting call notices Ctrl-C, or that its loop has ended


class LoopThread:
    """An event loop in a thread, started by the first call; stopped by `close`, when collected, or at exit.

    In a forked child, the next call starts a new one.
    """

    def __init__(self, on_stop: Callable[[], Awaitable[None]]) -> None:
        self.is_closed = False
        self._on_stop = on_stop
        self._lock = threading.Lock()
        self._running: _RunningLoop | None = None
        self._finalizer: finalize[[_RunningLoop], LoopThread] | None = None
        self._has_warned = False
        watch_forks(self)

    def run(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine function on the loop; Ctrl-C cancels it and waits for its clean-up."""
        running = self._open()
        running.check_thread()
        self._warn_if_loop_blocked()
        call = _CancellableCall()
        try:
            return running.wait_for(call.run(partial(function, *args, **kwargs)))
        except BaseException:
            with suppress(ClosedError):  # the end of the loop has cancelled the call
                running.wait_for(call.cancel())
            raise

    def open(self) -> Start:
        """Start the loop, unless it runs, and return what starts a coroutine on it without waiting."""
        return self._open().start

    def check_open(self) -> None:
        """Raise ClosedError if the API was closed."""
        if self.is_closed:
            raise ClosedError(CLOSED)

    def close(self) -> None:
        """Stop the loop, once the calls that it cancels have cleaned up."""
        with self._lock:
            running = self._running
            if running is not None:
                running.check_thread()
            self.is_closed, self._running = True, None
        if running is not None:
            if self._finalizer is not None:
                self._finalizer.detach()
            running.stop()
            running.join()

    def forget_parent(self) -> None:
        """See `ForkAware`. The loop is not closed: that would remove the parent's sockets from the epoll they share."""
        self._lock = threading.Lock()
        self._running = None
        if self._finalizer is not None:
            self._finalizer.detach()

    def _warn_if_loop_blocked(self) -> None:
        """Warn once if the call blocks a running event loop; a notebook's loop has nothing else to run."""
        if self._has_warned or is_notebook():
            return
        # No event loop is running in this thread.
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            self._has_warned = True
            warnings.warn(
                "BentoAPI blocks the event loop that is running in this thread until the call returns. "
                "Await the same method of AsyncBentoAPI instead.",
                RuntimeWarning,
                stacklevel=4,  # the caller of the API
            )

    def _open(self) -> _RunningLoop:
        with self._lock:
            self.check_open()
            if self._running is None:
                self._running = _RunningLoop(self._on_stop)
                self._finalizer = finalize(self, _stop_unclosed, self._running)
                self._finalizer.atexit = False  # `_close_at_exit` stops it, and waits
                _open_at_exit.add(self)
            return self._running


class _RunningLoop:
    """A running loop. It does not refer to its LoopThread, which is collected when no caller has it any more."""

    def __init__(self, on_stop: Callable[[], Awaitable[None]]) -> None:
        self._on_stop = on_stop
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._error: BaseException | None = None
        # A daemon: a script that does not close its API is not kept from its exit.
        self._thread = threading.Thread(target=self._run, name="async-bento", daemon=True)
        start_thread(self._thread)
        self._loop, self._stopping = self._started.result()
        watch_loop(self._loop)

    def check_thread(self) -> None:
        """Raise ConfigError in the loop's own thread, where a call would wait for itself."""
        if threading.current_thread() is self._thread:
            raise ConfigError(
                "cannot call a BentoAPI from its own progress listener: the call would wait for itself. "
                "Call it from another thread."
            )

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # another thread has closed the API meanwhile
            coroutine.close()
            raise ClosedError(CLOSED) from None

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result."""
        future = self.start(coroutine)
        # A thread blocked on a lock without a timeout handles a signal only if the OS delivers it to that thread.
        while not wait([future], _POLL_INTERVAL).done:
            if not self._thread.is_alive():
                coroutine.close()  # the loop may have ended before the coroutine started: Python would warn
                raise ClosedError(CLOSED_DURING_CALL)
        try:
            return future.result()
        except CancelledError:  # by the end of the loop
            raise ClosedError(CLOSED_DURING_CALL) from None

    def stop(self) -> None:
        """Let the loop stop; does not wait."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._stopping.set)

    def join(self) -> None:
        """Wait until the loop has stopped, and raise the error that stopped it."""
        while self._thread.is_alive():
            self._thread.join(_POLL_INTERVAL)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            if self._started.done():
                self._error = error
            else:
                self._started.set_exception(error)

    async def _main(self) -> None:
        stopping = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopping))
        await stopping.wait()
        await self._on_stop()


class _CancellableCall:
    """One call on the loop; `cancel` does nothing if it has not started, and otherwise waits until it has ended."""

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        with anyio.CancelScope() as self._scope:
            try:
                return await function()
            finally:
                self._ended.set()
        raise asyncio.CancelledError  # no caller waits for the result any more

    async def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
            await self._ended.wait()


# Weak: a registration alone must not keep an API from being collected.
_open_at_exit: WeakSet[LoopThread] = WeakSet()


@atexit.register
def _close_at_exit() -> None:
    """Close what the program has not closed: a push that is cancelled reports that to the registry."""
    for thread in [*_open_at_exit]:
        thread.close()


def _stop_unclosed(running: _RunningLoop) -> None:
    """Stop the loop of an API that was collected; this may run in any thread, so it does not wait."""
    running.stop()
    warnings.warn("unclosed BentoAPI. Use it in a `with` statement, or call close().", ResourceWarning, stacklevel=2)
