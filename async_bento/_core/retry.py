"""What is worth another try, when, and how often; pure decisions, but for the clock."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
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
    from collections.abc import Awaitable, Callable, Iterator

    from async_bento.config import RetryPolicy

T = TypeVar("T")

EXPIRED_TRIES = 3
"""Tries of one request that a storage may answer with 403, each with a new URL. One that says so of a URL it has never
seen before will not say otherwise of the next."""

BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""What a server answers that wants all of its clients to slow down."""

_TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed in a moment.

    Args:
        error: What it failed with.

    Returns:
        True for lost connections, timeouts, 408, 425, 429, 5xx, bytes that arrived damaged, and a presigned URL that
        has expired; False for everything else: a certificate that does not hold, a proxy that wants a password, our
        own bugs.
    """
    if isinstance(error, PartError):
        if error.status is None:
            return not _is_refused_on_the_way(error)
        return is_expired(error) or _is_transient_status(error.status)
    if isinstance(error, APIStatusError):
        return _is_transient_status(error.status)
    if isinstance(error, APIConnectionError):
        return not _is_refused_on_the_way(error)
    return isinstance(error, (StalledError, IntegrityError))


def is_expired(error: BaseException) -> bool:
    """Whether a storage refused a presigned URL, as it does when its time is over.

    Args:
        error: What was raised.

    Returns:
        True for its 403.
    """
    return isinstance(error, PartError) and error.status == HTTPStatus.FORBIDDEN


def _is_transient_status(status: int) -> bool:
    return status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _is_refused_on_the_way(error: BaseException) -> bool:
    """Whether a connection was made and not accepted: by us, for its certificate, or by a proxy, for ours."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError)
        or getattr(cause, "status", None) == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


async def with_retries(
    policy: RetryPolicy,
    operation: Callable[[], Awaitable[T]],
    *,
    progress: Callable[[], int] = lambda: 0,
    retrying: Callable[[Exception], None] = lambda _: None,
) -> T:
    """Run something until it succeeds, or fails for good.

    Args:
        policy: How many tries, and the waits between them; a server's `Retry-After` goes before these.
        operation: One try: a function without arguments, called anew for each.
        progress: How far the whole is that this belongs to. When that has grown since the last failure, the line is
            up again, and the count of tries starts anew.
        retrying: Called with each failure after which it is tried again, but for a URL that has expired.

    Returns:
        What the first successful try returned.

    Raises:
        Exception: What the last try failed with.
    """
    failures = expired = 0
    reached = progress()

    def wait(error: Exception) -> bool | float:
        nonlocal failures, expired, reached
        if not is_transient(error):
            return False
        if (now := progress()) > reached:
            reached, failures, expired = now, 0, 0
        failures += 1
        if failures >= policy.attempts:
            return False
        if is_expired(error):
            expired += 1
            return 0.0 if expired < EXPIRED_TRIES else False
        asked = error.retry_after if isinstance(error, (APIStatusError, PartError)) else None
        if asked is not None and asked > policy.retry_after_cap:
            return False
        retrying(error)
        return backoff(policy, failures) if asked is None else asked

    return await stamina.AsyncRetryingCaller(attempts=None, timeout=None)(wait, operation)


def backoff(policy: RetryPolicy, failures: int) -> float:
    """How long to wait after a failure: exponential, with full jitter.

    Clients that failed together do not come back together, and half of the wait is spared on average (Amazon's
    "Exponential Backoff and Jitter").

    Args:
        policy: The first and the longest wait.
        failures: How many there were in a row, from 1.

    Returns:
        Seconds, from 0 to the policy's wait.
    """
    longest = min(policy.wait_max, policy.wait_initial * 2.0 ** min(failures - 1, 64))
    return random.uniform(0, longest)  # noqa: S311 - no secret hangs on it


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Read a `Retry-After` header (RFC 9110, 10.2.3).

    Args:
        retry_after: The header, in seconds or as a date, or None.

    Returns:
        Seconds, 0 for what is past; None where there is no such header, or nothing that can be read.
    """
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp() - time.time())


@dataclass
class HostThrottle:
    """When each host may be asked again. What one worker hears from a host that is busy, all workers heed.

    Args:
        policy: How long to wait where the host does not say.
    """

    policy: RetryPolicy
    _until: dict[str, float] = field(default_factory=dict[str, float], init=False)
    _refusals: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int), init=False)

    async def wait(self, host: str) -> None:
        """Wait until a host may be asked.

        Args:
            host: The host, with its port.
        """
        while (left := self._until.get(host, 0.0) - time.monotonic()) > 0:  # noqa: ASYNC110 - it may be put off meanwhile
            # Those that waited together do not come back together.
            await asyncio.sleep(left + backoff(self.policy, 1))

    def record(self, host: str, status: int, retry_after: float | None) -> None:
        """Take note of an answer.

        Args:
            host: Who answered, with its port.
            status: The HTTP status.
            retry_after: Its `Retry-After`, in seconds.
        """
        now = time.monotonic()
        paused = self._until.get(host, 0.0) > now  # what was asked before the pause says nothing about its end
        if status not in BUSY:
            if not paused:
                self._refusals.pop(host, None)
            return
        if not paused:
            self._refusals[host] += 1
        wait = backoff(self.policy, self._refusals[host]) if retry_after is None else retry_after
        if wait <= self.policy.retry_after_cap:  # whoever is told to wait longer gives up
            self._until[host] = max(self._until.get(host, 0.0), now + wait)
