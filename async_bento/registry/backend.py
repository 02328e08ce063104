"""The storage of a registry: records in a database, and bytes in a directory or a bucket.

This module imports SQLAlchemy, and is imported itself when a registry starts.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads
from async_bento.errors import ConfigError
from async_bento.registry.blobs.disk import DiskBlobs
from async_bento.registry.blobs.disk_endpoints import DiskEndpoints
from async_bento.registry.blobs.old_layout import adopt_objects
from async_bento.registry.blobs.presign import Presigner
from async_bento.registry.cleanup import Cleanup
from async_bento.registry.directory import BLOBS, DATABASE, Directory, open_directory
from async_bento.registry.metrics import Metrics
from async_bento.registry.records.audit import AuditLog
from async_bento.registry.records.blobs import BlobRecords
from async_bento.registry.records.database import Database, parse_database_url, sqlite_url
from async_bento.registry.records.retention import RetentionRecords
from async_bento.registry.records.sql import Records
from async_bento.registry.records.tokens import TokenRecords
from async_bento.registry.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from aiohttp import web

    from async_bento.registry.blobs.base import Blobs
    from async_bento.registry.retention import RetentionPolicy
    from async_bento.registry.s3_bucket import S3Bucket


_URL_EXPIRY = 3600.0
"""Of a registry that another process may run, in seconds."""


@dataclass(frozen=True)
class OpenBackend:
    """The open data of a registry; `routes` serve its presigned URLs where the registry itself does."""

    records: Records
    blob_records: BlobRecords
    blobs: Blobs
    uploads: Uploads
    cleanup: Cleanup
    metrics: Metrics
    retention: RetentionRecords
    tokens: TokenRecords
    audit: AuditLog
    routes: Sequence[web.AbstractRouteDef] = field(default_factory=tuple)

    async def check(self) -> None:
        """Raise `RegistryError` or `OSError` while the database or the storage is away."""
        await self.records.count_items()
        await self.blobs.check()


@dataclass(frozen=True)
class Backend:
    """The places of a registry's data; without `database` and `bucket`, the directory holds all. Sizes are in bytes."""

    root: Path | None
    database: str | None = field(repr=False)
    bucket: S3Bucket | None
    min_part_size: int
    max_put_size: int
    min_free: int = 0
    immutable: bool = False

    @asynccontextmanager
    async def open(self, *, url_expiry: float, policy: RetentionPolicy | None = None) -> AsyncGenerator[OpenBackend]:
        """Open all places; raise `ConfigError` if one is unusable.

        URLs expire after `url_expiry` seconds, and the cleanup deletes what the policy does not keep.
        """
        async with AsyncExitStack() as stack:
            try:
                directory = None
                if self.root is not None:
                    directory = await stack.enter_async_context(open_directory(self.root))
                records = await self._open_records(stack, directory)
                blob_records = BlobRecords(records.database)
                blobs, routes = await self._open_blobs(stack, directory, records, blob_records, url_expiry)
            except OSError as error:
                raise ConfigError(f"cannot use {self.root}: {error.strerror or error}") from error
            # Outside of the `try`: an OSError of the block is not about the directory.
            yield assemble(records, blob_records, blobs, url_expiry, policy, routes=routes)

    @asynccontextmanager
    async def attached(self) -> AsyncGenerator[OpenBackend]:
        """Open the places of a registry that exists, also while it runs; raise `ConfigError` if it does not exist."""
        async with AsyncExitStack() as stack:
            try:
                directory, records = await self._attached_records(stack)
                blob_records = BlobRecords(records.database)
                blobs, _ = await self._open_blobs(stack, directory, records, blob_records, _URL_EXPIRY)
            except OSError as error:
                raise ConfigError(f"cannot use {self.root}: {error.strerror or error}") from error
            yield assemble(records, blob_records, blobs, _URL_EXPIRY)

    @asynccontextmanager
    async def attached_database(self) -> AsyncGenerator[Database]:
        """Open no more than the database; see `attached`."""
        async with AsyncExitStack() as stack:
            try:
                _, records = await self._attached_records(stack)
            except OSError as error:
                raise ConfigError(f"cannot use {self.root}: {error.strerror or error}") from error
            yield records.database

    async def _attached_records(self, stack: AsyncExitStack) -> tuple[Directory | None, Records]:
        threads = Threads(1)
        stack.callback(threads.close)
        if self.root is not None and not self.database and not await threads.run((self.root / DATABASE).exists):
            raise ConfigError(f"cannot use {self.root}: it holds no registry. Pass the directory of one.")
        directory = None if self.root is None else Directory(self.root, threads)
        return directory, await self._open_records(stack, directory)

    async def _open_records(self, stack: AsyncExitStack, directory: Directory | None) -> Records:
        if self.database is not None:
            url = parse_database_url(self.database)
        else:
            assert directory is not None
            # SQLite gives its other files the mode of this one.
            url = sqlite_url(await directory.private_file(DATABASE))
        database = Database(url)
        stack.push_async_callback(database.close)
        await database.open()
        return Records(database, immutable=self.immutable)

    async def _open_blobs(
        self,
        stack: AsyncExitStack,
        directory: Directory | None,
        records: Records,
        blob_records: BlobRecords,
        url_expiry: float,
    ) -> tuple[Blobs, Sequence[web.AbstractRouteDef]]:
        if self.bucket is not None:
            return await stack.enter_async_context(self.bucket.open(records, blob_records, url_expiry=url_expiry)), ()
        assert directory is not None
        presigner = Presigner((await directory.signing_key()).encode(), url_expiry)
        root = await directory.private_directory(BLOBS)
        await adopt_objects(root, records, blob_records)
        blobs = DiskBlobs(root, presigner, min_part_size=self.min_part_size, min_free=self.min_free)
        stack.callback(blobs.close)
        return blobs, DiskEndpoints(blobs, blob_records, max_put_size=self.max_put_size).routes()


def assemble(
    records: Records,
    blob_records: BlobRecords,
    blobs: Blobs,
    url_expiry: float,
    policy: RetentionPolicy | None = None,
    *,
    routes: Sequence[web.AbstractRouteDef] = (),
) -> OpenBackend:
    """Put together what works on the records and the bytes."""
    uploads, retention = Uploads(records, blob_records, blobs), RetentionRecords(records.database)
    audit = AuditLog(records.database)
    kept = None if policy is None else (retention, policy)
    cleanup = Cleanup(uploads, blob_records, blobs, audit, url_expiry=url_expiry, retention=kept)
    metrics = Metrics(records, blob_records)
    tokens = TokenRecords(records.database)
    return OpenBackend(records, blob_records, blobs, uploads, cleanup, metrics, retention, tokens, audit, routes)
