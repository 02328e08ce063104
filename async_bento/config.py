"""Settings, each with its default and the reason for it.

Weakest first: the defaults below, the `ASYNC_BENTO_*` variables, arguments.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from async_bento._core.s3 import MAX_PUT_SIZE, MIN_PART_SIZE
from async_bento._core.validation import first_error
from async_bento.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

BENTOML_VERSION = "1.4.39"
"""The BentoML whose protocol is spoken; sent as `X-Bentoml-Version`, which Yatai parses."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # no clock takes an infinite wait


class Timeouts(_Frozen):
    """How long to wait, in seconds. No transfer has a total: a 40 GB bento over a poor link takes what it takes.

    Attributes:
        connect: For a connection, its TLS handshake included. Ten seconds pass three SYN retransmissions.
        stall: For the next byte of a transfer, either way. A minute outlives a failover of an object storage.
        api: For one answer of the registry. BentoML's own client waits 60.
        complete: For the answer to the end of a multipart upload. S3 puts the parts together meanwhile, which may take
            minutes, and the parts are there already.
    """

    connect: float = Field(default=10.0, gt=0)
    stall: float = Field(default=60.0, gt=0)
    api: float = Field(default=60.0, gt=0)
    complete: float = Field(default=600.0, gt=0)


class RetryPolicy(_Frozen):
    """How often a transient fault is tried again, and how long to wait before it, in seconds.

    Attributes:
        attempts: Tries in all; of a part or a range, tries since another of the same transfer came through. Eight, with
            the waits below, outlast twenty seconds of outage on average.
        wait_initial: The longest wait before the second try; it doubles with each. How long the wait is then, is left
            to chance, so that many clients do not come back at once.
        wait_max: The longest wait between two tries.
        retry_after_cap: The longest `Retry-After` that is obeyed; a longer one ends the call.
    """

    attempts: int = Field(default=8, ge=1)
    wait_initial: float = Field(default=0.5, ge=0)
    wait_max: float = Field(default=15.0, ge=0)
    retry_after_cap: float = Field(default=120.0, ge=0)


class Transfer(_Frozen):
    """How bytes are moved. Sizes in bytes.

    Memory of a push is at most `min(threads × items, concurrency) × 2 × io_chunk`, whatever the size of a part: a part
    is never held, only the hop that is on its way and the one that is read after it. Memory of a pull is at most
    `window + concurrency × 512 KiB`: the ranges that are on their way or wait for their turn, and what their
    connections hold. Both count per client, all its bentos and models together, on top of what the interpreter takes;
    the allocator, which gets ranges in pieces of any size, takes up to half as much again.

    Attributes:
        part_size: The size of a part of a multipart upload, or less, so that the parts of an item make whole rounds of
            `threads`: see `transfer/upload.py`; more where the item would need over 10,000 parts of it,
            never under S3's 5 MiB. With ten parts in flight over a link of 40 ms and 20 MB/s a connection, 128 to
            400 MiB take 0.67 to 0.81 of the time that parts of 32 MiB take, since the last parts leave fewer
            connections idle; 8 MiB gain little more and ask for twice as many URLs (benchmarks/part_size.py).
        concurrency: Parts and ranges in flight for the whole client, all items together. `threads` bounds them for
            one item.
        io_chunk: What is read or written in one hop to a worker thread. 64 KiB costs about four times the CPU
            of 1 MiB; 4 MiB gains nothing and blocks the loop longer over TLS.
        window: The bytes of ranges that may be on their way or wait for their turn during a pull.
        range_size: The most that one ranged GET of a pull asks for; never more than the window. It is less where a
            connection is slow, and there are more of them then: see `transfer/pace.py`.
        verify: Compare the MD5 of each part with its ETag, where the ETag looks like an MD5.
        resume: Go on with an interrupted push or pull where it stopped, in another process too.
    """

    part_size: int = Field(default=16 * MiB, ge=MIN_PART_SIZE, le=MAX_PUT_SIZE)
    concurrency: int = Field(default=32, ge=1)
    io_chunk: int = Field(default=MiB, ge=4 * KiB)
    window: int = Field(default=48 * MiB, ge=MiB)
    range_size: int = Field(default=8 * MiB, ge=64 * KiB)
    verify: bool = True
    resume: bool = True

    @property
    def range_in_window(self) -> int:
        """The size of a range, as far as the window has room for it."""
        return min(self.range_size, self.window)


