"""One bucket, as far as the registry needs it, and what its refusals mean. The only module that knows botocore."""

from __future__ import annotations

import asyncio
import io
import logging
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError as EndpointError, HTTPClientError
from botocore.session import get_session as get_botocore_session

from async_bento._core.concurrency import Threads
from async_bento._core.urls import without_queries
from async_bento.errors import ConfigError
from async_bento.registry.errors import NoSuchUploadError, RecordNotFoundError, RegistryError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping

    from aiobotocore.session import ClientCreatorContext
    from botocore.loaders import Loader
    from types_aiobotocore_s3 import S3Client

_CONNECTIONS = 64
"""At once, per copy of the registry. Records are small, and a list may have to read many."""

_TRIES = 4
"""Of each request, with waits of at most twenty seconds between them, which botocore decides on."""

_AWS = (".amazonaws.com", ".amazonaws.com.cn")

_CONFLICT_WAIT = 0.1
"""Until a write is tried again that conflicted with another, in seconds."""

_RETRY_AFTER = 5
"""When clients are asked to come back, in seconds, after botocore has tried often enough."""

_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
_CONFLICT = "ConditionalRequestConflict"
_REFUSED = {"EntityTooLarge", "EntityTooSmall", "InvalidArgument", "InvalidPart", "InvalidPartOrder", "InvalidRequest"}
"""What a client is told as it is, since it asked for it."""

log = logging.getLogger("async_bento.registry")


class Stored(NamedTuple):
    """An object.

    Attributes:
        body: Its bytes.
        etag: Its ETag, as the bucket gave it.
    """

    body: bytes
    etag: str


class Bucket:
    """Small objects in one bucket, below a prefix; and the client, for what is not small.

    Args:
        client: Speaks to it.
        name: Its name.
        prefix: What every key begins with.
    """

    def __init__(self, client: S3Client, name: str, prefix: str) -> None:
        self.client = client
        self.name = name
        self._prefix = prefix

    def key(self, key: str) -> str:
        """A key as the bucket knows it.

        Args:
            key: A key below the prefix.

        Returns:
            The whole key.
        """
        return self._prefix + key

    async def check(self) -> None:
        """Ask for nothing in particular.

        Raises:
            StorageError: There is no such bucket, nobody lets us in, or URLs would be signed for another region.
        """
        with refusals():
            answer = await self.client.list_objects_v2(Bucket=self.name, Prefix=self._prefix, MaxKeys=1)
        # botocore follows a bucket to its region, but whoever has a URL from us cannot. Others than AWS do not mind.
        found = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        ours = self.client.meta.region_name.replace("aws-global", "us-east-1")
        if found and found != ours and self.client.meta.endpoint_url.endswith(_AWS):
            raise StorageError("PermanentRedirect", f"the bucket is in {found}, so set AWS_DEFAULT_REGION={found}")

    async def read(self, key: str) -> Stored | None:
        """Read an object.

        Args:
            key: Which.

        Returns:
            The object, or None where there is none.

        Raises:
            StorageError: The bucket did not answer, or said no.
        """
        try:
            with refusals():
                found = await self.client.get_object(Bucket=self.name, Key=self.key(key))
                async with found["Body"]:
                    return Stored(await found["Body"].read(), found["ETag"])
        except RecordNotFoundError:
            return None

    async def create(self, key: str, body: bytes) -> bool:
        """Write an object, unless there is one: of all that try, one succeeds.

        Args:
            key: Which.
            body: Its bytes. They must be nobody else's: it is by them that a creation is known which had to be tried
                twice, since the first answer was lost.

        Returns:
            Whether it was created.

        Raises:
            StorageError: The bucket did not answer, or said no.
        """
        if await self._put(key, body, {"IfNoneMatch": "*"}):
            return True
        found = await self.read(key)
        return found is not None and found.body == body

    async def replace(self, key: str, body: bytes, etag: str) -> bool:
        """Write an object, if it is still the one it was.

        Args:
            key: Which.
            body: Its bytes.
            etag: The ETag it had.

        Returns:
            Whether it was written. After a lost answer that may be False though it was.

        Raises:
            StorageError: The bucket did not answer, or said no.
        """
        return await self._put(key, body, {"IfMatch": etag})

    async def delete(self, key: str) -> None:
        """Delete an object.

        Args:
            key: Which.

        Raises:
            StorageError: The bucket did not answer, or said no.
        """
        with refusals():
            await self.client.delete_object(Bucket=self.name, Key=self.key(key))

    async def etags(self, prefix: str) -> Mapping[str, str]:
        """List objects; a thousand take one request.

        Args:
            prefix: What their keys begin with.

        Returns:
            Their ETags, by key, in the order of the keys.

        Raises:
            StorageError: The bucket did not answer, or said no.
        """
        found: dict[str, str] = {}
        with refusals():
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.key(prefix))
            async for page in pages:
                for entry in page.get("Contents", []):
                    found[entry.get("Key", "").removeprefix(self._prefix)] = entry.get("ETag", "")
        return found

    async def _put(self, key: str, body: bytes, condition: _Condition) -> bool:
        for _ in range(_TRIES):
            try:
                with refusals():
                    await self.client.put_object(
                        Bucket=self.name,
                        Key=self.key(key),
                        Body=io.BytesIO(body),
                        ContentType="application/json",
                        **condition,
                    )
            except RecordNotFoundError:
                return False
            except StorageError as error:
                if error.status == HTTPStatus.PRECONDITION_FAILED:
                    return False
                if error.code != _CONFLICT:
                    raise
                # Others are at it. Whether they succeed is not known yet.
                await asyncio.sleep(_CONFLICT_WAIT)
            else:
                return True
        return False


