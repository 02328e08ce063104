"""Which errors are worth a retry, when and how often; and the throttle of a busy host.

API requests (`rest`) and transfers of bytes (`transfer`) decide by these functions.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import defaultdict
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from async_bento.errors import (
    APIConnectionError,
    APIStatusError,
    IntegrityError,
    PartError,
    ServerError,
    StalledError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from async_bento.config import RetryPolicy

logger = logging.getLogger(__package__)

EXPIRED_TRIES = 3
"""Attempts of one request that a storage may answer with 403, each with a new URL. A storage that refuses a URL it has
never seen before will refuse the next one too."""

BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""Statuses by which a server asks all of its clients to slow down."""

_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
"""OpenSSL's reasons, by version, for an answer that is not TLS."""

_NO_SUCH_KEY = "specified key does not exist"

_TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later.

    True for lost connections, timeouts, 408, 425, 429, 5xx but 507, faults of the server with another status, corrupt
    bytes and expired presigned URLs. False for all other errors: a full disk of the server, an untrusted certificate, a
    proxy that wants a password, our own bugs.
    """
    if isinstance(error, PartError):
        if error.status is None:
            return not _is_refused_on_the_way(error)
        return is_expired(error) or _is_transient_status(error.status)
    if isinstance(error, APIStatusError):
        if is_missing(error) or error.status == HTTPStatus.INSUFFICIENT_STORAGE:
            return False
        return isinstance(error, ServerError) or _is_transient_status(error.status)
    if isinstance(error, APIConnectionError):
        return not _is_refused_on_the_way(error)
    if isinstance(error, StalledError):
        return not error.is_final
    return isinstance(error, IntegrityError)


def is_missing(error: BaseException) -> bool:
    """Whether the storage has no such object; through the registry, Yatai passes S3's message on with a 500."""
    if isinstance(error, APIStatusError) and _NO_SUCH_KEY in error.server_message:
        return True
    if isinstance(error, ServerError):  # Yatai sends 404, too, while its database is away
        return False
    return isinstance(error, (APIStatusError, PartError)) and error.status == HTTPStatus.NOT_FOUND


def is_expired(error: BaseException) -> bool:
    """Whether a storage answered 403, as it does to an expired presigned URL."""
    return isinstance(error, PartError) and error.status == HTTPStatus.FORBIDDEN


def _is_transient_status(status: int) -> bool:
    # 507: a disk that is full stays full for longer than a push waits.
    is_fault = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.INSUFFICIENT_STORAGE
    return status in _TRANSIENT or is_fault


def _is_refused_on_the_way(error: BaseException) -> bool:
    """Whether TLS or a proxy refused the connection: an untrusted certificate, or a proxy that wants a password."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError)
        or lacks_tls(cause)
        or getattr(cause, "status", None) == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        for cause in causes(error)
    )


def lacks_tls(error: BaseException) -> bool:
    """Whether the handshake failed since the server does not use TLS: a plain HTTP port."""
    return getattr(getattr(error, "os_error", None), "reason", None) in _NO_TLS


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


class Retries:
    """The retries of one request.

    The caller loops:

        retries = Retries(policy)
        while True:
            try:
                return await send()
            except Exception as error:
                if not await retries.wait_after(error):
                    raise

    `progress` returns how far the whole transfer is: the policy's attempts count from the last failure before which it
    grew. `on_retry` is called with each error that is followed by a retry, except that of an expired URL. `log` gets a
    line for each retry.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        progress: Callable[[], int] = lambda: 0,
        on_retry: Callable[[Exception], None] = lambda _: None,
        log: logging.Logger = logger,
    ) -> None:
        self._policy = policy
        self._progress = progress
        self._on_retry = on_retry
        self._log = log
        self._reached = progress()
        self._failures = 0
        self._expired = 0

    @property
    def failures(self) -> int:
        """The failures in a row that were followed by a wait."""
        return self._failures

    async def wait_after(self, error: Exception, attempts: int | None = None) -> bool:
        """Wait before the next attempt; False where this error is to be raised, as after so many `attempts`."""
        if not is_transient(error):
            return False
        if (reached := self._progress()) > self._reached:
            self._reached, self._failures, self._expired = reached, 0, 0
        self._failures += 1
        self._expired += is_expired(error)
        policy = self._policy
        if attempts is not None and attempts < policy.attempts:
            policy = policy.model_copy(update={"attempts": attempts})
        wait = wait_before_retry(policy, error, failures=self._failures, expired=self._expired)
        if wait is None:
            return False
        reason = str(error).partition(". ")[0]  # what to do follows with the error that is raised in the end
        self._log.info("retrying (%d of %d) in %.1f s: %s", self._failures + 1, policy.attempts, wait, reason)
        if not is_expired(error):
            self._on_retry(error)
        await asyncio.sleep(wait)
        return True


