"""A pool of daemon threads that works as long as any non-daemon thread of the program does.

`ThreadPoolExecutor` refuses work once the main thread has ended, also from threads that the interpreter still waits
for, and a forked child inherits its idle threads as a number without the threads. anyio's threads have neither fault,
but they start as needed, which Python 3.12.0 and 3.12.1 refuse after the end of the main thread, and aiofiles needs an
executor. All of them delay the exit of the interpreter while they are idle or blocked; daemon threads do not.
"""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import finalize

from async_bento._core.fork import watch_forks
from async_bento.errors import BentoError, ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import ParamSpec, Self

    P = ParamSpec("P")

T = TypeVar("T")


class DaemonThreadPool(Executor):
    """At most `limit` daemon threads, started as needed; they run functions in the context of the caller.

    The threads end with `shutdown` or when the pool is collected. A forked child starts its own.
    """

    def __init__(self, limit: int, name: str = "async-bento") -> None:
        self._limit = limit
        self._name = name
        self._workers, self._finalizer = self._no_workers()
        watch_forks(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread, in a copy of the current context."""
        future: Future[T] = Future()
        job = _Job(future, partial(copy_context().run, fn, *args, **kwargs))
        workers = self._workers
        with workers.lock:
            if not self._finalizer.alive:
                raise ClosedError("the worker threads have stopped: the client was closed. Create a new one.")
            if workers.jobs_left >= workers.threads < self._limit:  # no thread is idle, and one more is allowed
                self._start_thread(workers)
            workers.jobs_left += 1
            workers.queue.put(job)  # under the lock: after the None of `shutdown`, no thread would run the job
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once they have done what was submitted; `wait` and `cancel_futures` have no effect."""
        with self._workers.lock:
            self._finalizer()

    def forget_parent(self) -> None:
        """See `ForkAware`: none of the parent's threads exists here."""
        closed = self._finalizer.detach() is None
        self._workers, self._finalizer = self._no_workers()
        if closed:
            self._finalizer()

    def _no_workers(self) -> tuple[_Workers, finalize[[], Self]]:
        workers = _Workers()
        finalizer = finalize(self, workers.stop)
        finalizer.atexit = False  # functions of `atexit` may still use the pool; its threads do not delay the exit
        return workers, finalizer

    def _start_thread(self, workers: _Workers) -> None:
        # The thread does not refer to the pool, which is collected while its threads are idle.
        name = f"{self._name}-{workers.threads}"
        try:
            start_thread(threading.Thread(target=_work, args=(workers,), name=name, daemon=True))
        except BentoError:
            if not workers.threads:  # otherwise, a thread that exists runs the job later
                raise
        else:
            workers.threads += 1


@dataclass
class _Workers:
    """The state that a pool shares with its threads; None in the queue ends them."""

    queue: SimpleQueue[_Job | None] = field(default_factory=SimpleQueue["_Job | None"])
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = 0
    jobs_left: int = 0  # that wait or run

    def stop(self) -> None:
        """End the threads, each once the queue is empty."""
        self.queue.put(None)


class _Job(NamedTuple):
    """A function to run, and the future of its result."""

    future: Future[Any]
    function: Callable[[], Any]


def start_thread(thread: threading.Thread) -> None:
    """Start a thread, or raise a BentoError with the reason."""
    try:
        thread.start()
    except RuntimeError as error:
        if "shutdown" in str(error):
            raise ClosedError("cannot start a thread: the interpreter is shutting down. Call earlier.") from error
        raise BentoError(
            "cannot start a thread: too many processes. Raise the limit of this user (ulimit -u)."
        ) from error


def _work(workers: _Workers) -> None:
    while (job := workers.queue.get()) is not None:
        _run(job, workers)
        del job  # its arguments are not kept while the thread is idle
    workers.stop()  # the next thread


def _run(job: _Job, workers: _Workers) -> None:
    """Run a job; the thread counts as idle by the time that the result is known."""
    started = job.future.set_running_or_notify_cancel()
    error: BaseException | None = None
    result: Any = None
    if started:
        try:
            result = job.function()
        except BaseException as raised:  # noqa: BLE001 - raised by the future
            error = raised
    with workers.lock:
        workers.jobs_left -= 1
    if error is not None:
        job.future.set_exception(error)
    elif started:
        job.future.set_result(result)
