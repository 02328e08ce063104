"""Wait for a condition."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 20


async def eventually(condition: Callable[[], Any]) -> Any:
    """Wait until a condition returns something true, and return that."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError("the condition never became true")
