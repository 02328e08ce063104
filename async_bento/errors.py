"""Every error async-bento raises, and who is at fault.

    BentoError
    ├── ConfigError (ValueError)        a setting, a context or a credential does not fit
    ├── InvalidTagError (ValueError)    a tag that no registry would take
    ├── NotFoundError                   no such bento or model, in the store, on the registry or on the Hub
    ├── StoreError                      the local store: broken YAML, no space, no permission
    ├── ArchiveError                    a directory that cannot be packed, a tar that cannot be unpacked
    │   ├── UnsafeArchiveError          a tar that is refused: it reaches outside, lies, is too much or not whole
    │   └── SourceChangedError          a file changed while it was being sent (also a TransferError)
    ├── APIError                        the registry
    │   ├── APIConnectionError          not reached, or the connection broke
    │   │   └── APITimeoutError         no answer in time
    │   ├── APIStatusError              it answered, and the answer was no
    │   │   ├── AuthenticationError     401, 403: the token
    │   │   ├── RateLimitError          429: too much, too fast
    │   │   └── ServerError             5xx: its own fault
    │   └── APIResponseError            a 200 that does not fit the schema
    ├── ClosedError (RuntimeError)      the API was closed under a call that ran
    ├── ModelsError                     more than one model of a bento failed, and why each did
    ├── HubError                        the Hugging Face Hub: not reached, or refused; offline, and not in its cache
    └── TransferError                   the bytes of a bento or a model
        ├── PartError                   a part or a range the storage refused
        ├── StalledError                no byte moved for too long
        ├── IntegrityError              what arrived is not what was sent
        └── SourceChangedError          see ArchiveError

Foreign exceptions become these at one seam per room, `raise … from` the original. All of them pickle.
No message holds a token, the query of a presigned URL, or a page of HTML. Cancellation is never wrapped.
"""

from __future__ import annotations


class BentoError(Exception):
    """The root of all errors of async-bento."""

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[BentoError], args: tuple[object, ...], state: dict[str, object]) -> BentoError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(BentoError, ValueError):
    """A setting, a context or a credential is missing or does not fit."""


class InvalidTagError(BentoError, ValueError):
    """A tag that breaks BentoML's rules for tags."""


class NotFoundError(BentoError):
    """No such bento or model; the message says where it was looked for and what would help."""


class StoreError(BentoError):
    """The local store cannot be read or written."""


class ArchiveError(BentoError):
    """A directory that cannot be packed, or a tar that cannot be unpacked."""


class UnsafeArchiveError(ArchiveError):
    """A tar that is refused, be it for a member that must not be extracted, or because it is broken or not whole.

    Attributes:
        member: The member's name, as the tar has it. Where the tar is broken, the member it is broken in or after;
            None where it is so from its first byte.
    """

    def __init__(self, message: str, *, member: str | None = None) -> None:
        super().__init__(message)
        self.member = member


class APIError(BentoError):
    """The registry could not be reached, or refused, or answered something else than it should."""


class APIConnectionError(APIError):
    """The registry could not be reached, or the connection broke before its answer."""


class APITimeoutError(APIConnectionError):
    """The registry did not answer in time."""


class APIStatusError(APIError):
    """The registry answered with a status other than 200.

    Attributes:
        status: The HTTP status.
        server_message: What the server said of it, without markup; empty where it said nothing readable.
        trace_id: The `x-trace-id` of the answer, for a report to whoever runs the registry.
        retry_after: The `Retry-After` of the answer, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        server_message: str = "",
        trace_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.server_message = server_message
        self.trace_id = trace_id
        self.retry_after = retry_after


class AuthenticationError(APIStatusError):
    """The registry does not accept the token (401), or not for this (403)."""


class RateLimitError(APIStatusError):
    """Too many requests (429)."""


class ServerError(APIStatusError):
    """The registry, or a proxy before it, failed (5xx)."""


class APIResponseError(APIError):
    """The registry answered 200 with something that does not fit the protocol.

    Attributes:
        field: The path of the first field that does not fit, like `items.0.version`; None where the answer is no JSON.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ClosedError(BentoError, RuntimeError):
    """The API was closed while the call ran; the call was ended as if it had been cancelled."""


class HubError(BentoError):
    """A model on the Hugging Face Hub could not be had.

    It is gated; the Hub was not reached, or refused; or HF_HUB_OFFLINE is set, and it is not in HF's cache.

    Attributes:
        model_id: The model's name there.
        status: The HTTP status, or None where there was no answer.
    """

    def __init__(self, message: str, *, model_id: str, status: int | None = None) -> None:
        super().__init__(message)
        self.model_id = model_id
        self.status = status


class ModelsError(BentoError):
    """More than one model of a bento could not be pushed or pulled. Where it is one, its own error is raised.

    Attributes:
        failures: What each failed with, by its tag.
    """

    def __init__(self, message: str, *, failures: dict[str, BentoError]) -> None:
        super().__init__(message)
        self.failures = failures


class TransferError(BentoError):
    """The bytes of a bento or a model could not be moved."""


class PartError(TransferError):
    """The storage refused a part or a range, or the connection to it broke.

    Attributes:
        status: The HTTP status, or None where there was no answer.
        part_number: The part of a multipart upload, from 1; None for a whole body or a range.
        retry_after: The `Retry-After` of the answer, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        part_number: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.part_number = part_number
        self.retry_after = retry_after


class StalledError(TransferError):
    """No byte moved for `Timeouts.stall` seconds."""


class IntegrityError(TransferError):
    """What arrived is not what was sent: a size, a checksum or an ETag differs."""


class SourceChangedError(ArchiveError, TransferError):
    """A file changed after its directory was planned; nothing of the mixture was completed.

    Attributes:
        path: The file that changed.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path
