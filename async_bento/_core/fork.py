"""What a forked child must not share with its parent: threads, event loops and connections.

In the child of a fork, only the thread that forked exists. Locks that other threads held stay locked, calls that ran in
other threads never end, and sockets and epoll descriptors are the parent's too. The objects that hold such things drop
them in the child, without closing them, and open their own on the next use.
"""

from __future__ import annotations

import os
import selectors
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class ForkAware(Protocol):
    """An object that holds threads, an event loop or connections."""

    def forget_parent(self) -> None:
        """Drop what belongs to the parent. Called in the child, before any other code runs there."""
        ...


_objects: WeakSet[ForkAware] = WeakSet()
_loops: WeakSet[AbstractEventLoop] = WeakSet()


def watch_forks(thing: ForkAware) -> None:
    """Call `forget_parent` in each forked child, as long as the object lives."""
    _objects.add(thing)


def watch_loop(loop: AbstractEventLoop) -> None:
    """Give a loop, in each forked child, an epoll of the child's own.

    Parent and child share the epoll of a loop. A connection that the child closes, as when it is collected, would
    disappear from the parent's too, which would then wait for it for ever.
    """
    _loops.add(loop)


def _separate_epoll(loop: AbstractEventLoop) -> None:
    if sys.platform == "linux":  # elsewhere, a kqueue is not inherited
        selector = getattr(loop, "_selector", None)  # uvloop has none
        if not isinstance(selector, selectors.EpollSelector):
            return
        with suppress(OSError, ValueError), selectors.EpollSelector() as own:
            for key in [*(selector.get_map() or {}).values()]:
                with suppress(OSError):  # a descriptor that was closed without `unregister`
                    own.register(key.fd, key.events)
            # The loop's selector keeps its number, which is the child's own epoll from now on.
            os.dup2(own.fileno(), selector.fileno(), inheritable=False)


def _forget_parent() -> None:
    for loop in [*_loops]:  # first: what is dropped below may close connections
        _separate_epoll(loop)
    for thing in [*_objects]:
        thing.forget_parent()


if sys.platform != "win32":  # which has no fork
    os.register_at_fork(after_in_child=_forget_parent)
