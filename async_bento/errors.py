"""Every error async-bento raises, by who is at fault.

    BentoError
    ├── ConfigError (ValueError)        a setting, a context or a credential is missing or invalid
    ├── InvalidTagError (ValueError)    a tag that breaks BentoML's rules
    ├── NotFoundError                   no such bento or model in the store, in the registry or on the Hub
    ├── StoreError                      the local store: broken YAML, no space, no permission
    │   └── PathExistsError (FileExistsError)   the directory for a pull is not empty
    ├── ArchiveError                    a directory that cannot be packed, a tar that cannot be extracted
    │   ├── UnsafeArchiveError          a tar that is refused: unsafe, broken, truncated or above a limit
    │   └── SourceChangedError          a file changed during its upload (also a TransferError)
    ├── APIError                        the registry
    │   ├── APIConnectionError          no connection, or a broken one
    │   │   └── APITimeoutError         no response in time
    │   ├── APIStatusError              a response with an error status
    │   │   ├── AuthenticationError     401, 403: the token
    │   │   ├── RateLimitError          429: too many requests
    │   │   └── ServerError             a fault of the server: 5xx, or a 4xx whose message reports one
    │   ├── APIResponseError            a 200 that does not fit the protocol
    │   └── NotSupportedError           the registry has no route for the call
    ├── ClosedError (RuntimeError)      the client was closed
    ├── ModelsError                     more than one model of a bento failed
    ├── PushesError                     some items of a list could not be pushed
    ├── HubError                        the Hugging Face Hub: not reached, refused, or offline and not in its cache
    └── TransferError                   the bytes of a bento or a model
        ├── PartError                   the storage refused a part or a range
        ├── StalledError                no byte was transferred for too long
        ├── IntegrityError              the bytes received differ from the bytes sent
        └── SourceChangedError          see ArchiveError

Exceptions of other libraries are translated into these, `raise … from` the original. All of them pickle.
No message contains a token, the query of a presigned URL, or a page of HTML. Cancellation is never translated.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from types import FrameType


class BentoError(Exception):
    """The root of all errors of async-bento."""

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.args, self.__dict__)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of an uncaught error: the caller's lines and the message, without the frames in here."""
        import traceback

        def package(frame: FrameType) -> str:
            return str(frame.f_globals.get("__name__", "")).partition(".")[0]

        frames = [(frame, line) for frame, line in traceback.walk_tb(self.__traceback__) if package(frame) != "IPython"]
        callers = takewhile(lambda entry: package(entry[0]) != __name__.partition(".")[0], frames)
        lines = traceback.StackSummary.extract(callers).format()
        return [*"".join(lines).splitlines(), f"{type(self).__name__}: {self}"]


ErrorT = TypeVar("ErrorT", bound=BentoError)


def summarize(failures: Sequence[tuple[str, BentoError]]) -> str:
    """List failures, one line per message: items mostly fail for one common reason."""
    by_message: dict[str, list[str]] = {}
    for name, error in failures:
        by_message.setdefault(str(error), []).append(name)
    return "".join(f"\n  {', '.join(names)}: {message}" for message, names in by_message.items())


def _restore(cls: type[ErrorT], args: tuple[object, ...], state: dict[str, object]) -> ErrorT:
    # Not `cls(*args)`: the constructors of some classes require keyword arguments, which `args` lacks.
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def with_message(error: ErrorT, message: str) -> ErrorT:
    """Copy an error with another message and the same type, attributes, cause and traceback.

    Raise the copy `from error.__cause__`, so that a traceback does not show both.
    """
    copy = _restore(type(error), (message,), error.__dict__)
    copy.__cause__ = error.__cause__
    return copy.with_traceback(error.__traceback__)


@contextmanager
def prefix_errors(prefix: str, *types: type[BentoError]) -> Generator[None]:
    """Raise the block's errors of these types, by default all of ours, with the message `prefix: message`."""
    translated = types or (BentoError,)
    try:
        yield
    except translated as error:
        # A block within this one has added the prefix.
        if str(error).startswith(prefix):
            raise
        raise with_message(error, f"{prefix}: {error}") from error.__cause__


class ConfigError(BentoError, ValueError):
    """A setting, a context or a credential is missing or invalid."""


