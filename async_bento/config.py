"""Settings, each with its default and the reason for the default.

Precedence, weakest first: the defaults below, the `ASYNC_BENTO_*` variables, arguments.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from async_bento._core.s3 import MAX_PUT_SIZE, MIN_PART_SIZE
from async_bento._core.validation import first_error
from async_bento._core.variables import OTHERS, PREFIX
from async_bento.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

logger = logging.getLogger(__name__)

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

BENTOML_VERSION = "1.4.39"
"""The version of BentoML whose protocol the client speaks; sent as `X-Bentoml-Version`, which Yatai parses."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # timers reject an infinite timeout

    if not TYPE_CHECKING:  # type checkers derive the parameters from the fields

        def __init__(self, **settings: object) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError(_describe(type(self), settings, error)) from None


class Timeouts(_Frozen):
    """Timeouts in seconds. A transfer has no total timeout, since a large bento over a slow link takes hours.

    Attributes:
        connect: Maximum time to connect: name lookup, TCP, the tunnel of a proxy and TLS together. Ten seconds allow
            for three SYN retransmissions.
        stall: Maximum time between two bytes of a transfer in either direction. A minute outlasts a failover of an
            object storage.
        api: Maximum time of one response of the registry. BentoML's own client waits 60 seconds.
        complete: Maximum time of the completion of a multipart upload, all attempts together, and of the response to an
            upload through the registry after its last byte. S3 assembles the parts meanwhile, which may take minutes,
            and a timeout would waste an upload whose bytes have all arrived.
    """

    connect: float = Field(default=10.0, gt=0)
    stall: float = Field(default=60.0, gt=0)
    api: float = Field(default=60.0, gt=0)
    complete: float = Field(default=600.0, gt=0)


class RetryPolicy(_Frozen):
    """How often to retry after a transient error, and how long to wait, in seconds.

    Attributes:
        attempts: Maximum number of attempts of a request, including the first one. For a part or a range the count
            restarts whenever another part or range of the same transfer succeeds. Eight attempts with the waits below
            outlast an outage of twenty seconds: they wait for 22 to 46 seconds in total.
        wait_initial: Upper limit of the wait before the second attempt; it doubles with each attempt. The wait itself
            is random, from half the limit to the limit, so that many clients do not return at once.
        wait_max: Upper limit of every wait.
        retry_after_cap: The longest `Retry-After` to obey; a longer one fails the call. A shorter one than the wait
            above does not shorten that wait.
    """

    attempts: int = Field(default=8, ge=1)
    wait_initial: float = Field(default=0.5, ge=0)
    wait_max: float = Field(default=15.0, ge=0)
    retry_after_cap: float = Field(default=120.0, ge=0)


class Transfer(_Frozen):
    """How to transfer bytes. Sizes in bytes.

    A push takes at most `min(threads × items, concurrency) × 2 × io_chunk` of memory, whatever the size of a part: of
    each part in flight, memory holds the chunk being sent and the chunk being read. A pull takes at most
    `window + concurrency × 512 KiB`: the ranges in flight or waiting to be extracted, and the buffers of their
    connections. Both formulas are per client, for all of its bentos and models together, on top of the interpreter. The
    allocator needs up to half as much again, since ranges arrive in pieces of any size.

    Attributes:
        part_size: Maximum size of a part of a multipart upload. It is reduced, to 5 MiB at least, so that the number of
            parts is a multiple of `threads` and no connection idles at the end. It is raised if the item would have
            more than 10,000 parts. See `choose_part_size` in `transfer/source.py`. With ten parts in flight over a link
            of 40 ms and 20 MB/s per connection, uploads of 128 to 400 MiB take 0.67 to 0.81 of the time they take with
            parts of 32 MiB, since the last parts leave fewer connections idle. Parts of 8 MiB gain little more and need
            twice as many presigned URLs (benchmarks/part_size.py).
        concurrency: Maximum number of parts and ranges in flight for the whole client. `threads` bounds them for one
            item.
        io_chunk: Bytes that a worker thread reads or writes per call. 64 KiB costs about four times the CPU of 1 MiB;
            4 MiB gains nothing and blocks the event loop longer over TLS.
        window: Maximum size of the ranges of pulls that are in flight or waiting to be extracted.
        range_size: Upper limit of one range of a pull, at most the window. Over slow connections ranges are smaller
            and more numerous: see `transfer/adaptive.py`.
        verify: Compare the MD5 of each part: of a push with its ETag, where the ETag looks like an MD5; of a pull with
            the checksums in the registry's record, where it has any. Such a pull resumes at the start of a part.
        resume: Resume an interrupted push or pull, also in another process.
        rate_limit: Maximum number of bytes per second of all transfers of a client together, in both directions; by
            default, there is no limit. It is an average over seconds. Transfers with the Hugging Face Hub are not
            limited.
    """

    part_size: int = Field(default=16 * MiB, ge=MIN_PART_SIZE, le=MAX_PUT_SIZE)
    concurrency: int = Field(default=32, ge=1)
    io_chunk: int = Field(default=MiB, ge=4 * KiB)
    window: int = Field(default=48 * MiB, ge=MiB)
    range_size: int = Field(default=8 * MiB, ge=64 * KiB)
    verify: bool = True
    resume: bool = True
    rate_limit: int | None = Field(default=None, ge=KiB)

    @property
    def range_in_window(self) -> int:
        """The upper limit of one range, in bytes: `range_size`, at most the window."""
        return min(self.range_size, self.window)