class Limits(_Frozen):
    """What a tar may hold; one that holds more is refused while it arrives. Sizes in bytes.

    Memory of unpacking a tar is at most `2 × names + 32 × header + 2 MiB`, and 128 MiB for the dictionary of an xz. The
    tar itself, unpacked by gzip and its like, has at most `content + members × (2 × header + 1 KiB) + 1 MiB`.

    Attributes:
        members: The most members. Even one without content costs an inode and a tenth of a millisecond. A bento with an
            environment in it has a hundred thousand.
        depth: The most names in a path, and in a link's target. Python before 3.13 removes a directory with one of its
            1,000 frames per level; what people build has tens.
        path: The longest path of a member, and the longest target of a link: Linux's PATH_MAX.
        header: The most that extended headers say of one member. The names and times in them take hundreds; 64 KiB is
            the longest extended attribute that Linux keeps, should there be one.
        names: The most memory for the names of directories and links, which are known until the end. It is enough for
            400,000 of them, those included that are only named on the way to a member.
        size: The most content, whatever was announced; None for what the disk holds.
        max_ratio: The most content as a multiple of the size the registry announces. A bento's announced size includes
            its models, which are not in its tar, so the ratio of an honest tar stays below 1. A version that was pushed
            twice may keep the record, and so the size, of its first push.
        allowance: Content allowed on top of `announced × max_ratio`: a wrong record is no reason to refuse a tar that
            fills no disk. Some old records announce no size; their tars are bounded by `size` alone.
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
        """The most content a tar may have.

        Args:
            announced: Its size as the registry's record has it, in bytes; 0 or less where it has none.

        Returns:
            The bytes; None for as many as arrive.
        """
        if announced <= 0:
            return self.size
        allowed = announced * self.max_ratio + self.allowance
        return allowed if self.size is None else min(allowed, self.size)


class Config(_Frozen):
    """All settings of a client: `Config(transfer={"verify": False})`.

    Attributes:
        timeouts: How long to wait.
        retry: How often to try again.
        transfer: How bytes are moved.
        limits: What a tar may hold.
    """

    timeouts: Timeouts = Timeouts()
    retry: RetryPolicy = RetryPolicy()
    transfer: Transfer = Transfer()
    limits: Limits = Limits()

    if TYPE_CHECKING:  # pydantic takes mappings for groups, of which type checkers know nothing

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
        """The defaults, with what `ASYNC_BENTO_<GROUP>_<FIELD>` variables say, like `ASYNC_BENTO_TRANSFER_VERIFY=0`.

        Args:
            environ: Where to look.

        Returns:
            The settings.

        Raises:
            ConfigError: A variable's value does not fit; the message names the variable.
        """
        groups: dict[str, dict[str, str]] = {}
        for variable, group, field in _setting_variables():
            if value := environ.get(variable):
                groups.setdefault(group, {})[field] = value
        try:
            return cls.model_validate(groups)
        except ValidationError as error:
            first = first_error(error)
            variable = f"ASYNC_BENTO_{first.field.replace('.', '_')}".upper()
            raise ConfigError(f"{variable}={environ[variable]!r}: {first.message}") from error


def _setting_variables() -> Iterator[tuple[str, str, str]]:
    for group, info in Config.model_fields.items():
        annotation = info.annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        for field in annotation.model_fields:
            yield f"ASYNC_BENTO_{group}_{field}".upper(), group, field


def bentoml_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory of the local stores, as BentoML finds it (`bentoml/_internal/configuration/containers.py`).

    Args:
        environ: Where to look for `BENTOML_HOME`.

    Returns:
        `$BENTOML_HOME`, with variables and `~` in it expanded, or `~/bentoml`.
    """
    home = environ.get("BENTOML_HOME")
    return Path(os.path.expandvars(home)).expanduser() if home else Path.home() / "bentoml"
