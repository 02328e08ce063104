"""Access to the API: authenticate tokens, check their rights, and delay wrong guesses."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from async_bento.registry.errors import RegistryError
from async_bento.registry.expect import defer_continue, send_continue
from async_bento.registry.operation import ADDRESS
from async_bento.registry.records.base import utc_now
from async_bento.registry.tokens import Actor, Token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.registry.records.tokens import TokenRecords
    from async_bento.registry.tokens import Role

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

API_PREFIX = "/api/v1"

TOKEN = web.RequestKey("token", Token)
ACTOR = web.RequestKey("actor", Actor)

_FREE_GUESSES = 10
"""Wrong tokens of an address that are answered at once."""

_INTERVAL = 1.0
"""Seconds between two answers to further wrong tokens of an address."""

_MAX_DELAY = 10.0
"""Seconds that a request with a wrong token waits for its answer; beyond, it is refused with 429."""

_MAX_ADDRESSES = 10_000
"""Addresses that are remembered: guesses from many addresses must not fill the memory."""

_USE_INTERVAL = timedelta(minutes=1)
"""Between two records of the last use of a token."""

log = logging.getLogger(__package__)


class AccessDeniedError(RegistryError):
    """The token is missing or unknown, or does not allow the request. Yatai answers 403."""

    status = 403
    code = "AccessDenied"


class TooManyGuessesError(RegistryError):
    """An address has sent too many wrong tokens."""

    status = 429
    code = "SlowDown"

    def __init__(self, retry_after: int) -> None:
        super().__init__("access denied: this address has sent too many wrong tokens. Check the token.")
        self.retry_after = retry_after


class Access:
    """Checks the tokens of requests."""

    def __init__(self, records: TokenRecords) -> None:
        self._records = records
        self._guesses = GuessThrottle()

    @web.middleware
    async def authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Find the token of a request to the API, or refuse the request before its body is read."""
        if request.path.startswith(API_PREFIX):
            secret = request.headers.get("X-YATAI-API-TOKEN", "")
            if not secret:
                raise AccessDeniedError(
                    "access denied: the API token is missing. Send it in the header X-YATAI-API-TOKEN."
                )
            request[TOKEN] = token = await self.check(secret, request[ADDRESS])
            request[ACTOR] = Actor(token.name, request[ADDRESS])
        return await handler(request)

    async def check(self, secret: str, address: str) -> Token:
        """Return the record of a token; raise `AccessDeniedError`, late if the address guesses, if it is not valid."""
        token = await self._records.find(secret)
        if token is None:
            delay = self._guesses.delay(address)
            if delay > _MAX_DELAY:
                raise TooManyGuessesError(math.ceil(delay))
            log.warning("refused a wrong token from %s", address)
            await asyncio.sleep(delay)
            raise AccessDeniedError(
                "access denied: the API token is unknown, was revoked or has expired. Check the token."
            )
        await self._set_used(token)
        return token

    async def _set_used(self, token: Token) -> None:
        now = utc_now()
        if token.last_used_at is None or now - token.last_used_at > _USE_INTERVAL:
            try:
                await self._records.set_used(token, now)
            except RegistryError as error:  # a locked database must not stop requests that only read
                log.warning("cannot record the use of the token %s: %s", token.name, error.message)


class GuessThrottle:
    """Delays the answers to wrong tokens, per address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: OrderedDict[str, float] = OrderedDict()

    def delay(self, address: str) -> float:
        """Count a wrong token of an address; return the seconds until its answer, above `_MAX_DELAY` to refuse it."""
        network, now = _network(address), self._clock()
        answered_at = max(self._next.pop(network, 0.0), now - _FREE_GUESSES * _INTERVAL) + _INTERVAL
        delay = max(0.0, answered_at - now)
        # What is refused costs the address no further wait.
        self._next[network] = answered_at if delay <= _MAX_DELAY else answered_at - _INTERVAL
        if len(self._next) > _MAX_ADDRESSES:
            self._next.popitem(last=False)
        return delay


def route(method: str, path: str, role: Role, handler: Handler) -> web.RouteDef:
    """Define a route of the API that tokens of a role, and of those above it, may use.

    If the path names a repository by `{name}`, the prefix of the token must cover it.
    """
    return web.route(method, f"{API_PREFIX}{path}", partial(_authorized, role, handler), expect_handler=defer_continue)


async def _authorized(role: Role, handler: Handler, request: web.Request) -> web.StreamResponse:
    token = request[TOKEN]
    if not token.allows(role):
        raise AccessDeniedError(
            f"access denied: the token {token.name} has the role {token.role}, and this request needs the role "
            f"{role}. Use another token."
        )
    if "name" in request.match_info:
        check_covered(token, request.match_info["name"])
    # Last: a client that is refused does not send its body.
    await send_continue(request)
    return await handler(request)


def check_covered(token: Token, repository: str) -> None:
    """Raise `AccessDeniedError` if the prefix of a token does not cover a repository."""
    if not token.covers(repository):
        raise AccessDeniedError(
            f"access denied: the token {token.name} is for repositories whose names begin with {token.prefix}. "
            "Use another token."
        )


def _network(address: str) -> str:
    """Return the network that one client has: all of its IPv6 addresses have the same first 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address  # noqa: PLR2004