class Limits(_Frozen):
    """Limits of a tar; a tar above a limit is refused during the download. Sizes in bytes.

    Memory of unpacking a tar is at most `2 × names + 32 × header + 2 MiB`. The tar itself, decompressed,
    has at most `content + members × (2 × header + 1 KiB) + 1 MiB`.

    Attributes:
        members: Maximum number of members of a tar. Even an empty one costs an inode and a tenth of a millisecond. A
            bento that contains a virtual environment has a hundred thousand.
        depth: Maximum number of names in a path, and in the target of a link. Real bentos have tens. Python before 3.13
            needs one of its 1,000 stack frames per level to remove a directory.
        path: Maximum length of a member's path, and of a link's target: Linux's PATH_MAX.
        header: Maximum size of the extended headers of one member. Names and times take hundreds of bytes; 64 KiB is
            the longest extended attribute Linux stores.
        names: Maximum memory for the names of directories and links, which are kept until the end. The default suffices
            for 400,000 of them, including the parent directories of members.
        size: Maximum size of the content, whatever size the registry announces; by default, the disk is the only limit.
        max_ratio: Maximum size of the content as a multiple of the size that the registry announces. A bento's
            announced size includes its models, which are not in its tar, so the ratio of an honest tar stays below 1. A
            version that was pushed twice may keep the record, and so the size, of its first push.
        allowance: Size of content that is allowed above `announced × max_ratio`: a wrong record is no reason to refuse
            a tar that fills no disk. Some old records announce no size; their tars are bounded by `size` alone.
    """

    members: int = Field(default=1_000_000, ge=1)
    depth: int = Field(default=128, ge=1, le=500)
    path: int = Field(default=4096, ge=1)
    header: int = Field(default=64 * KiB, ge=KiB)
    names: int = Field(default=256 * MiB, ge=0)
    size: int | None = Field(default=None, ge=0)
    max_ratio: int = Field(default=2, ge=1)
    allowance: int = Field(default=GiB, ge=0)

    def content(self, announced: int) -> int | None:
        """Compute the limit of a tar's content.

        Args:
            announced: The size in the registry's record, in bytes; 0 or less if the record has none.

        Returns:
            The limit in bytes, or None for no limit.
        """
        if announced <= 0:
            return self.size
        allowed = announced * self.max_ratio + self.allowance
        return allowed if self.size is None else min(allowed, self.size)


