"""RestSession: requests to one registry, with the token, retries and errors of async-bento."""

from __future__ import annotations

import io
import logging
import math
import time
from dataclasses import replace
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import aiohttp
from pydantic import BaseModel
from yarl import URL

from async_bento._core.retry import Retries
from async_bento._core.text import human_size
from async_bento._core.urls import is_loopback, origin
from async_bento.config import BENTOML_VERSION, MiB
from async_bento.errors import APIError, APIResponseError, APIStatusError, APITimeoutError
from async_bento.rest.responses import RawResponse, is_not_found, parse_response, status_error
from async_bento.rest.transport import AUTH_HEADER, MAX_ERROR_BODY, failed_to_connect, read_body, translate_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from async_bento.config import Config
    from async_bento.rest.credentials import LazyCredentials
    from async_bento.rest.request_schemas import RequestModel
    from async_bento.rest.storages import Storages
    from async_bento.rest.transport import Connections, Target

logger = logging.getLogger(__package__)

ResponseT = TypeVar("ResponseT", bound=BaseModel)

_MAX_RESPONSE = 256 * MiB
"""The largest response in bytes. A Yatai sends 14 MB for a page of 1,000 records; the records of a page of 100, the
client's own, may hold 2.5 MiB each."""


_STALE = "detail=upstream-down"
"""In the `Cache-Status` (RFC 9211) of a mirror of async-bento that answers from its own records."""

_FIRST_TRIES = 2
"""Connections to a registry that this client has never reached: a wrong endpoint is reported soon."""


class ApiRequest(NamedTuple):
    """One request to the registry's API."""

    method: str
    path: str  # below /api/v1/, quoted
    body: RequestModel | None = None
    params: Mapping[str, str] | None = None
    timeout: float | None = None  # seconds for all attempts together; by default the session's, for each attempt
    attempt: int = 1


