"""Upload of a tar: through the registry, by one presigned PUT, or by a presigned multipart upload.

The steps are those of BentoML 1.4.39 (`bentoml/_internal/cloud/bento.py`), without its faults: no tar is written to
disk, no upload is completed with a part missing, and every attempt gets a presigned URL of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar, cast

import anyio

from async_bento._core.concurrency import gathered, shielded
from async_bento._core.retry import Retries
from async_bento._core.s3 import MAX_PARTS, MAX_PUT_SIZE, MIN_PART_SIZE
from async_bento.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    BentoError,
    PartError,
    ServerError,
    StalledError,
)
from async_bento.rest.request_schemas import FinishUploadSchema
from async_bento.rest.responses import is_not_found
from async_bento.rest.schemas import UPLOADED
from async_bento.transfer.fallback import (
    UnreachableError,
    check_reachable,
    remember_unreachable,
    wait_after_failure,
    with_both_causes,
)
from async_bento.transfer.http import put
from async_bento.transfer.journal import Journal, JournalEntries, Source
from async_bento.transfer.multipart import Multipart, UploadResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Concatenate, Literal

    from pydantic import SecretStr
    from typing_extensions import ParamSpec

    from async_bento._core.tag import Tag
    from async_bento.progress.events import Progress
    from async_bento.rest.routes import AnyRoutes
    from async_bento.rest.schemas import ItemSchema
    from async_bento.rest.transport import Target
    from async_bento.transfer.body import UploadBody
    from async_bento.transfer.http import TransferPool
    from async_bento.transfer.source import UploadSource

    P = ParamSpec("P")

T = TypeVar("T")

logger = logging.getLogger(__package__)

REPORT_TIMEOUT = 5.0
"""Seconds that reporting a failed push to the registry may take before the error is raised."""

_STATUS_CHECKS = 10  # a second in all, well within `REPORT_TIMEOUT`
_STATUS_INTERVAL = 0.1  # seconds
FRESH = 300.0  # seconds that a presigned URL may wait for its turn; a Yatai's live an hour

_GONE = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE})


@dataclass(frozen=True)
class Registration:
    """The record that the uploaded bytes belong to.

    Fields:
        record: The record as the registry has it.
        update: Makes an existing record describe the new bytes; called once they have arrived.
        is_whole: Whether the registry has all bytes that the existing record describes.
    """

    record: ItemSchema
    update: Callable[[], Awaitable[object]] | None = None
    is_whole: bool = False


class Upload:
    """The upload of one item, from `start_upload` to `finish_upload`; the journal makes it resumable."""

    def __init__(
        self, routes: AnyRoutes, tag: Tag, pool: TransferPool, progress: Progress, journal: Journal | None
    ) -> None:
        self.routes = routes
        self.pool = pool
        self.progress = progress
        self.tag = tag
        self._failed = f"cannot {progress.direction} {tag}"  # begins the messages of errors
        self.name, self.version = tag.name, tag.version or ""
        self._journal_file = journal
        self._replaced: ItemSchema | None = None  # the record of a whole item, whose bytes stay until they are replaced
        self._way: str | None = None  # of the bytes, once the upload is started: a transmission strategy
        self._storage_worked = False  # for an interrupted push of these files
        self.is_replaced = False  # whether the old bytes were replaced; also True where that is unknown

    async def send(self, source: UploadSource, registration: Registration, threads: int) -> UploadResult:
        """Send the tar as the registry asks for, update the record, and report the outcome to the registry.

        A whole item that is replaced stays whole if the upload fails before its bytes may have been replaced.
        """
        self._replaced = registration.record if registration.is_whole else None
        async with self.failure_reported():
            # Before the request: a start without a response may have changed the record, too.
            self._way, url = await self._strategy(registration.record)
            self.progress.enter("transferring", bytes_total=source.size)
            if self._way == "proxy":
                await self._start()
                result = await self._send_through_registry(source)  # the registry records the success itself
            else:
                try:
                    result = await self._send_to_storage(source, url, threads)
                except UnreachableError as error:
                    result = await self._fall_back(source, error)
            if registration.update is not None:
                await registration.update()
            if self._way != "proxy":
                self.progress.enter("finishing")
                await self._finish("success", "")
        await self.discard_journal()
        return result

    async def skip(self, registration: Registration, reason: str) -> UploadResult:
        """Update the record and finish without bytes."""
        self._replaced = registration.record if registration.is_whole else None
        async with self.failure_reported():
            if registration.update is not None:
                await registration.update()
            await self._finish("success", reason)
        return UploadResult(bytes_sent=0, parts=0)

    async def discard_journal(self) -> None:
        """Remove the journal: nothing is left to resume."""
        if self._journal_file is None:
            return
        try:
            await self.pool.threads.run(self._journal_file.remove)
        except OSError as error:
            logger.warning(
                "cannot remove the resume state of the %s of %s: %s: %s",
                self.progress.direction,
                self.tag,
                error.strerror,
                self._journal_file.path,
            )

    @asynccontextmanager
    async def failure_reported(self, errors: type[BaseException] = BaseException) -> AsyncGenerator[None]:
        """Report the outcome of a failed upload to the registry, so that no record waits for bytes for ever."""
        try:
            yield
        except errors as error:
            await shielded(self._report_failure(error))
            raise

    async def journal(
        self, operation: Callable[Concatenate[Journal, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Run a journal operation, if there is a journal. A journal only saves work: its errors never end a push."""
        if self._journal_file is None:
            return None
        try:
            # Also if cancelled while all threads are busy: the next push need not send what has arrived.
            return await shielded(self.pool.threads.run(operation, self._journal_file, *args, **kwargs))
        except OSError as error:
            logger.warning(
                "an interrupted %s of %s cannot be resumed: %s: %s",
                self.progress.direction,
                self.tag,
                error.strerror,
                self._journal_file.path,  # the error of a write names no file
            )
            return None

    async def put(
        self,
        body: UploadBody,
        target: Callable[[], Awaitable[Target]],
        *,
        part_number: int | None = None,
        completed: Callable[[], int] = lambda: 0,
    ) -> str:
        """PUT a body until it has arrived, and return its ETag. Every attempt asks for a target of its own."""
        retries = Retries(self.pool.config.retry, progress=completed, on_retry=self.progress.retry)
        while True:
            earlier_may_have_arrived = body.may_have_arrived
            place, presigned = await target(), time.monotonic()  # not retried here: API requests have their own retries
            if not self._storage_worked:
                check_reachable(place)
            try:
                async with self.pool.slot(place):
                    if time.monotonic() - presigned > FRESH:  # the wait for the slot may have taken minutes
                        place = await target()
                    place = replace(place, attempt=retries.failures + 1)
                    return await put(place, body, self.pool.config, part_number)
            except Exception as error:
                if _is_refusal(error):
                    body.may_have_arrived = earlier_may_have_arrived
                if not await wait_after_failure(retries, None if self._storage_worked else place, error):
                    raise

    def storage_target(self, presigned: ItemSchema) -> Target:
        """The target behind the presigned upload URL of a response."""
        if not presigned.presigned_upload_url.get_secret_value():
            raise APIResponseError(
                f"{self._failed}: the registry's response has no presigned upload URL",
                field="presigned_upload_url",
            )
        return self.routes.session.storage_target(presigned.presigned_upload_url)

    async def _strategy(self, record: ItemSchema) -> tuple[str, SecretStr | None]:
        if record.transmission_strategy is not None:
            return record.transmission_strategy, None
        # An old Yatai states no strategy, and sends no URL where it takes the bytes itself; as BentoML decides.
        url = (await self.routes.presign_upload(self.name, self.version)).presigned_upload_url
        return "presigned_url" if url.get_secret_value() else "proxy", url

    async def _send_to_storage(self, source: UploadSource, url: SecretStr | None, threads: int) -> UploadResult:
        if url is not None and source.size <= MAX_PUT_SIZE:
            await self._start()
            return await self._send_single(source, url)
        return await self._send_multipart(source, threads)

    async def _fall_back(self, source: UploadSource, unreachable: UnreachableError) -> UploadResult:
        """Send the tar through the registry, since this machine cannot reach the storage."""
        remember_unreachable(self.routes.session.storages, unreachable)
        self._way = "proxy"
        self.progress.restart(" through the registry: the storage cannot be reached")
        try:
            return await self._send_through_registry(source)
        except APIError as error:
            raise with_both_causes(str(unreachable), error) from error.__cause__

    async def _send_through_registry(self, source: UploadSource) -> UploadResult:
        async def target() -> Target:
            return self.routes.upload_target(self.name, self.version)

        # No digest: the registry's own ETag need not be an MD5 of the body.
        body = source.whole(self.progress, digest=False)
        try:
            await self._put_object(body, target)
        except StalledError as error:  # the record decides: it was `uploading` before
            record = await self.routes.get(self.name, self.version) if error.is_final else None
            if record is None or record.upload_status != UPLOADED:
                raise
        return UploadResult(source.size, 1)

    async def _send_single(self, source: UploadSource, url: SecretStr) -> UploadResult:
        urls = [url]  # the first attempt uses the URL of `_strategy`

        async def target() -> Target:
            if urls:
                return self.routes.session.storage_target(urls.pop())
            return self.storage_target(await self.routes.presign_upload(self.name, self.version))

        body = source.whole(self.progress, digest=self.pool.config.transfer.verify)
        await self._put_object(body, target)
        return UploadResult(source.size, 1)

    async def _put_object(self, body: UploadBody, target: Callable[[], Awaitable[Target]]) -> None:
        try:
            await self.put(body, target)
        finally:
            self.is_replaced = body.may_have_arrived  # a response that was lost leaves this unknown

    async def _send_multipart(self, source: UploadSource, threads: int) -> UploadResult:
        threads = 1 if source.is_sequential else threads
        part_size = source.choose_part_size(self.pool.config.transfer.part_size, threads)
        described = await self._describe(source, part_size)
        interrupted = await self._resumable(described, source.size)
        if interrupted:
            await self._start()
            self._storage_worked = bool(interrupted.etags)
            await self.journal(Journal.create, interrupted)  # drops a last line that a crash cut short
            multipart = Multipart(
                self, source, interrupted.source.part_size, interrupted.upload_id, dict(interrupted.etags)
            )
            try:
                return await multipart.send(threads)
            except BentoError as error:
                if not _is_upload_gone(error) and not multipart.is_stuck(error):
                    raise
                gone = "the storage has dropped the upload"
                self._restart(gone if _is_upload_gone(error) else "the registry cannot complete the upload")
        if interrupted:
            upload_id = await self._create_multipart()
        else:
            upload_id = await self._start_multipart()
        if described is not None:
            await self.journal(Journal.create, JournalEntries(described, upload_id))
        return await Multipart(self, source, part_size, upload_id).send(threads)

    async def _describe(self, source: UploadSource, part_size: int) -> Source | None:
        """What a later push must match to resume this one; None where nothing is recorded."""
        if self._journal_file is None:
            return None
        fingerprint = await source.fingerprint()
        if fingerprint is None:
            await self.discard_journal()
            self._journal_file = None
            return None
        return Source(
            endpoint=self.routes.session.endpoint,
            kind=self.routes.kind,
            tag=str(self.tag),
            part_size=part_size,
            fingerprint=fingerprint,
        )

    async def _resumable(self, source: Source | None, size: int) -> JournalEntries | None:
        """The interrupted upload of the same tar to the same registry, if there is one."""
        interrupted = await self.journal(Journal.read)
        if interrupted is None or source is None:
            return None
        reason = source.difference(interrupted.source)
        if not reason and not _is_allowed(interrupted.source.part_size, size):
            reason = f"S3 does not allow its parts of {interrupted.source.part_size} bytes"
        if reason:
            self._restart(reason)
            return None
        return interrupted

    def _restart(self, reason: str) -> None:
        self.progress.restart(f": an interrupted {self.progress.direction} cannot be resumed, since {reason}")

    async def _start(self) -> None:
        await self.routes.start_upload(self.name, self.version)

    async def _start_multipart(self) -> str:
        """Start the upload and create its multipart upload, in one round trip."""
        # None of the two is cancelled by a failure of the other: the registry may handle a cancelled request after the
        # report of the failure, and the record would wait for bytes for ever.
        started, upload_id = await gathered(self._start(), self._create_multipart())
        for result in (started, upload_id):
            if isinstance(result, BaseException):
                raise result
        return cast("str", upload_id)

    async def _create_multipart(self) -> str:
        upload_id = (await self.routes.start_multipart_upload(self.name, self.version)).upload_id
        if not upload_id:
            raise APIResponseError(f"{self._failed}: the registry's response has no upload_id", field="upload_id")
        return upload_id

    async def _finish(self, status: Literal["success", "failed"], reason: str) -> None:
        await self.routes.finish_upload(self.name, self.version, FinishUploadSchema(status=status, reason=reason))

    async def _report_failure(self, error: BaseException) -> None:
        """Report the failure of a push. Errors of the report are logged: the push's own error is raised."""
        if isinstance(error, asyncio.CancelledError):
            reason = "cancelled"
        else:
            reason = str(error).partition("\n")[0] if isinstance(error, BentoError) else type(error).__name__
        try:
            with anyio.fail_after(REPORT_TIMEOUT):
                if self._replaced is None or self.is_replaced:
                    # A file name need not be valid UTF-8; JSON has to be.
                    await self._finish("failed", reason.encode(errors="replace").decode())
                elif self._way is not None:
                    await self._restore(self._replaced)
        except Exception as failure:  # noqa: BLE001 - any error here is less important than the push's own
            if isinstance(failure, APIStatusError) and is_not_found(failure):
                return  # cancelled before the record existed
            why = str(failure) or type(failure).__name__
            direction = self.progress.direction
            logger.warning("cannot report the failed %s of %s to the registry: %s", direction, self.tag, why)

    async def _restore(self, record: ItemSchema) -> None:
        """Report that the old record and its bytes are as they were."""
        if self._way == "proxy":
            # The registry records a broken request as failed once it notices, and would overwrite an earlier report.
            for _ in range(_STATUS_CHECKS):
                current = await self.routes.get(self.name, self.version)
                if current is None or current.upload_status != "uploading":
                    break
                await asyncio.sleep(_STATUS_INTERVAL)
        await self._finish("success", record.upload_finished_reason)


def _is_upload_gone(error: BentoError) -> bool:
    """Whether the multipart upload no longer exists: S3's 404 NoSuchUpload, or what a registry makes of it."""
    if isinstance(error, APIStatusError) and "NoSuchUpload" in error.server_message:
        return True
    if isinstance(error, ServerError):  # Yatai sends 400 while its storage is away, too
        return False
    return isinstance(error, (APIStatusError, PartError)) and error.status in _GONE


def _is_refusal(error: Exception) -> bool:
    """Whether a server has refused a body, so that it changed nothing."""
    status = error.status if isinstance(error, (APIStatusError, PartError)) else None
    return status is not None and HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.INTERNAL_SERVER_ERROR


def _is_allowed(part_size: int, size: int) -> bool:
    """Whether S3 takes a tar of `size` bytes in parts of this size."""
    return MIN_PART_SIZE <= part_size <= MAX_PUT_SIZE and -(-size // part_size) <= MAX_PARTS
