"""A client of one S3 bucket, and the translation of its errors. Only this module and `s3.py` import botocore."""

from __future__ import annotations

import asyncio
import io
import logging
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError as EndpointError, HTTPClientError
from botocore.handlers import add_expect_header
from botocore.session import get_session as get_botocore_session

from async_bento._core.concurrency import Threads
from async_bento._core.urls import without_queries
from async_bento.errors import ConfigError
from async_bento.registry.errors import (
    NoSuchUploadError,
    RecordNotFoundError,
    RegistryError,
    StorageError,
    UnsupportedByStorageError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from aiobotocore.session import ClientCreatorContext
    from botocore.loaders import Loader
    from types_aiobotocore_s3 import S3Client

_MAX_CONNECTIONS = 64
"""Per copy of the registry."""

_MAX_ATTEMPTS = 4
"""Attempts per request. botocore chooses the delays between them, of at most twenty seconds."""

_RETRY_AFTER = 5
"""Seconds after which clients should retry, once botocore's attempts are exhausted."""

_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")

_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
_CLIENT_ERRORS = {
    "EntityTooLarge",
    "EntityTooSmall",
    "InvalidArgument",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidRequest",
}
"""Codes that are passed on to the client unchanged, since its request caused them."""

_UNSUPPORTED = {HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}

log = logging.getLogger(__package__)


class BucketObject(NamedTuple):
    """An object as the bucket lists it: its key without the prefix, its size in bytes, its quoted ETag."""

    key: str
    size: int
    etag: str


class Bucket:
    """Reads and writes small objects below a prefix; `client` and `key` serve larger ones.

    Every method raises `StorageError` if the bucket cannot be reached or rejects a request.
    """

    def __init__(self, client: S3Client, name: str, prefix: str) -> None:
        self.client = client
        self.name = name
        self._prefix = prefix

    def key(self, key: str) -> str:
        """Return a key with the prefix."""
        return self._prefix + key

    async def check(self) -> None:
        """Check that the bucket exists, is accessible, and is in the region that URLs are signed for."""
        with translate_s3_errors():
            # Of one key: s3rver 3.7.1 on Node 17 or later fails where it would have to split a list into pages.
            response = await self.client.list_objects_v2(Bucket=self.name, Prefix=self.key("registry.json"), MaxKeys=1)
        # botocore follows a bucket to its region, but a presigned URL is valid in one only. Servers other than AWS
        # ignore the region.
        actual = response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        configured = self.client.meta.region_name.replace("aws-global", "us-east-1")
        if actual and actual != configured and self.client.meta.endpoint_url.endswith(_AWS_DOMAINS):
            raise StorageError(
                "PermanentRedirect", f"the bucket is in region {actual}. Set AWS_DEFAULT_REGION={actual}."
            )

    async def read(self, key: str) -> bytes | None:
        """Read an object; None if it does not exist."""
        try:
            with translate_s3_errors():
                response = await self.client.get_object(Bucket=self.name, Key=self.key(key))
                async with response["Body"]:
                    return await response["Body"].read()
        except RecordNotFoundError:
            return None

    async def write(self, key: str, body: bytes) -> None:
        """Write an object."""
        with translate_s3_errors():
            await self.client.put_object(
                Bucket=self.name, Key=self.key(key), Body=io.BytesIO(body), ContentType="application/json"
            )

    async def objects(self, prefix: str) -> Sequence[BucketObject]:
        """Return all objects below a prefix in the order of their keys; 1000 take one request."""
        found: list[BucketObject] = []
        with translate_s3_errors():
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.key(prefix))
            async for page in pages:
                found += [
                    BucketObject(
                        entry.get("Key", "").removeprefix(self._prefix), entry.get("Size", 0), entry.get("ETag", "")
                    )
                    for entry in page.get("Contents", [])
                ]
        return found


