"""Garbage collection, deferred while a command starts.

Imports create hundreds of thousands of objects and next to no garbage. Scanning these objects during the imports, and
again at exit, takes a quarter of the CPU time of `async-bento list`. This is for processes of the command only: a
library must not freeze the objects of its caller.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_deferred = ExitStack()  # has the callback that ends the deferral; empty where nothing is deferred


@contextmanager
def deferred_collection() -> Generator[None]:
    """Defer garbage collection until `resume_collection`, or until the end of the block."""
    if gc.isenabled():
        gc.disable()
        _deferred.callback(_enable)
    try:
        yield
    finally:
        resume_collection()


def resume_collection() -> None:
    """End the deferral: garbage is collected from now on, except among the objects that exist; see `gc.freeze`."""
    _deferred.close()


def _enable() -> None:
    gc.freeze()
    gc.enable()
