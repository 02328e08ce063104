"""DownloadSource: where the bytes of an item are, and what to do where their URL expires or their storage fails."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from async_bento.errors import APIResponseError, APIStatusError, PartError
from async_bento.transfer.fallback import UnreachableError, remember_unreachable, wait_after_failure
from async_bento.transfer.verify import ObjectChangedError

if TYPE_CHECKING:
    from async_bento._core.retry import Retries
    from async_bento.rest.routes import AnyRoutes
    from async_bento.rest.schemas import ChecksumsSchema, ItemSchema
    from async_bento.rest.transport import Target
    from async_bento.transfer.http import ByteRange

CHANGED = "the item was pushed again during the download"


class DownloadSource:
    """Where an item's tar is: a presigned URL, requested again once it has expired, or the registry itself.

    `checksums` are those of the bytes at the current target; None without `verify`, and where the registry has none.
    `failed` begins the messages of errors: it names the `action` and the tag.
    """

    def __init__(self, routes: AnyRoutes, name: str, record: ItemSchema, *, action: str, verify: bool) -> None:
        self.tag = f"{name}:{record.version}"
        self.failed = f"cannot {action} {self.tag}"
        self.kind = routes.kind
        self.checksums: ChecksumsSchema | None = None
        self._routes = routes
        self._name = name
        self._record: ItemSchema | None = record
        self._strategy = record.transmission_strategy
        self._version = record.version
        self._verify = verify
        self._asks_storage = False
        self._current: Target | None = None
        self.is_resumed = False  # so the storage has worked
        self.unreachable: str | None = None  # why the bytes go through the registry instead
        self._lock = asyncio.Lock()

    async def target(self) -> Target:
        """The current target; concurrent callers share one request for it."""
        async with self._lock:
            if self._current is None:
                self._current = await self._find_target()
            return self._current

    def expire(self, target: Target) -> None:
        """Request a new URL next time, unless that has happened since this target was handed out."""
        if self._current is target:
            self._current = None

    def ask_storage(self) -> bool:
        """Use a presigned URL although the registry serves the bytes itself; False if the source used one before."""
        if self._strategy != "proxy" or self._asks_storage:
            return False
        self._asks_storage, self._current = True, None
        return True

    def check_refusal(self, error: APIStatusError | PartError, target: Target, byte_range: ByteRange) -> None:
        """Raise ObjectChangedError where the object has changed; request a new URL where this one has expired."""
        if error.status == HTTPStatus.FORBIDDEN and target.credentials is None:
            self.expire(target)
        # 416: the object has become shorter than a range within its first size. 412: it lost the ETag of If-Match.
        beyond_end = error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and byte_range.start > 0
        if beyond_end or error.status == HTTPStatus.PRECONDITION_FAILED:
            raise ObjectChangedError(CHANGED) from error

    def refresh(self) -> None:
        """Request the URL and the checksums again next time: the item may have been pushed again."""
        self._current = self._record = None

    async def wait_after_failure(self, retries: Retries, target: Target | None, error: Exception) -> bool:
        """Wait before the next attempt, which may go through the registry; False where the error is to be raised."""
        try:
            return await wait_after_failure(retries, None if self.is_resumed else target, error)
        except UnreachableError as unreachable:
            remember_unreachable(self._routes.session.storages, unreachable)
            self._current = None
            return True

    async def _find_target(self) -> Target:
        if self._asks_storage or self._strategy != "proxy":
            if (target := await self._presign()) is not None:
                return target
        elif self._verify:
            if self._record is None or self._record.checksums is None:  # the records of a list have none
                self._record = await self._routes.get(self._name, self._version)
            self._set_checksums(self._record)
        return self._routes.download_target(self._name, self._version)

    async def _presign(self) -> Target | None:
        """The target of a presigned URL; None where the bytes go through the registry."""
        session = self._routes.session
        try:
            record = await self._routes.presign_download(self._name, self._version)
        except APIStatusError:
            if self._asks_storage:  # then the registry's own way remains
                return None
            raise
        self._set_checksums(record)
        if not record.presigned_download_url.get_secret_value():
            # An old Yatai states no strategy; without a URL, the registry sends the bytes.
            if self._asks_storage or self._strategy is None:
                return None
            raise APIResponseError(
                f"{self.failed}: the registry's response has no presigned download URL",
                field="presigned_download_url",
            )
        target = session.storage_target(record.presigned_download_url)
        unreachable = session.storages.unreachable.get(target.storage)
        if not self._asks_storage:
            self.unreachable = unreachable
        return target if unreachable is None or self.is_resumed else None

    def _set_checksums(self, record: ItemSchema | None) -> None:
        self.checksums = record.checksums if record is not None and self._verify else None
