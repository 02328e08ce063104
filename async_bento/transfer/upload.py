"""A tar's way to the registry: through it, by one presigned PUT, or by a presigned multipart upload.

The steps are those of BentoML 1.4.39 (`bentoml/_internal/cloud/bento.py`), with its faults mended: no tar is written,
a part that failed is never left out of the completed upload, and each try has a URL of its own.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import anyio

from async_bento._core.concurrency import for_each, shielded
from async_bento._core.retry import with_retries
from async_bento._core.s3 import MAX_PARTS, MAX_PUT_SIZE, MIN_PART_SIZE, bare_etag, etag_of_parts
from async_bento.config import MiB
from async_bento.errors import APIError, APIResponseError, APIStatusError, BentoError, IntegrityError, PartError
from async_bento.rest.request_schemas import CompletePartSchema, FinishUploadSchema
from async_bento.rest.responses import is_not_found
from async_bento.transfer.http import TarBody, get, put
from async_bento.transfer.journal import Journal, Recorded, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Concatenate

    from pydantic import SecretStr
    from typing_extensions import ParamSpec

    from async_bento.progress.events import Progress
    from async_bento.rest.routes import AnyRoutes
    from async_bento.rest.schemas import ItemSchema
    from async_bento.rest.transport import Target
    from async_bento.transfer.http import Transport
    from async_bento.transfer.tar.plan import TarPlan

    P = ParamSpec("P")

T = TypeVar("T")

logger = logging.getLogger(__name__)

_GONE = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE})

SECONDS_TO_REPORT = 5.0
"""How long a failed push may take to say so to the registry before the error is raised."""


@dataclass(frozen=True)
class Uploaded:
    """What an upload took.

    Attributes:
        bytes_sent: Bytes of the tar that were sent, each counted once.
        parts: Requests they were sent in.
        resumed: Whether an interrupted upload was gone on with; the parts it had sent are not counted.
    """

    bytes_sent: int
    parts: int
    resumed: bool = False


def choose_part_size(size: int, wanted: int, threads: int) -> int:
    """Cut a tar so that S3 takes it, and no connection is idle while others send the last parts.

    Args:
        size: Bytes of the tar.
        wanted: Bytes of a part, if nothing stands against it.
        threads: Parts in flight.

    Returns:
        Bytes of a part, in whole MiB: as much as makes whole rounds of `threads` parts, each as large as wanted or
        smaller; as much more as 10,000 parts need; never under 5 MiB.
    """
    rounds = -(-size // (wanted * threads))
    needed = max(-(-size // (rounds * threads)), -(-size // MAX_PARTS))
    return max(-(-needed // MiB) * MiB, MIN_PART_SIZE)


async def upload(
    plan: TarPlan,
    routes: AnyRoutes,
    item: ItemSchema,
    name: str,
    transport: Transport,
    progress: Progress,
    *,
    threads: int,
    journal: Journal | None = None,
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
        journal: Where to note the parts that have arrived, and what an earlier push has left; None for nowhere.

    Returns:
        What it took.

    Raises:
        BentoError: It failed; the registry has been told, unless it could not be. The journal is kept.
    """
    job = _Upload(plan, routes, name, item.version, transport, progress, journal)
    try:
        strategy, presigned_url = item.transmission_strategy, None
        if strategy is None:
            presigned_url = (await routes.presign_upload(name, item.version)).presigned_upload_url
            strategy = "presigned_url" if presigned_url.get_secret_value() else "proxy"
        await routes.start_upload(name, item.version)
        progress.enter("transferring", bytes_total=plan.size)
        if strategy == "proxy":
            return await job.through_registry()  # which notes the success itself
        if presigned_url is not None and plan.size <= MAX_PUT_SIZE:
            uploaded = await job.by_one_put(presigned_url)
        else:
            uploaded = await job.by_parts(threads)
        progress.enter("finishing")
        await routes.finish_upload(name, item.version, FinishUploadSchema(status="success"))
    except BaseException as error:
        await shielded(report_failure(routes, name, item.version, error))
        raise
    await job.keep_books(Journal.remove)
    return uploaded