class InvalidTagError(BentoError, ValueError):
    """A tag breaks BentoML's rules for tags."""


class NotFoundError(BentoError):
    """The bento or model does not exist; the message names the places searched and a remedy."""


class StoreError(BentoError):
    """The local store cannot be read or written."""


class PathExistsError(StoreError, FileExistsError):
    """The directory for a pull is not empty, or is a file; nothing in it was changed."""


class ArchiveError(BentoError):
    """A directory cannot be packed, or a tar cannot be extracted."""


class UnsafeArchiveError(ArchiveError):
    """A tar is refused: a member must not be extracted, or the tar is broken, truncated or above a limit.

    Attributes:
        member: The member's name in the tar. Of a broken tar, the last member read; None before the first one.
    """

    def __init__(self, message: str, *, member: str | None = None) -> None:
        super().__init__(message)
        self.member = member


class APIError(BentoError):
    """The registry was not reached, refused the request, or sent an invalid response."""


class APIConnectionError(APIError):
    """The registry was not reached, or the connection broke before the response."""


class APITimeoutError(APIConnectionError):
    """The registry did not respond in time."""


class APIStatusError(APIError):
    """The registry responded with a status other than 200.

    Attributes:
        status: The HTTP status.
        server_message: The server's own message, without markup; empty where the response has none.
        trace_id: The response's `x-trace-id`, for a report to the registry's operator.
        retry_after: The response's `Retry-After`, in seconds.
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
    """The registry does not accept the token (401), or the token's rights do not suffice (403)."""


class RateLimitError(APIStatusError):
    """The client sent too many requests (429)."""


class ServerError(APIStatusError):
    """The registry, its database, its storage, or a proxy in front of it failed.

    The status is 5xx. Yatai sends 400 or 403 while its database or its storage is away; then the message decides.
    """


class APIResponseError(APIError):
    """The registry responded 200 with a body that does not fit the protocol.

    Attributes:
        field: The path of the first invalid field, like `items.0.version`; None where the body is not JSON.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotSupportedError(APIError):
    """The registry has no route for the call: Yatai and BentoCloud cannot delete a bento or a model by their API."""


class ClosedError(BentoError, RuntimeError):
    """The client was closed before or during the call, or the interpreter is shutting down."""


class HubError(BentoError):
    """A model could not be downloaded from the Hugging Face Hub.

    The model is gated; the Hub was not reached, or refused; or HF_HUB_OFFLINE is set, and HF's cache lacks the model.

    Attributes:
        model_id: The model's name on the Hub.
        status: The HTTP status, or None without a response.
    """

    def __init__(self, message: str, *, model_id: str, status: int | None = None) -> None:
        super().__init__(message)
        self.model_id = model_id
        self.status = status


class ModelsError(BentoError):
    """More than one model of a bento could not be pushed or pulled. The failure of a single model raises its own error.

    Attributes:
        failures: Each failed model's error, by the model's tag.
    """

    def __init__(self, message: str, *, failures: dict[str, BentoError]) -> None:
        super().__init__(message)
        self.failures = failures


class PushesError(BentoError):
    """Some items of a list could not be pushed; the others were.

    Attributes:
        failures: Each failed item's error, by its tag, or by the item as it was passed if that names none.
    """

    def __init__(self, message: str, *, failures: Mapping[str, BentoError]) -> None:
        super().__init__(message)
        self.failures = failures


class TransferError(BentoError):
    """The bytes of a bento or a model could not be transferred."""


class PartError(TransferError):
    """The storage refused a part or a range, or the connection to the storage broke.

    Attributes:
        status: The HTTP status, or None without a response.
        part_number: The part of a multipart upload, from 1; None for a whole body or a range.
        retry_after: The response's `Retry-After`, in seconds.
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
    """No byte moved for `Timeouts.stall` seconds, or no response came for `Timeouts.complete` seconds.

    Attributes:
        is_final: Whether the registry had all bytes and did not respond: sending them again is no remedy.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class IntegrityError(TransferError):
    """The bytes received differ from the bytes sent: by size, checksum or ETag."""


class SourceChangedError(ArchiveError, TransferError):
    """A file, directory or link changed after the tar was planned; no upload of mixed content was completed.

    Attributes:
        path: The path that changed.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path
