"""A tar's way to the registry: through it, by one presigned PUT, or by a presigned multipart upload.

The steps are those of BentoML 1.4.39 (`bentoml/_internal/cloud/bento.py`), with its faults mended: no tar is written,
a part that failed is never left out of the completed upload, and each try has a URL of its own.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from async_bento.concurrency import finish, for_each
from async_bento.config import GiB, MiB
from async_bento.errors import APIResponseError, BentoError, IntegrityError
from async_bento.retry import with_retries
from async_bento.transfer.body import TarBody
from async_bento.transfer.http import put
from async_bento.wire.schemas import CompletePartSchema, FinishUploadSchema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pydantic import SecretStr

    from async_bento.archive.plan import TarPlan
    from async_bento.progress import Progress
    from async_bento.transfer.http import Transport
    from async_bento.wire.address import Address
    from async_bento.wire.routes import AnyRoutes
    from async_bento.wire.schemas import ItemSchema

logger = logging.getLogger(__name__)

LARGEST_PUT = 5 * GiB
"""S3 refuses a single PUT above it with EntityTooLarge."""

MOST_PARTS = 10_000
"""S3's limit of parts of one upload."""

SMALLEST_PART = 5 * MiB
"""S3's limit for every part but the last."""

SECONDS_TO_REPORT = 5.0
"""How long a failed push may take to say so to the registry before the error is raised."""


@dataclass(frozen=True)
class Uploaded:
    """What an upload took.

    Attributes:
        bytes_sent: Bytes of the tar that were sent, each counted once.
        parts: Requests they were sent in.
    """

    bytes_sent: int
    parts: int