async def report_failure(routes: AnyRoutes, name: str, version: str, error: BaseException) -> None:
    """Tell the registry that a push failed; what it failed with goes before whatever goes wrong with that.

    Args:
        routes: The routes of its kind.
        name: Its repository.
        version: Its version.
        error: What it failed with.
    """
    if isinstance(error, asyncio.CancelledError):
        reason = "cancelled"
    else:
        reason = str(error).partition("\n")[0] if isinstance(error, BentoError) else type(error).__name__
    # The name of a file need not be text, and JSON is.
    outcome = FinishUploadSchema(status="failed", reason=reason.encode(errors="replace").decode())
    try:
        with anyio.fail_after(SECONDS_TO_REPORT):
            await routes.finish_upload(name, version, outcome)
    except Exception as failure:  # noqa: BLE001 - whatever it is, what the push failed with is raised
        if not (isinstance(failure, APIStatusError) and is_not_found(failure)):  # it was cancelled before it was there
            why = str(failure) or type(failure).__name__
            logger.warning("The registry could not be told that the push of %s:%s failed: %s", name, version, why)


@dataclass(frozen=True)
class _Multipart:
    """A multipart upload.

    Attributes:
        upload_id: What the storage calls it.
        part_size: The size of each part but the last, in bytes.
        etags: The ETags of the parts that have arrived, by their numbers.
    """

    upload_id: str
    part_size: int
    etags: dict[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True)
