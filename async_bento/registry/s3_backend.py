"""A registry's bucket: records and bytes in one S3 bucket, for any number of copies of the registry.

    <prefix>registry.json                     which form all of this has
    <prefix>api_token                         what clients must send
    <prefix>repositories/<kind>/<name>.json   see `s3_records.py`
    <prefix>items/<kind>/<name>/<version>.json
    <prefix>blobs/<kind>/<name>/<version>.tar see `s3_blobs.py`

aiobotocore is imported when a bucket is opened, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads
from async_bento._core.urls import check_endpoint
from async_bento.errors import ConfigError
from async_bento.registry.backend import Opened, new_secret
from async_bento.registry.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento.registry.blobs.bucket import Bucket
    from async_bento.registry.blobs.s3 import S3Blobs

_FORMAT = 1

_LONGEST_EXPIRY = 7 * 24 * 3600
"""What SigV4 allows, in seconds."""

_SECONDS_BETWEEN_SWEEPS = 3600.0

_RACERS = 4
"""How many race in the probe. SeaweedFS 4.16 let three of three win (its issue 8800)."""

log = logging.getLogger("async_bento.registry")


class S3Bucket:
    """A bucket on S3, or on anything that speaks it: `LocalRegistry(S3Bucket("bentos", endpoint="https://…"))`.

    Credentials and region come the usual AWS way: variables, `~/.aws`, the role of a container or machine. Needs
    `pip install "async-bento[s3]"`, and a bucket that honours conditional writes, which is tried at the start.

    Args:
        bucket: Its name. It is not created.
        endpoint: Where to find it, when it is not at AWS. URLs have the bucket's name in their path then, not in their
            host.
        public_endpoint: Where clients find it, when that is elsewhere: what presigned URLs begin with.
        prefix: What every key begins with, so that several registries may share a bucket; a slash is added.

    Raises:
        ConfigError: An argument does not fit.
    """

    def __init__(
        self, bucket: str, *, endpoint: str | None = None, public_endpoint: str | None = None, prefix: str = ""
    ) -> None:
        if not bucket:
            raise ConfigError("the bucket needs a name")
        self._bucket = bucket
        self._endpoint = endpoint and check_endpoint(endpoint)
        self._public_endpoint = public_endpoint and check_endpoint(public_endpoint)
        prefix = prefix.strip("/")
        self._prefix = prefix and f"{prefix}/"

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}" + (f" at {self._endpoint}" if self._endpoint else "")

    @asynccontextmanager
    async def open(self, *, api_token: str | None, url_expiry: float) -> AsyncGenerator[Opened]:
        """See `Backend`."""
        if url_expiry > _LONGEST_EXPIRY:
            raise ConfigError(f"url_expiry={url_expiry:g}: S3 signs no URL for more than {_LONGEST_EXPIRY} seconds")
        await _import_aiobotocore()
        from async_bento.registry.blobs.bucket import Bucket, connected
        from async_bento.registry.blobs.s3 import S3Blobs
        from async_bento.registry.records.s3 import S3Records

        async with AsyncExitStack() as stack:
            client, presigning = await stack.enter_async_context(connected(self._endpoint, self._public_endpoint))
            bucket = Bucket(client, self._bucket, self._prefix)
            try:
                await bucket.check()
                await self._check_format(bucket)
                await self._check_conditions(bucket)
                if api_token is None:
                    await bucket.create("api_token", new_secret().encode())  # or another copy has, before
                    kept = await bucket.read("api_token")
                    api_token = kept.body.decode().strip() if kept else ""
            except RegistryError as error:
                raise ConfigError(f"cannot use {self}: {error.message}") from error
            if not api_token:
                raise ConfigError(f"cannot use {self}: its object api_token is empty; delete it to have a new one made")
            blobs = S3Blobs(bucket, presigning, url_expiry=max(1, round(url_expiry)))
            sweeping = asyncio.create_task(_sweep_now_and_then(blobs))
            stack.push_async_callback(_end, sweeping)
            yield Opened(S3Records(bucket), blobs, api_token)

    async def _check_format(self, bucket: Bucket) -> None:
        await bucket.create("registry.json", json.dumps({"format": _FORMAT}).encode())
        kept = await bucket.read("registry.json")
        try:
            found = json.loads(kept.body)["format"] if kept else 0
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"cannot use {self}: its registry.json is none of async-bento's") from error
        if found != _FORMAT:
            raise ConfigError(f"{self} was written by a newer async-bento (its format {found})")

    async def _check_conditions(self, bucket: Bucket) -> None:
        """Refuse a bucket in which two copies of a registry would overwrite each other, without a word."""
        key = f"probes/{secrets.token_hex(16)}"
        try:
            created = await asyncio.gather(*(bucket.create(key, b"%d" % number) for number in range(_RACERS)))
            found = await bucket.read(key)
            etag = found.etag if found else ""
            replaced = await asyncio.gather(
                *(bucket.replace(key, b"again %d" % number, etag) for number in range(_RACERS))
            )
        finally:
            await bucket.delete(key)
        for condition, winners in (("If-None-Match: *", sum(created)), ("If-Match", sum(replaced))):
            if winners != 1:
                raise ConfigError(
                    f"cannot use {self}: it does not honour conditional writes ({condition}: {winners} of {_RACERS} "
                    "racing PUTs won, where one must), so copies of the registry would overwrite each other's records"
                )


async def _import_aiobotocore() -> None:
    """Import it in a thread, since there is much of it to be read."""
    threads = Threads(1)
    try:
        await threads.run(import_module, "async_bento.registry.blobs.bucket")
    except ModuleNotFoundError as error:
        raise ConfigError(f'a registry on S3 needs more: pip install "async-bento[s3]" ({error})') from error
    finally:
        threads.close()


async def _sweep_now_and_then(blobs: S3Blobs) -> None:
    while True:
        try:
            await blobs.sweep()
        except RegistryError as error:
            log.warning("uploads that were left over could not be aborted: %s", error.message)
        await asyncio.sleep(_SECONDS_BETWEEN_SWEEPS)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
