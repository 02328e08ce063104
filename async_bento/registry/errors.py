"""How the registry says no: a status and a message, without a word on how it is put on the wire."""

from __future__ import annotations

import errno

_FULL = {errno.ENOSPC, errno.EDQUOT}


class RegistryError(Exception):
    """A request that is not granted.

    Attributes:
        status: The HTTP status.
        code: S3's word for it.
        message: Why.
        retry_after: When to come back, in seconds; None for nothing to be said about that.
    """

    status = 400
    code = "InvalidRequest"
    retry_after: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequestError(RegistryError):
    """What was sent cannot be read."""


class ForbiddenError(RegistryError):
    """What was sent opens nothing."""

    status = 403
    code = "AccessDenied"


class RecordNotFoundError(RegistryError):
    """There is no such record. Yatai ends every such message with these two words, and clients look for them."""

    status = 404
    code = "NoSuchKey"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: record not found")


class DuplicateError(RegistryError):
    """There is such a record already. Yatai answers 400, with PostgreSQL's words."""

    def __init__(self, what: str) -> None:
        super().__init__(f"create {what}: duplicate key value violates unique constraint")


class StorageError(RegistryError):
    """The storage refuses bytes, in S3's words.

    Attributes:
        code: Like `EntityTooSmall`.
        status: The status S3 gives it.
    """

    def __init__(self, code: str, message: str, *, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after = retry_after


class NoSuchUploadError(StorageError):
    """There is no such multipart upload, or none for this object."""

    def __init__(self) -> None:
        super().__init__("NoSuchUpload", "there is no such upload; it may have been completed", status=404)


def of_os_error(error: OSError) -> StorageError:
    """What a failing disk means for whoever sent or wants bytes.

    Args:
        error: What the operating system said; only its reason is passed on, never a path.

    Returns:
        507 for a full disk, 500 for anything else.
    """
    if error.errno in _FULL:
        return StorageError("InsufficientStorage", f"the registry's disk: {error.strerror}", status=507)
    return StorageError("InternalError", f"the registry's disk: {error.strerror or 'it failed'}", status=500)