def choose_part_size(size: int, wanted: int) -> int:
    """Cut a tar so that S3 takes it.

    Args:
        size: Bytes of the tar.
        wanted: Bytes of a part, if nothing stands against it.

    Returns:
        Bytes of a part: as wanted, or as much more, in whole MiB, as 10,000 parts need; never under 5 MiB.
    """
    needed = -(-size // MOST_PARTS)
    return max(wanted, -(-needed // MiB) * MiB, SMALLEST_PART)


async def upload(
    plan: TarPlan,
    routes: AnyRoutes,
    item: ItemSchema,
    name: str,
    transport: Transport,
    progress: Progress,
    *,
    threads: int,
) -> Uploaded:
    """Send a tar the way the registry wants it, and tell the registry how that ended.

    Args:
        plan: The tar.
        routes: The routes of its kind.
        item: Its record, just created or updated.
        name: Its repository.
        transport: What all transfers share.
        progress: Where to count.
        threads: Parts in flight at most.

    Returns:
        What it took.

    Raises:
        BentoError: It failed; the registry has been told, unless it could not be.
    """
    job = _Upload(plan, routes, name, item.version, transport, progress)
    try:
        strategy, presigned_url = item.transmission_strategy, None
        if strategy is None:
            presigned_url = (await routes.presign_upload(name, item.version)).presigned_upload_url
            strategy = "presigned_url" if presigned_url.get_secret_value() else "proxy"
        await routes.start_upload(name, item.version)
        progress.enter("transferring", bytes_total=plan.size)
        if strategy == "proxy":
            return await job.through_registry()  # which notes the success itself
        if presigned_url is not None and plan.size <= LARGEST_PUT:
            uploaded = await job.by_one_put(presigned_url)
        else:
            uploaded = await job.by_parts(threads)
        progress.enter("finishing")
        await routes.finish_upload(name, item.version, FinishUploadSchema(status="success"))
    except BaseException as error:
        await finish(job.report(error))
        raise
    return uploaded


@dataclass(frozen=True)
class _Upload:
    plan: TarPlan
    routes: AnyRoutes
    name: str
    version: str
    transport: Transport
    progress: Progress

    async def through_registry(self) -> Uploaded:
        async def address() -> Address:
            return self.routes.upload_address(self.name, self.version)

        await self._send(address, 0, self.plan.size)
        return Uploaded(self.plan.size, 1)

    async def by_one_put(self, presigned_url: SecretStr) -> Uploaded:
        urls = [presigned_url]  # the first try has the URL that was asked for already

        async def address() -> Address:
            if urls:
                return self.routes.client.storage_address(urls.pop())
            return self._where_to(await self.routes.presign_upload(self.name, self.version))

        await self._send(address, 0, self.plan.size)
        return Uploaded(self.plan.size, 1)

    async def by_parts(self, threads: int) -> Uploaded:
        upload_id = (await self.routes.start_multipart_upload(self.name, self.version)).upload_id
        if not upload_id:
            raise APIResponseError(
                f"the registry began no multipart upload of {self.name}:{self.version}: its upload_id is empty",
                field="upload_id",
            )
        part_size = choose_part_size(self.plan.size, self.transport.config.transfer.part_size)
        starts = range(0, self.plan.size, part_size)
        parts: dict[int, CompletePartSchema] = {}

        async def send_part(numbered: tuple[int, int]) -> None:
            part_number, start = numbered
            parts[part_number] = await self._send_part(upload_id, part_number, start, part_size)

        await for_each(send_part, enumerate(starts, start=1), min(threads, len(starts)))
        in_order = [parts[part_number] for part_number in range(1, len(starts) + 1)]
        self.progress.enter("finishing")
        await self.routes.complete_multipart_upload(self.name, self.version, upload_id, in_order)
        return Uploaded(self.plan.size, len(in_order))

    async def _send_part(self, upload_id: str, part_number: int, start: int, part_size: int) -> CompletePartSchema:
        async def address() -> Address:
            return self._where_to(await self.routes.presign_part(self.name, self.version, upload_id, part_number))

        stop = min(start + part_size, self.plan.size)
        etag = await self._send(address, start, stop, part_number=part_number)
        return CompletePartSchema(part_number=part_number, etag=etag)

    def _where_to(self, presigned: ItemSchema) -> Address:
        if not presigned.presigned_upload_url.get_secret_value():
            raise APIResponseError(
                f"the registry presigned no upload of {self.name}:{self.version}", field="presigned_upload_url"
            )
        return self.routes.client.storage_address(presigned.presigned_upload_url)

    async def _send(
        self, address: Callable[[], Awaitable[Address]], start: int, stop: int, *, part_number: int | None = None
    ) -> str:
        """Send a range until it has arrived; each try asks for its address anew, so none meets an expired URL twice."""
        transport = self.transport

        async def once() -> str:
            async with transport.slots:
                target = await address()
                body = TarBody(
                    self.plan,
                    start,
                    stop,
                    threads=transport.threads,
                    io_chunk=transport.config.transfer.io_chunk,
                    digest=transport.config.transfer.verify and target.token_source is None,
                    moved=self.progress.advance,
                )
                try:
                    etag = await put(target, body, transport.config, part_number=part_number)
                    if part_number is not None and not etag:
                        raise IntegrityError(f"{target} (part {part_number}): the storage gave no ETag")
                except BaseException:
                    body.rewind()
                    raise
                return etag or ""

        return await with_retries(transport.config.retry, once)

    async def report(self, error: BaseException) -> None:
        """Tell the registry that it failed; what it failed with goes before whatever goes wrong with that."""
        if isinstance(error, asyncio.CancelledError):
            reason = "cancelled"
        else:
            reason = str(error).partition("\n")[0] if isinstance(error, BentoError) else type(error).__name__
        # The name of a file need not be text, and JSON is.
        outcome = FinishUploadSchema(status="failed", reason=reason.encode(errors="replace").decode())
        try:
            with anyio.fail_after(SECONDS_TO_REPORT):
                await self.routes.finish_upload(self.name, self.version, outcome)
        except Exception:
            tag = f"{self.name}:{self.version}"
            logger.warning("The registry could not be told that the push of %s failed", tag, exc_info=True)
