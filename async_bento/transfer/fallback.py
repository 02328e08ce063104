"""The way through the registry, for a storage that this machine cannot reach.

Presigned URLs may name a host that only the registry's cluster knows. Yatai accepts the routes `upload` and `download`
whatever its transmission strategy.
"""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from async_bento._core import platform
from async_bento._core.retry import causes
from async_bento.errors import PartError, with_message
from async_bento.rest.storages import GATEWAY_ERRORS

if TYPE_CHECKING:
    from async_bento._core.retry import Retries
    from async_bento.errors import APIError
    from async_bento.rest.storages import Storages
    from async_bento.rest.transport import Target

logger = logging.getLogger(__package__)

FIRST_TRIES = 3
"""Attempts to reach a storage that was never reached, before the transfer goes through the registry. Together with the
waits between them they take two seconds, where the host is unknown or refuses."""

_NO_CONNECTION = frozenset(
    {
        None,  # of several addresses, each of which failed in its own way
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    }
)


# Of the proactor loop of Windows, whose errno is EINVAL: timeout, refused, no route to the network or to the host.
_NO_CONNECTION_ON_WINDOWS = frozenset({121, 1225, 1231, 1232})


class UnreachableError(PartError):
    """A storage cannot be reached, and this client has never reached it: no byte was transferred."""

    def __init__(self, storage: str, message: str) -> None:
        super().__init__(message)
        self.storage = storage


def check_reachable(target: Target) -> None:
    """Raise UnreachableError where an earlier transfer of this client could not reach the storage."""
    if target.credentials is None and (message := target.owner.storages.unreachable.get(target.storage)):
        raise UnreachableError(target.storage, message)


async def wait_after_failure(retries: Retries, target: Target | None, error: Exception) -> bool:
    """Wait before the next attempt; False where the error is to be raised. May raise UnreachableError in its place.

    `target` is that of the failed request; None where the transfer cannot take another way.
    """
    if isinstance(error, UnreachableError):
        return False
    reason = None if target is None else _reason(target, error)
    if target is None or reason is None:
        return await retries.wait_after(error)
    # A connection that timed out is conclusive: the system has repeated its attempts for `Timeouts.connect` seconds.
    is_last = retries.failures >= FIRST_TRIES - 1 or _is_timeout(error)
    if is_last or not await retries.wait_after(error):
        raise UnreachableError(target.storage, f"cannot reach the storage at {target.storage}: {reason}") from error
    return True


def remember_unreachable(storages: Storages, error: UnreachableError) -> None:
    """Send later transfers of this client through the registry at once; warn once per storage."""
    if error.storage not in storages.unreachable:
        storages.unreachable[error.storage] = str(error)
        logger.warning("%s. All bytes go through the registry instead, which may be slower.", error)


def with_both_causes(unreachable: str, error: APIError) -> APIError:
    """The error of a transfer for which neither way works."""
    return with_message(error, f"{unreachable}. The way through the registry failed, too: {error}")


def _is_timeout(error: Exception) -> bool:
    return any(isinstance(cause, aiohttp.ConnectionTimeoutError) for cause in causes(error))


def _reason(target: Target, error: Exception) -> str | None:
    """Why a storage that has never been reached cannot be reached; None for any other error."""
    if target.credentials is not None or target.storage in target.owner.storages.reached:
        return None
    if isinstance(error, PartError) and target.is_forwarded and error.status in GATEWAY_ERRORS:
        return f"the proxy answered {error.status}"
    if _is_timeout(error):
        return "no connection in time"
    for cause in causes(error):
        # 407: the proxy wants a password, so the storage may well be reachable.
        if isinstance(cause, aiohttp.ClientHttpProxyError) and cause.status != HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return f"the proxy answered {cause.status} {cause.message}"
        if isinstance(cause, aiohttp.ClientConnectorError) and not isinstance(cause, aiohttp.ClientSSLError):
            failed = cause.os_error.errno in _NO_CONNECTION
            failed = failed or getattr(cause.os_error, "winerror", None) in _NO_CONNECTION_ON_WINDOWS
            if failed or isinstance(cause, aiohttp.ClientConnectorDNSError):
                return platform.reason(cause.os_error)
    return None
