"""The bucket of a registry, which holds the bytes.

    <prefix>registry.json                               the format version of this layout
    <prefix>blobs/<items>/<name>/<version>/<id>.tar     see `blobs/s3.py`; `<items>` is `bentos` or `models`
    <prefix>blobs/<items>/<name>/<version>.tar          an object of format 1

aiobotocore is imported when a bucket is opened, since the extra may not be installed.
"""

from __future__ import annotations

import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from async_bento._core.concurrency import run_in_new_thread
from async_bento._core.urls import check_endpoint
from async_bento.errors import ConfigError
from async_bento.registry.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento.registry.blobs.bucket import Bucket
    from async_bento.registry.blobs.s3 import S3Blobs
    from async_bento.registry.records.blobs import BlobRecords
    from async_bento.registry.records.sql import Records

_FORMAT = 2
"""Format 1 had the records in the bucket, too; see `records/bucket_records.py`."""

_MAX_URL_EXPIRY = 7 * 24 * 3600
"""SigV4's limit, in seconds."""

log = logging.getLogger(__package__)


class S3Bucket:
    """A bucket on S3 or a compatible server, in which a `LocalRegistry` keeps the bytes of bentos and models.

    Credentials and region come from the usual AWS sources: environment variables, `~/.aws`, or the role of the
    container or machine. The bucket must exist. Requires `pip install "async-bento[s3]"`.

    Example:
        ```python
        bucket = S3Bucket("my-bucket", endpoint="http://127.0.0.1:9000", prefix="team")
        async with LocalRegistry("/srv/bentos", bucket=bucket) as registry: ...
        ```

    Args:
        bucket: The name of the bucket.
        endpoint: The URL of the S3 server; None for AWS. With an endpoint, URLs name the bucket in their path instead
            of their host.
        public_endpoint: The URL of the S3 server as clients reach it, if it differs from `endpoint`; presigned URLs
            begin with it.
        prefix: The prefix of all keys, so that several registries may share a bucket; a slash is appended.

    Raises:
        ConfigError: The name is empty, or an endpoint is not a URL.
    """

    def __init__(
        self, bucket: str, *, endpoint: str | None = None, public_endpoint: str | None = None, prefix: str = ""
    ) -> None:
        if not bucket:
            raise ConfigError("invalid S3 bucket: its name is empty. Pass the name of an existing bucket.")
        self._bucket = bucket
        self._endpoint = endpoint and check_endpoint(endpoint)
        self._public_endpoint = public_endpoint and check_endpoint(public_endpoint)
        prefix = prefix.strip("/")
        self._prefix = prefix and f"{prefix}/"

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}" + (f" (at {self._endpoint})" if self._endpoint else "")

    @asynccontextmanager
    async def open(self, records: Records, blob_records: BlobRecords, *, url_expiry: float) -> AsyncGenerator[S3Blobs]:
        """Open the bucket; `LocalRegistry.start` calls this.

        Args:
            records: The records of items, to which those of a bucket of format 1 are copied.
            blob_records: The records of bytes.
            url_expiry: The lifetime of presigned URLs in seconds.

        Yields:
            The blobs.

        Raises:
            ConfigError: aiobotocore or credentials are missing, or the bucket is inaccessible.
        """
        if url_expiry > _MAX_URL_EXPIRY:
            raise ConfigError(
                f"invalid url_expiry {url_expiry:g}: S3 signs URLs for at most {_MAX_URL_EXPIRY} seconds. Use less."
            )
        await _import_aiobotocore()
        from async_bento.registry.blobs.bucket import Bucket, connect
        from async_bento.registry.blobs.s3 import S3Blobs

        async with AsyncExitStack() as stack:
            client, presigning = await stack.enter_async_context(connect(self._endpoint, self._public_endpoint))
            bucket = Bucket(client, self._bucket, self._prefix)
            try:
                await bucket.check()
                await self._prepare(bucket, records, blob_records)
            except RegistryError as error:
                raise ConfigError(f"cannot use {self}: {error.message}") from error
            yield S3Blobs(bucket, presigning, url_expiry=max(1, round(url_expiry)))

    async def _prepare(self, bucket: Bucket, records: Records, blob_records: BlobRecords) -> None:
        """Check the bucket's format and database; copy the records of format 1 and its token into the database."""
        stored = await bucket.read("registry.json")
        try:
            layout = json.loads(stored) if stored else {"format": _FORMAT}
            found = int(layout["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"cannot use {self}: async-bento did not write its registry.json. Use another prefix."
            ) from error
        if found > _FORMAT:
            raise ConfigError(f"cannot use {self}: a newer async-bento wrote it (format {found}). Upgrade async-bento.")
        from async_bento.registry.records.settings import shared_id

        database_id = await shared_id(records.database, "database_id")
        if layout.get("database", database_id) != database_id:  # its cleanup would remove the other's bytes
            raise ConfigError(
                f"cannot use {self}: it holds the bytes of another database. Use that database, or another prefix."
            )
        if found < _FORMAT:
            from async_bento.registry.records.bucket_records import adopt_objects, copy_records, copy_token

            log.info("copying the records of %s into the database", self)
            await copy_token(bucket, records.database)
            await copy_records(bucket, records.database)
            await adopt_objects(bucket, records, blob_records)
        # Last: a start that is killed before copies again.
        if stored is None or found < _FORMAT:
            await bucket.write("registry.json", json.dumps({"format": _FORMAT, "database": database_id}).encode())


async def _import_aiobotocore() -> None:
    """Import aiobotocore in a thread, since it reads many files."""
    try:
        await run_in_new_thread(import_module, "async_bento.registry.blobs.bucket")
    except ModuleNotFoundError as error:
        raise ConfigError(f'cannot use S3: {error}. Run: pip install "async-bento[s3]"') from error
