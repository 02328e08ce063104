"""BentoAPI and ModelAPI: the same calls, blocking.

The work runs on an event loop in a thread of its own (an anyio blocking portal), so the calls work in a plain script,
in several threads, and where a loop is running already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import warnings
from concurrent.futures import wait
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from async_bento.api.async_api import AsyncBentoAPI, AsyncModelAPI
from async_bento.progress.events import is_notebook

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Iterator
    from concurrent.futures import Future
    from types import TracebackType

    from anyio.from_thread import BlockingPortal
    from pydantic import SecretStr
    from typing_extensions import ParamSpec, Self

    from async_bento.api.async_api import ItemAPI, TaggedItem
    from async_bento.api.kinds import ItemT, RecordT
    from async_bento.api.push import PushResult
    from async_bento.config import Config
    from async_bento.progress.events import ProgressListener
    from async_bento.rest.client import RestApiClient
    from async_bento.rest.schemas import (
        BentoWithRepositoryListSchema,
        BentoWithRepositorySchema,
        ModelWithRepositoryListSchema,
        ModelWithRepositorySchema,
    )
    from async_bento.store.items import Bento, Model
    from async_bento.store.store import BentoStore, ModelStore
    from async_bento.store.tag import TagLike

    P = ParamSpec("P")

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 0.2
"""How long a call may be deaf to Ctrl-C."""


class LoopThread:
    """An event loop in a thread of its own, started when it is first needed, and stopped at exit at the latest.

    Args:
        last: What to run on it before it stops.
    """

    def __init__(self, last: Callable[[], Awaitable[None]]) -> None:
        self._last = last
        self._lock = threading.Lock()
        self._stack: ExitStack | None = None
        self._portal: BlockingPortal | None = None
        self._has_warned = False

    def run(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine function to its end; Ctrl-C cancels it, and waits for its clean-up.

        Args:
            function: What to run.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What it returned.
        """
        self._warn_of_a_loop()
        job = _Job()
        portal = self._open()
        future: Future[T] | None = None
        try:
            future = portal.start_task_soon(partial(job.run, partial(function, *args, **kwargs)))
            # A thread that waits for a lock without end hears of a signal only where the system wakes that very thread.
            while not wait([future], SECONDS_BETWEEN_LOOKS).done:
                pass
            return future.result()
        except BaseException:
            # The interrupt may come anywhere, even before there is a future: what has begun is asked for on the loop.
            # What has ended is not: who closed the API may have stopped that.
            if future is None or not future.done():
                portal.call(job.cancel)
            raise

    def close(self) -> None:
        """Stop the loop; the next call starts another."""
        atexit.unregister(self.close)
        with self._lock:
            stack, self._stack, self._portal = self._stack, None, None
        if stack is not None:
            stack.close()

    def _warn_of_a_loop(self) -> None:
        """Say once that the loop of this thread stands still. In a notebook, it has nothing else to do meanwhile."""
        if self._has_warned or is_notebook():
            return
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            self._has_warned = True
            warnings.warn(
                "a call of BentoAPI blocks the event loop that runs in this thread until it is done; "
                "`await` the same call of AsyncBentoAPI instead",
                RuntimeWarning,
                stacklevel=4,  # who called the API
            )

    def _open(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                stack = ExitStack()
                self._portal = stack.enter_context(start_blocking_portal(name="async-bento"))
                stack.callback(partial(self._portal.call, self._last))
                self._stack = stack
                atexit.register(self.close)
            return self._portal


class _Job:
    """Something that runs on the loop, and can be cancelled there until it has come to its end."""

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        with anyio.CancelScope() as self._scope:
            try:
                return await function()
            finally:
                self._ended.set()
        raise asyncio.CancelledError  # and nobody waits for a result any more

    async def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
            await self._ended.wait()


def _like(original: Callable[..., object]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Give a blocking method the words of the one it calls."""

    def document(method: Callable[P, T]) -> Callable[P, T]:
        method.__doc__ = original.__doc__
        return method

    return document


class ModelAPI:
    """`AsyncModelAPI`, blocking. It belongs to a `BentoAPI`, as `api.models`.

    Args:
        models: What does the work.
        loop: Where it is done.
    """

    def __init__(self, models: AsyncModelAPI, loop: LoopThread) -> None:
        self._async = models
        self._loop = loop

    @_like(AsyncModelAPI.push)
    def push(
        self, model: Model | TagLike | str | os.PathLike[str] | TaggedItem, *, force: bool = False, threads: int = 10
    ) -> PushResult:
        return self._loop.run(self._async.push, model, force=force, threads=threads)

    @_like(AsyncModelAPI.pull)
    def pull(
        self,
        tag: TagLike | str,
        *,
        force: bool = False,
        model_store: ModelStore | None = None,
        query: str | None = None,
    ) -> Model | None:
        return self._loop.run(self._async.pull, tag, force=force, model_store=model_store, query=query)

    @_like(AsyncModelAPI.list)
    def list(
        self, *, search: str | None = None, query: str | None = None, limit: int | None = None
    ) -> ModelWithRepositoryListSchema:
        return self._loop.run(self._async.list, search=search, query=query, limit=limit)

    @_like(AsyncModelAPI.iter)
    def iter(self, *, search: str | None = None, query: str | None = None) -> Iterator[ModelWithRepositorySchema]:
        return _walk(self._async, self._loop, search, query)

    @_like(AsyncModelAPI.get)
    def get(self, name: str, version: str | None = None) -> ModelWithRepositorySchema:
        return self._loop.run(self._async.get, name, version)


class BentoAPI:
    """`AsyncBentoAPI`, blocking: the same parameters, the same calls. Use it with `with`, or `close` it in the end.

    Args:
        client: Who speaks to the registry; its connections are closed with this API.
        endpoint: The registry's URL.
        api_token: The token for it.
        context: A context of `.yatai.yaml`.
        bento_store: Where bentos lie; `$BENTOML_HOME/bentos` by default.
        model_store: Where models lie; `$BENTOML_HOME/models` by default.
        config: The settings; the defaults and the `ASYNC_BENTO_*` variables by default.
        progress: True for bars, or for lines of text where none can be drawn, as in the log of a CI job; False for
            neither; or who is told: any function that takes a `ProgressEvent`. By default True where someone looks.

    Raises:
        ConfigError: There is no token, a setting does not fit, or both a client and what makes one are given.
    """

    def __init__(
        self,
        client: RestApiClient | None = None,
        *,
        endpoint: str | None = None,
        api_token: str | SecretStr | None = None,
        context: str | None = None,
        bento_store: BentoStore | None = None,
        model_store: ModelStore | None = None,
        config: Config | None = None,
        progress: bool | ProgressListener | None = None,
    ) -> None:
        self._async = AsyncBentoAPI(
            client,
            endpoint=endpoint,
            api_token=api_token,
            context=context,
            bento_store=bento_store,
            model_store=model_store,
            config=config,
            progress=progress,
        )
        self._loop = LoopThread(partial(_close, self._async, client))
        self.models = ModelAPI(self._async.models, self._loop)

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncBentoAPI", "BentoAPI", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end the threads."""
        self._loop.close()

    @_like(AsyncBentoAPI.push)
    def push(
        self,
        bento: Bento | TagLike | str | os.PathLike[str] | TaggedItem,
        *,
        force: bool = False,
        bare: bool = False,
        threads: int = 10,
    ) -> PushResult:
        return self._loop.run(self._async.push, bento, force=force, bare=bare, threads=threads)

    @_like(AsyncBentoAPI.pull)
    def pull(
        self,
        tag: TagLike | str,
        *,
        force: bool = False,
        with_models: bool = False,
        bento_store: BentoStore | None = None,
    ) -> Bento:
        return self._loop.run(self._async.pull, tag, force=force, with_models=with_models, bento_store=bento_store)

    @_like(AsyncBentoAPI.list)
    def list(
        self, *, search: str | None = None, query: str | None = None, limit: int | None = None
    ) -> BentoWithRepositoryListSchema:
        return self._loop.run(self._async.list, search=search, query=query, limit=limit)

    @_like(AsyncBentoAPI.iter)
    def iter(self, *, search: str | None = None, query: str | None = None) -> Iterator[BentoWithRepositorySchema]:
        return _walk(self._async, self._loop, search, query)

    @_like(AsyncBentoAPI.get)
    def get(self, name: str, version: str | None = None) -> BentoWithRepositorySchema:
        return self._loop.run(self._async.get, name, version)


def _walk(api: ItemAPI[ItemT, RecordT], loop: LoopThread, search: str | None, query: str | None) -> Iterator[RecordT]:
    records = api.iter(search=search, query=query)
    try:
        while True:
            try:
                yield loop.run(records.__anext__)
            except StopAsyncIteration:
                return
    finally:
        loop.run(records.aclose)


async def _close(api: AsyncBentoAPI, client: RestApiClient | None) -> None:
    await api.aclose()
    if client is not None:
        await client.aclose()  # who made it has no loop to close it on
