"""The registry that a mirror copies: its records, and whether it answers."""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, cast

from pydantic import ValidationError

from async_bento._core.concurrency import Threads
from async_bento.config import Config, RetryPolicy, Timeouts
from async_bento.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    RateLimitError,
    ServerError,
)
from async_bento.registry.errors import StorageError
from async_bento.registry.item_types import BENTO
from async_bento.rest.client import RestApiClient
from async_bento.rest.responses import status_error
from async_bento.rest.schemas import BentoFullSchema, ModelWithRepositorySchema
from async_bento.rest.session import ApiRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from pydantic import SecretStr

    from async_bento._core.validation import JsonObject
    from async_bento.registry.item_types import ItemRef
    from async_bento.rest.responses import RawResponse
    from async_bento.rest.routes import AnyRoutes
    from async_bento.rest.schemas import ItemSchema

_CONNECT_TIMEOUT = 3.0
_ANSWER_TIMEOUT = 10.0
"""Seconds until a record has arrived, and then the mirror answers with its own; clients wait 60 seconds."""

_PAUSE = 5.0
"""Seconds after a failure in which the upstream is not asked, so that an outage slows down one request and not all."""

_THREADS = 2
"""A list may have megabytes of JSON, which would hold up the event loop."""

log = logging.getLogger(__package__)


class Remote(NamedTuple):
    """A record of the upstream, parsed and as it was sent."""

    record: ItemSchema
    fields: JsonObject

    @property
    def marker(self) -> datetime | None:
        """A time that changes with each push of the version."""
        return self.record.upload_finished_at or self.record.updated_at or self.record.created_at


class Answer(NamedTuple):
    """A response of the upstream: a status, and JSON whose bytes are to be downloaded from the mirror."""

    status: int
    body: bytes
    remote: Remote | None = None


class Upstream:
    """Requests records from a registry; `reached` gets whether it has answered."""

    def __init__(self, url: str, api_token: SecretStr, reached: Callable[[bool], None]) -> None:
        config = Config.from_env()
        self.client = RestApiClient(url, api_token, config=config)
        """Downloads the bytes."""
        quick = {
            # Neither retries nor pauses of the client: the mirror has answers of its own.
            "retry": RetryPolicy(attempts=1, retry_after_cap=0),
            "timeouts": Timeouts(connect=_CONNECT_TIMEOUT, api=_ANSWER_TIMEOUT),
        }
        self._records = RestApiClient(url, api_token, config=config.model_copy(update=quick))
        self._threads = Threads(_THREADS)
        self._reached = reached
        self._is_down = False
        self._is_probing = False
        self._down_until = 0.0
        reached(True)

    @property
    def url(self) -> str:
        """The URL of the registry."""
        return self.client.endpoint

    def routes(self, ref: ItemRef) -> AnyRoutes:
        """Return the routes of bentos or of models."""
        return self.client.bentos if ref.item_type is BENTO else self.client.models

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()
        await self._records.aclose()
        self._threads.close()

    async def item(self, ref: ItemRef) -> Answer | None:
        """Request the record of an item; see `get`."""
        path = f"{ref.item_type.repositories}/{ref.name}/{ref.item_type.items}/{ref.version}"
        answer = await self.get(path)
        if answer is None or answer.status != HTTPStatus.OK:
            return answer
        fields = cast("JsonObject", json.loads(answer.body))
        schema = BentoFullSchema if ref.item_type is BENTO else ModelWithRepositorySchema
        try:
            record: ItemSchema = schema.model_validate(fields)
        except ValidationError as error:
            raise self._invalid(path) from error
        return answer._replace(remote=Remote(record, fields))

    async def get(self, path: str) -> Answer | None:
        """Request a record or a list, by its path with the query; None if the upstream is away.

        Raise `StorageError` if the upstream rejects the mirror's token, or sends something else than JSON.
        """
        loop = asyncio.get_running_loop()
        if self._is_down and (self._is_probing or loop.time() < self._down_until):
            return None
        self._is_probing = self._is_down
        try:
            response = await self._send(path)
        except (APIConnectionError, ServerError, RateLimitError, asyncio.TimeoutError) as error:
            self._record_failure(error)
            return None
        finally:
            self._is_probing = False
        self._record_answer()
        if response.status != HTTPStatus.OK:
            return Answer(response.status, response.body)
        try:
            return Answer(response.status, await self._threads.run(_pass_on, response.body))
        except (ValueError, RecursionError) as error:
            raise self._invalid(path) from error

    async def _send(self, path: str) -> RawResponse:
        session = self._records.bentos.session
        try:
            response = await asyncio.wait_for(session.send(ApiRequest("GET", path)), _ANSWER_TIMEOUT)
        except APIResponseError as error:
            raise self._invalid(path) from error
        if response.status == HTTPStatus.OK:
            return response
        refusal = status_error(response, self._records.credentials)
        if isinstance(refusal, AuthenticationError):
            message = (
                f"the upstream {self.url} rejects the token of this mirror. Replace it in the mirror's token file."
            )
            raise StorageError("BadGateway", message, status=502)
        if isinstance(refusal, (ServerError, RateLimitError)):
            raise refusal
        if isinstance(refusal, APIResponseError) or response.status < HTTPStatus.BAD_REQUEST:  # a page or a redirect
            raise self._invalid(path)
        message = refusal.server_message if isinstance(refusal, APIStatusError) else ""
        return response._replace(body=json.dumps({"error": message or "the upstream rejects the request"}).encode())

    def _invalid(self, path: str) -> StorageError:
        message = f"the upstream {self.url} sent no valid response to {path.partition('?')[0]}. Check its URL."
        return StorageError("BadGateway", message, status=502)

    def _record_failure(self, error: APIError | asyncio.TimeoutError) -> None:
        if not self._is_down:
            reason = str(error) or f"no response within {_ANSWER_TIMEOUT:g} s"
            log.warning("the upstream is away, so the mirror serves what it has: %s", reason)
        self._is_down = True
        self._down_until = asyncio.get_running_loop().time() + _PAUSE
        self._reached(False)

    def _record_answer(self) -> None:
        if self._is_down:
            log.warning("the upstream %s answers again", self.url)
        self._is_down = False
        self._reached(True)


def _pass_on(body: bytes) -> bytes:
    """Let clients download from the mirror what a response of the upstream is about."""
    value: object = json.loads(body)
    if body.lstrip()[:1] not in {b"{", b"["}:
        raise ValueError("neither an object nor a list")
    _change(value)
    return json.dumps(value).encode()


def _change(value: object) -> None:
    """Change the records in a response, in place; manifests stay as they are."""
    if isinstance(value, list):
        for each in cast("list[object]", value):
            _change(each)
    elif isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        if "upload_status" in fields:
            fields |= {"transmission_strategy": "proxy", "presigned_download_url": "", "presigned_upload_url": ""}
        for name in ("items", "models", "repository", "latest_bento", "latest_model"):
            _change(fields.get(name))
