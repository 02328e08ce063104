"""What is worth another try, and when."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import stamina

from async_bento.errors import (
    APIConnectionError,
    APIStatusError,
    IntegrityError,
    PartError,
    StalledError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.config import RetryPolicy

T = TypeVar("T")

_TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_EXPIRED = HTTPStatus.FORBIDDEN  # a storage's word for a presigned URL whose hour is over; the next try has a new one


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment.

    Args:
        error: What it failed with.

    Returns:
        True for lost connections, timeouts, 408, 425, 429, 5xx, bytes that arrived damaged, and a presigned URL that
        has expired; False for everything else, our own bugs among it.
    """
    if isinstance(error, PartError):
        return error.status is None or error.status == _EXPIRED or _is_transient_status(error.status)
    if isinstance(error, APIStatusError):
        return _is_transient_status(error.status)
    return isinstance(error, (APIConnectionError, StalledError, IntegrityError))


def _is_transient_status(status: int) -> bool:
    return status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR


async def with_retries(policy: RetryPolicy, operation: Callable[[], Awaitable[T]]) -> T:
    """Run something until it succeeds, or fails for good.

    Args:
        policy: How many tries, and the waits between them; a server's `Retry-After` goes before these.
        operation: One try: a function without arguments, called anew for each.

    Returns:
        What the first successful try returned.

    Raises:
        Exception: What the last try failed with.
    """

    def wait(error: Exception) -> bool | float:
        if not is_transient(error):
            return False
        asked = error.retry_after if isinstance(error, (APIStatusError, PartError)) else None
        if asked is None:
            return True
        return asked if asked <= policy.retry_after_cap else False

    retrying = stamina.AsyncRetryingCaller(
        attempts=policy.attempts,
        timeout=None,
        wait_initial=policy.wait_initial,
        wait_max=policy.wait_max,
        wait_jitter=policy.wait_initial,
    )
    return await retrying(wait, operation)


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Read a `Retry-After` header given in seconds (RFC 9110, 10.2.3).

    Args:
        retry_after: The header, or None.

    Returns:
        Seconds, or None where there is no such header or it is a date.
    """
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None