class RestSession:
    """Sends requests to one registry and parses its responses."""

    def __init__(self, credentials: LazyCredentials, connections: Connections, config: Config, timeout: float) -> None:
        self.config = config
        self._credentials = credentials
        self._connections = connections
        self._timeout = timeout
        self.is_reached = False  # whether the registry has ever answered

    @property
    def endpoint(self) -> str:
        """The registry's URL, without a trailing slash."""
        return self._credentials.get().endpoint

    async def find_endpoint(self) -> str:
        """The same, without blocking the event loop at first."""
        return (await self._credentials.load()).endpoint

    @property
    def context(self) -> str | None:
        """The context that the caller chose, if any."""
        return self._credentials.context

    @property
    def storages(self) -> Storages:
        """Which storages this client can reach."""
        return self._connections.storages

    def check_open(self) -> None:
        """Raise ClosedError if the client was closed."""
        self._connections.check_open()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connections.aclose()

    async def request(self, request: ApiRequest, schema: type[ResponseT], *, retry: bool = True) -> ResponseT:
        """Send a request and parse the response; `retry=False` for a request that must not be repeated."""
        credentials = await self._credentials.load()
        retries = Retries(self.config.retry, log=logger)
        until = math.inf if request.timeout is None else time.monotonic() + request.timeout
        while True:
            try:
                response = await self.send(request)
                if response.status != HTTPStatus.OK:
                    raise status_error(response, credentials)
                return parse_response(response, schema)
            except APIError as error:
                if not (retry and time.monotonic() < until and await retries.wait_after(error, self._attempts(error))):
                    raise
            request = request._replace(attempt=retries.failures + 1)
            if request.timeout is not None:
                # At least a second, or an attempt that is due could not succeed.
                request = request._replace(timeout=max(1.0, until - time.monotonic()))

    def _attempts(self, error: APIError) -> int | None:
        """How many attempts an error allows; None where the policy decides."""
        if self.is_reached or not failed_to_connect(error):
            return None
        # A timeout is conclusive: the system has repeated its attempts for `Timeouts.connect` seconds.
        return 1 if isinstance(error, APITimeoutError) else _FIRST_TRIES

    async def find(self, request: ApiRequest, schema: type[ResponseT]) -> ResponseT | None:
        """Send a request and parse the response; None if the registry has no such record."""
        try:
            return await self.request(request, schema)
        except APIStatusError as error:
            if is_not_found(error):
                return None
            raise

    async def send(self, request: ApiRequest) -> RawResponse:
        """Send a request once and read the response, whatever its status."""
        target = replace(self.registry_target(request.path), attempt=request.attempt)
        url = f"{request.method} {target}"
        timeout = aiohttp.ClientTimeout(total=request.timeout or self._timeout, connect=self.config.timeouts.connect)
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if request.body else {})
        # aiohttp warns of large bytes, as of a record with a long README, but not of the same bytes in a BytesIO.
        body = io.BytesIO(request.body.model_dump_json(by_alias=True).encode()) if request.body else None
        data = aiohttp.BytesIOPayload(body) if body else None
        with translate_errors(url, target, timeout):
            async with (
                target.turn(),
                target.request(request.method, timeout, headers=headers, params=request.params, data=data) as response,
            ):
                self.is_reached = True
                if _STALE in response.headers.get("Cache-Status", ""):
                    _warn_of_stale_mirror(origin(self.endpoint))
                # An error's body beyond the limit is cut off: it is only quoted.
                limit = _MAX_RESPONSE if response.status == HTTPStatus.OK else MAX_ERROR_BODY
                answer = await read_body(response, limit)
                if len(answer) > _MAX_RESPONSE:
                    raise APIResponseError(
                        f"{url}: the response is larger than {human_size(limit)}. Check the endpoint."
                    )
                return RawResponse(response.status, response.headers, answer, url)

    def registry_target(self, path: str, *, is_transfer: bool = False) -> Target:
        """The target of a path below `/api/v1/`, with the token; `is_transfer` for the bytes of an item.

        Headers for the registry alone belong here: `Connections.target` adds those that storages get, too.
        """
        credentials = self._credentials.get()
        url = URL(f"{credentials.endpoint}/api/v1/{path}", encoded=True)
        if url.scheme == "http" and not is_loopback(url.host or ""):
            _warn_of_plain_http(origin(credentials.endpoint))
        headers = {AUTH_HEADER: credentials.api_token.get_secret_value(), "X-Bentoml-Version": BENTOML_VERSION}
        return self._connections.target(url, headers, credentials, is_transfer=is_transfer)

    def storage_target(self, presigned_url: SecretStr) -> Target:
        """The target of a presigned URL, without the token, cookies or netrc."""
        try:
            url = URL(presigned_url.get_secret_value(), encoded=True)  # quoting it again would break the signature
            usable = url.scheme in {"http", "https"} and bool(url.host) and bool(url.port)
        except ValueError:
            url, usable = URL(), False
        if not usable:
            raise APIResponseError(
                "cannot use the registry's presigned URL: it is not an http or https URL. "
                "Check the storage settings of the registry."
            )
        endpoint = self.endpoint
        if url.scheme == "http" and endpoint.startswith("https:"):
            _warn_of_plain_storage(origin(endpoint), origin(str(url)))
        return self._connections.target(url, {}, None)


@cache
def _warn_of_plain_storage(registry: str, storage: str) -> None:
    """Warn once per storage and process; the bytes are transferred all the same."""
    logger.warning(
        "the registry at %s presigns URLs without TLS for its storage at %s: anyone on the way can read the bytes. "
        "Set https in the storage settings of the registry.",
        registry,
        storage,
    )


@cache
def _warn_of_stale_mirror(registry: str) -> None:
    """Warn once per mirror and process."""
    logger.warning(
        "the registry at %s is a mirror and cannot reach its upstream: there may be newer versions.", registry
    )


@cache
def _warn_of_plain_http(registry: str) -> None:
    """Warn once per registry and process, however many clients there are."""
    logger.warning("the API token is sent to %s unencrypted: anyone on the way can read it. Use https.", registry)