def wait_before_retry(policy: RetryPolicy, error: Exception, *, failures: int, expired: int) -> float | None:
    """Return the seconds to wait after a transient error, or None to raise it.

    `failures` in a row happened so far, `expired` of them because of an expired URL. The error's `Retry-After` is the
    minimum (RFC 9110, 10.2.3): eight attempts one second apart would not outlast a restart of the server.
    """
    if failures >= policy.attempts:
        return None
    if is_expired(error):
        return 0.0 if expired < EXPIRED_TRIES else None
    asked = error.retry_after if isinstance(error, (APIStatusError, PartError)) else None
    if asked is not None and asked > policy.retry_after_cap:
        return None
    return max(asked or 0.0, backoff(policy, failures))


def backoff(policy: RetryPolicy, failures: int) -> float:
    """Return the seconds to wait after the n-th failure in a row, from 1: exponential, with equal jitter."""
    # Jitter keeps clients that failed together from returning together (Amazon, "Exponential Backoff and Jitter").
    # Equal jitter waits for half of the limit at least: with full jitter, one call in three of the default policy would
    # fail within twenty seconds.
    # 64: a float overflows at 2.0 ** 1024, and a wait would have reached its maximum long before.
    longest = min(policy.wait_max, policy.wait_initial * 2.0 ** min(failures - 1, 64))
    return random.uniform(longest / 2, longest)  # noqa: S311 - no secret depends on it


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Parse a `Retry-After` header (RFC 9110, 10.2.3) into seconds, 0 for the past; None if absent or malformed."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    date = parse_date(retry_after)
    return None if date is None else max(0.0, date - time.time())


def parse_date(text: str) -> float | None:
    """Parse an HTTP date (RFC 9110, 5.6.7) into seconds since 1970; None if malformed."""
    try:
        date = parsedate_to_datetime(text)
        # In GMT; `parsedate_to_datetime` returns -0000 without a zone.
        return date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp()
    except (ValueError, OverflowError):  # OverflowError: a number that fits no C int
        return None


class HostThrottle:
    """Backoff per host, shared by all workers of a client. A host is written with its port."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._until: dict[str, float] = {}
        self._refusals: defaultdict[str, int] = defaultdict(int)

    def is_paused(self, host: str) -> bool:
        """Whether the host's backoff is not over."""
        return self._until.get(host, 0.0) > time.monotonic()

    async def wait(self, host: str) -> None:
        """Wait until the host's backoff is over."""
        while (left := self._until.get(host, 0.0) - time.monotonic()) > 0:  # noqa: ASYNC110 - others may extend it
            await asyncio.sleep(left + backoff(self._policy, 1))  # jitter: the workers do not return together

    def record(self, host: str, status: int, retry_after: float | None) -> None:
        """Record an answer's status and its `Retry-After` in seconds."""
        now = time.monotonic()
        paused = self._until.get(host, 0.0) > now
        if status not in BUSY:
            if not paused:  # an answer to a request from before the pause does not end the pause
                self._refusals.pop(host, None)
            return
        if not paused:
            self._refusals[host] += 1
        wait = backoff(self._policy, self._refusals[host]) if retry_after is None else retry_after
        if wait <= self._policy.retry_after_cap:  # beyond the cap the call fails instead of waiting
            self._until[host] = max(self._until.get(host, 0.0), now + wait)