class _Condition(TypedDict, total=False):
    """Under what condition an object is written."""

    IfMatch: str
    IfNoneMatch: str


@asynccontextmanager
async def connected(endpoint: str | None, public_endpoint: str | None) -> AsyncGenerator[tuple[S3Client, S3Client]]:
    """Connect to S3.

    Args:
        endpoint: Where it is; None for AWS.
        public_endpoint: Where clients find it; None for the same.

    Yields:
        A client, and one that signs what clients are to use.

    Raises:
        ConfigError: There are no credentials, or a setting in the environment does not fit.
    """
    threads = Threads(1)
    try:
        session = await threads.run(_new_session)
        if await session.get_credentials() is None:
            raise ConfigError(
                "there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or "
                "give the machine or container a role"
            )
        async with AsyncExitStack() as stack:
            create: Callable[..., ClientCreatorContext[S3Client]]
            # There are stubs for this service alone.
            create = partial(session.create_client, "s3")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            client = await stack.enter_async_context(create(endpoint_url=endpoint, config=_config(endpoint)))
            presigning = client
            if public_endpoint:
                public = create(endpoint_url=public_endpoint, config=_config(public_endpoint))
                presigning = await stack.enter_async_context(public)
            yield client, presigning
    except BotoCoreError as error:
        raise ConfigError(f"S3: {without_queries(str(error))}") from error
    finally:
        threads.close()


def _config(endpoint: str | None) -> AioConfig:
    return AioConfig(
        signature_version="s3v4",
        # Few servers but AWS's have a name for each bucket.
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Not every server takes the checksums that botocore sends of its own accord since 1.36.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
    )


def _new_session() -> AioSession:
    """A session that has read `~/.aws/config`, and botocore's own files. Blocks."""
    session = get_session()
    session.register_component("data_loader", _loader())
    session.get_scoped_config()
    return session


@cache
def _loader() -> Loader:
    """What reads botocore's own files; it has read those of S3, and keeps them."""
    session = get_botocore_session()
    client = session.create_client("s3", region_name="us-east-1", aws_access_key_id="-", aws_secret_access_key="-")  # noqa: S106
    client.can_paginate("list_objects_v2")
    loader: Loader = session.get_component("data_loader")
    return loader


@contextmanager
def refusals(what: str = "the bytes") -> Generator[None]:
    """Say what fails here in the registry's own words; the log has S3's.

    Args:
        what: What is asked for.

    Raises:
        RecordNotFoundError: There is no such object.
        NoSuchUploadError: There is no such multipart upload.
        StorageError: The bucket said no; it did not answer (503), asked to slow down (503, and when to come back), or
            failed (500, 507).
    """
    try:
        yield
    except ClientError as error:
        raise _refusal_of(error, what) from error
    except (EndpointError, HTTPClientError, aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        log.warning("S3 cannot be reached: %s", without_queries(str(error) or type(error).__name__))
        raise StorageError(
            "ServiceUnavailable", "the registry's bucket cannot be reached", status=503, retry_after=_RETRY_AFTER
        ) from error
    except BotoCoreError as error:
        log.warning("S3: %s", without_queries(str(error)))
        raise StorageError("InternalError", f"the registry's bucket: {type(error).__name__}", status=500) from error


def _refusal_of(error: ClientError, what: str) -> RegistryError:
    code = error.response.get("Error", {}).get("Code", "")
    said = error.response.get("Error", {}).get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if code == "NoSuchUpload":
        return NoSuchUploadError()
    if code in {"NoSuchKey", "404"}:  # the latter is all that the answer to a HEAD says
        return RecordNotFoundError(what)
    if status == HTTPStatus.PRECONDITION_FAILED or code in _REFUSED | {_CONFLICT}:
        return StorageError(code, said, status=status)
    log.warning("S3 refused %s: %d %s %s", error.operation_name, status, code, without_queries(said))
    if code in _BUSY or status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        message = "the registry's bucket asks to slow down"
        return StorageError("SlowDown", message, status=503, retry_after=_RETRY_AFTER)
    full = status == HTTPStatus.INSUFFICIENT_STORAGE
    return StorageError(code, f"the registry's bucket: {code}: {said}", status=507 if full else 500)