class Config(_Frozen):
    """All settings of a client: `Config(transfer={"verify": False})`.

    Attributes:
        timeouts: How long to wait.
        retry: How often to retry.
        transfer: How to transfer bytes.
        limits: Limits of a tar.
    """

    timeouts: Timeouts = Timeouts()
    retry: RetryPolicy = RetryPolicy()
    transfer: Transfer = Transfer()
    limits: Limits = Limits()

    if TYPE_CHECKING:  # pydantic accepts a mapping for a group; type checkers do not know that

        def __init__(
            self,
            *,
            timeouts: Timeouts | Mapping[str, float] = ...,
            retry: RetryPolicy | Mapping[str, float] = ...,
            transfer: Transfer | Mapping[str, int] = ...,
            limits: Limits | Mapping[str, int | None] = ...,
        ) -> None: ...

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """Read the settings from `ASYNC_BENTO_<GROUP>_<FIELD>` variables, like `ASYNC_BENTO_TRANSFER_VERIFY=0`.

        Args:
            environ: The environment variables.

        Returns:
            The settings, with the defaults for variables that are unset or empty.

        Raises:
            ConfigError: The value of a variable is invalid; the message names the variable.
        """
        groups: dict[str, dict[str, str]] = {}
        for group, settings in _groups().items():
            for field in settings.model_fields:
                variable = f"{PREFIX}{group}_{field}".upper()
                if value := environ.get(variable):
                    try:
                        # One variable at a time, so that the message names it.
                        settings(**{field: value})
                    except ConfigError as error:
                        argument = f"{settings.__name__}.{field}"
                        raise ConfigError(str(error).replace(argument, variable, 1)) from None
                    groups.setdefault(group, {})[field] = value
        for variable in environ:
            if variable.startswith(PREFIX):
                _warn_of_misspelling(variable)
        return cls.model_validate(groups)


def _groups() -> dict[str, type[_Frozen]]:
    return {"timeouts": Timeouts, "retry": RetryPolicy, "transfer": Transfer, "limits": Limits}


def _describe(settings: type[_Frozen], values: Mapping[str, object], error: ValidationError) -> str:
    """What is wrong with the arguments of a group of settings, without pydantic's words."""
    first = first_error(error)
    if first.type == "value_error":  # the message of a group that was passed as a mapping
        return first.message
    if first.type == "extra_forbidden":
        return f"{settings.__name__} has no setting {first.field!r}. {_suggest(settings, first.field)}"
    return f"{settings.__name__}.{first.field}={values.get(first.field)!r}: {first.message}"


def _suggest(settings: type[_Frozen], name: str) -> str:
    if close := _closest(name, settings.model_fields):
        return f"Did you mean {close!r}?"
    for group, other in _groups().items():
        if field := _closest(name, other.model_fields):
            return f"Did you mean {field!r} of `{group}`, as in Config({group}={{{field!r}: ...}})?"
    return f"Its settings are {', '.join(settings.model_fields)}."


def _closest(name: str, names: Iterable[str], cutoff: float = 0.7) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, [*names], n=1, cutoff=cutoff)), None)


@cache  # one warning, however many clients read the environment
def _warn_of_misspelling(variable: str) -> None:
    """Warn if a variable that names no setting resembles one that does."""
    name = variable.removeprefix(PREFIX)
    known = {f"{group}_{field}".upper(): field for group, other in _groups().items() for field in other.model_fields}
    if name in known or name in OTHERS:
        return
    meant = next((full for full, field in known.items() if name == field.upper()), None)
    # Strict: Kubernetes sets ASYNC_BENTO_PORT and others in the pods of a namespace with a Service `async-bento`.
    if meant := meant or _closest(name, [*known, *OTHERS], 0.85):
        logger.warning("ignored the variable %s: there is no such setting. Did you mean %s%s?", variable, PREFIX, meant)


def bentoml_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of the local stores: `$BENTOML_HOME` with variables and `~` expanded, or `~/bentoml`."""
    # As in BentoML's `bentoml/_internal/configuration/containers.py`.
    home = os.path.expandvars(environ.get("BENTOML_HOME") or "~/bentoml")
    try:
        return Path(home).expanduser()
    except RuntimeError as error:  # HOME is unset and the user has no passwd entry, as in a container with any user ID
        raise ConfigError(
            f"cannot find the local store in {home}: there is no such home directory. "
            "Set BENTOML_HOME to an absolute path."
        ) from error