@asynccontextmanager
async def connect(endpoint: str | None, public_endpoint: str | None) -> AsyncGenerator[tuple[S3Client, S3Client]]:
    """Create a client for requests and one for presigning; raise `ConfigError` without credentials."""
    threads = Threads(1)
    try:
        session = await threads.run(_new_session)
        if await session.get_credentials() is None:
            raise ConfigError(
                "cannot connect to S3: there are no AWS credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE, or give the machine or container a role."
            )
        async with AsyncExitStack() as stack:
            create: Callable[..., ClientCreatorContext[S3Client]]
            # The stubs cover S3 only.
            create = partial(session.create_client, "s3")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            client = await stack.enter_async_context(create(endpoint_url=endpoint, config=_config(endpoint)))
            # aiohttp waits for `100 Continue` without a limit, and some servers and proxies never send it. It costs
            # little to send one of the small bodies in vain.
            client.meta.events.unregister("before-call.s3", add_expect_header)
            presigning_client = client
            if public_endpoint:
                public = create(endpoint_url=public_endpoint, config=_config(public_endpoint))
                presigning_client = await stack.enter_async_context(public)
            yield client, presigning_client
    except BotoCoreError as error:
        raise ConfigError(f"cannot connect to S3: {without_queries(str(error))}") from error
    finally:
        threads.close()


def _config(endpoint: str | None) -> AioConfig:
    return AioConfig(
        signature_version="s3v4",
        # Few servers other than AWS resolve a host name per bucket.
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Not every server accepts the checksums that botocore sends by default since 1.36.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=_MAX_CONNECTIONS,
    )


def _new_session() -> AioSession:
    """Create a session with `~/.aws/config` and botocore's data files read. Blocks."""
    session = get_session()
    session.register_component("data_loader", _loader())
    session.get_scoped_config()
    return session


@cache
def _loader() -> Loader:
    """Return a loader that has cached botocore's data files for S3, so that none is read on the event loop."""
    session = get_botocore_session()
    client = session.create_client("s3", region_name="us-east-1", aws_access_key_id="-", aws_secret_access_key="-")  # noqa: S106 - sends no request
    client.can_paginate("list_objects_v2")
    loader: Loader = session.get_component("data_loader")
    return loader


@contextmanager
def translate_s3_errors(subject: str = "the bytes") -> Generator[None]:
    """Translate botocore's and aiohttp's errors into the registry's; `subject` names what was not found."""
    try:
        yield
    except ClientError as error:
        raise _translate_response(error, subject) from error
    except (EndpointError, HTTPClientError, aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        log.warning("cannot reach S3: %s", without_queries(str(error) or type(error).__name__))
        raise StorageError(
            "ServiceUnavailable", "cannot reach the registry's bucket", status=503, retry_after=_RETRY_AFTER
        ) from error
    except BotoCoreError as error:
        log.warning("S3 failed: %s", without_queries(str(error)))
        raise StorageError(
            "InternalError", f"the registry's bucket failed: {type(error).__name__}", status=500
        ) from error


def _translate_response(error: ClientError, subject: str) -> RegistryError:
    code = error.response.get("Error", {}).get("Code", "")
    message = error.response.get("Error", {}).get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if code == "NoSuchUpload":
        return NoSuchUploadError()
    if code in {"NoSuchKey", "404"}:  # the response to a HEAD has no code but its status
        return RecordNotFoundError(subject)
    if code in _CLIENT_ERRORS:
        return StorageError(code, message, status=status)
    if status in _UNSUPPORTED:
        return UnsupportedByStorageError(
            code, f"the registry's bucket does not support {error.operation_name}", status=500
        )
    log.warning("S3 rejected %s: %d %s %s", error.operation_name, status, code, without_queries(message))
    if code in _THROTTLED or status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        throttled = "the registry's bucket is overloaded and asks to slow down"
        return StorageError("SlowDown", throttled, status=503, retry_after=_RETRY_AFTER)
    is_full = status == HTTPStatus.INSUFFICIENT_STORAGE
    return StorageError(code, f"the registry's bucket failed: {code}", status=507 if is_full else 500)