class _Upload:
    plan: TarPlan
    routes: AnyRoutes
    name: str
    version: str
    transport: Transport
    progress: Progress
    journal: Journal | None

    async def through_registry(self) -> Uploaded:
        async def address() -> Target:
            return self.routes.upload_target(self.name, self.version)

        await self._send(address, 0, self.plan.size)
        return Uploaded(self.plan.size, 1)

    async def by_one_put(self, presigned_url: SecretStr) -> Uploaded:
        urls = [presigned_url]  # the first try has the URL that was asked for already

        async def address() -> Target:
            if urls:
                return self.routes.session.storage_target(urls.pop())
            return self._where_to(await self.routes.presign_upload(self.name, self.version))

        await self._send(address, 0, self.plan.size)
        return Uploaded(self.plan.size, 1)

    async def by_parts(self, threads: int) -> Uploaded:
        part_size = choose_part_size(self.plan.size, self.transport.config.transfer.part_size, threads)
        if self.journal is None:
            return await self._send_parts(_Multipart(await self._begin(), part_size), threads)
        fingerprint = await self.transport.threads.run(self.plan.fingerprint)
        source = Source(
            endpoint=self.routes.session.endpoint,
            kind=self.routes.kind,
            tag=self._tag,
            part_size=part_size,
            fingerprint=fingerprint,
        )
        if left := await self._left_by_earlier(source):
            await self.keep_books(Journal.begin, left)  # without the line that the crash cut short
            try:
                return await self._send_parts(_Multipart(left.upload_id, part_size, dict(left.etags)), threads)
            except BentoError as error:
                if not _is_upload_gone(error):
                    raise
                self._start_afresh("the storage knows nothing of it any more")
        upload_id = await self._begin()
        await self.keep_books(Journal.begin, Recorded(source, upload_id))
        return await self._send_parts(_Multipart(upload_id, part_size), threads)

    async def _begin(self) -> str:
        upload_id = (await self.routes.start_multipart_upload(self.name, self.version)).upload_id
        if not upload_id:
            raise APIResponseError(
                f"the registry began no multipart upload of {self._tag}: its upload_id is empty", field="upload_id"
            )
        return upload_id

    async def _left_by_earlier(self, source: Source) -> Recorded | None:
        """What an earlier push of the same has left to go on with."""
        left = await self.keep_books(Journal.read)
        if left is None:
            return None
        if why := source.difference(left.source):
            self._start_afresh(why)
            return None
        return left

    def _start_afresh(self, why: str) -> None:
        self.progress.restart(f", since an interrupted push is of no use: {why}")

    async def keep_books(
        self, operation: Callable[Concatenate[Journal, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Do something with the journal, if there is one. It only spares time: where it fails, the push goes on."""
        if self.journal is None:
            return None
        try:
            return await self.transport.threads.run(operation, self.journal, *args, **kwargs)
        except OSError as error:
            logger.warning("The push of %s could not be resumed: %s: %s", self._tag, error.strerror, error.filename)
            return None

    async def _send_parts(self, multipart: _Multipart, threads: int) -> Uploaded:
        """Send the parts that are missing, and put all of them together."""
        size, part_size, etags = self.plan.size, multipart.part_size, multipart.etags
        numbers = range(1, -(-size // part_size) + 1)
        missing = [number for number in numbers if number not in etags]
        resumed = len(missing) < len(numbers)
        sizes = {number: min(part_size, size - (number - 1) * part_size) for number in numbers}
        to_send = sum(sizes[number] for number in missing)
        self.progress.parts_done, self.progress.parts_total = len(numbers) - len(missing), len(numbers)
        if resumed:
            self.progress.resume(size - to_send, size)

        # The URL of a part is asked for while an earlier part is sent: one for each worker, so that none grows old.
        upcoming = iter(missing[threads:])
        presigned: dict[int, asyncio.Task[Target]] = {}

        async def address(number: int) -> Target:
            early = presigned.pop(number, None)
            target = await (early or self._presign(multipart, number))
            if len(presigned) < threads and (later := next(upcoming, None)) is not None:
                presigned[later] = asyncio.create_task(self._presign(multipart, later))
            return target

        async def send_part(number: int) -> None:
            start = (number - 1) * part_size
            etags[number] = await self._send(
                partial(address, number),
                start,
                start + sizes[number],
                part_number=number,
                progress=lambda: len(etags),
            )
            self.progress.part_arrived()
            await self.keep_books(Journal.note, number, etags[number])

        try:
            await for_each(send_part, missing, min(threads, len(missing)))
        finally:
            for task in presigned.values():
                task.cancel()
            await shielded(asyncio.gather(*presigned.values(), return_exceptions=True))
        self.progress.enter("finishing")
        await self._complete(multipart.upload_id, [etags[number] for number in numbers])
        return Uploaded(to_send, len(missing), resumed)

    async def _complete(self, upload_id: str, etags: list[str]) -> None:
        """Let the storage put the parts together. If it fails, it is asked: an answer that was lost is no failure."""
        parts = [CompletePartSchema(part_number=number, etag=etag) for number, etag in enumerate(etags, start=1)]
        try:
            await self.routes.complete_multipart_upload(self.name, self.version, upload_id, parts)
        except APIError:
            if not await self._is_stored(etags):
                raise

    async def _is_stored(self, etags: list[str]) -> bool:
        """Whether the storage has the whole: as S3 has it, its ETag is the MD5 of the MD5s of its parts."""
        expected = etag_of_parts(etags)
        if expected is None:
            return False
        with suppress(BentoError):
            presigned = await self.routes.presign_download(self.name, self.version)
            address = self.routes.session.storage_target(presigned.presigned_download_url)
            async with get(address, self.transport.config, 0, 1) as received:
                return bare_etag(received.etag or "") == bare_etag(expected) and received.total == self.plan.size
        return False

    async def _presign(self, multipart: _Multipart, part_number: int) -> Target:
        return self._where_to(await self.routes.presign_part(self.name, self.version, multipart.upload_id, part_number))

    def _where_to(self, presigned: ItemSchema) -> Target:
        if not presigned.presigned_upload_url.get_secret_value():
            raise APIResponseError(f"the registry presigned no upload of {self._tag}", field="presigned_upload_url")
        return self.routes.session.storage_target(presigned.presigned_upload_url)

    async def _send(
        self,
        address: Callable[[], Awaitable[Target]],
        start: int,
        stop: int,
        *,
        part_number: int | None = None,
        progress: Callable[[], int] = lambda: 0,
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
                    digest=transport.config.transfer.verify and target.credentials is None,
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

        return await with_retries(transport.config.retry, once, progress=progress, retrying=self.progress.retry)

    @property
    def _tag(self) -> str:
        return f"{self.name}:{self.version}"


def _is_upload_gone(error: BentoError) -> bool:
    """Whether a storage knows nothing of a multipart upload, or a registry says that it does not.

    The storage's own word is 404 NoSuchUpload; what a registry makes of that differs.
    """
    if isinstance(error, APIStatusError) and "NoSuchUpload" in error.server_message:
        return True
    return isinstance(error, (APIStatusError, PartError)) and error.status in _GONE
