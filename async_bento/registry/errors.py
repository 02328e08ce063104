"""The errors of the registry: an HTTP status, S3's error code, and a message for the client."""

from __future__ import annotations

import errno
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Generator

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

log = logging.getLogger(__package__)


class RegistryError(Exception):
    """A request that fails; `retry_after` is the time in seconds after which the client should retry."""

    status = 400
    code = "InvalidRequest"
    retry_after: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class BadRequestError(RegistryError):
    """The request is invalid."""


class ForbiddenError(RegistryError):
    """The presigned URL does not permit the request."""

    status = 403
    code = "AccessDenied"


class RecordNotFoundError(RegistryError):
    """A record does not exist. Yatai's messages end with `record not found`, and clients search for these words."""

    status = 404
    code = "NoSuchKey"

    def __init__(self, subject: str) -> None:
        super().__init__(f"{subject}: record not found")


class DuplicateError(RegistryError):
    """A record exists already. Yatai answers 400, in PostgreSQL's words."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"create {subject}: duplicate key value violates unique constraint")


class ConflictError(RegistryError):
    """The request contradicts other records, such as the deletion of a model that a bento names."""

    status = 409
    code = "Conflict"


class ImmutableError(ConflictError):
    """The request would replace a complete version, which the registry keeps as it is."""

    def __init__(self, repository: str, version: str) -> None:
        super().__init__(
            f"cannot change {repository}:{version}: this registry keeps complete versions as they are. Push a new "
            "version, or delete this one first."
        )


class NotImplementedHereError(RegistryError):
    """The request is about something that this registry does not keep, such as a deployment."""

    status = 501
    code = "NotImplemented"


class StorageError(RegistryError):
    """The storage fails or rejects a request, with S3's code, such as `EntityTooSmall`, and status."""

    def __init__(self, code: str, message: str, *, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after = retry_after


class NoSuchUploadError(StorageError):
    """The multipart upload does not exist, or is for another object."""

    def __init__(self) -> None:
        message = "no such upload: it was completed or aborted, or is for another object. Start a new upload."
        super().__init__("NoSuchUpload", message, status=404)


class UnsupportedByStorageError(StorageError):
    """The storage lacks a request of S3, such as `ListParts`."""


class RangeError(StorageError):
    """A requested range begins beyond the object, which has `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__("InvalidRange", "The requested range is not satisfiable", status=416)
        self.size = size

    @property
    def headers(self) -> dict[str, str]:
        """See `RegistryError`."""
        return {"Content-Range": f"bytes */{self.size}"}


@contextmanager
def translate_errors() -> Generator[None]:
    """Translate broken connections and failures of the disk into `StorageError`."""
    try:
        yield
    # Before OSError, of which ConnectionError is a subclass.
    except (ConnectionError, web.RequestPayloadError) as error:
        raise StorageError("RequestTimeout", "the request failed: the connection broke") from error
    except OSError as error:
        if error.errno is None:  # not of the system, such as asyncio's TimeoutError
            raise
        log.exception("a request failed: the disk failed")
        raise disk_error(error) from error


def disk_error(error: OSError) -> StorageError:
    """Return 507 for a full disk, 500 otherwise; the message has the system's reason, but no path."""
    if error.errno in _DISK_FULL:
        return StorageError("InsufficientStorage", f"the registry's disk is full: {error.strerror}", status=507)
    return StorageError("InternalError", f"the registry's disk failed: {error.strerror or 'unknown error'}", status=500)
