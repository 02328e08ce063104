"""What an upload sends: a tar whose ranges can be read, and read again.

The tar is that of a directory, or that of an item in another registry (`copy.py`).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

from async_bento._core.s3 import MAX_PARTS, MIN_PART_SIZE
from async_bento.config import MiB
from async_bento.transfer.body import TarBody
from async_bento.transfer.http import ByteRange

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from async_bento.progress.events import Progress
    from async_bento.transfer.body import UploadBody
    from async_bento.transfer.http import TransferPool
    from async_bento.transfer.tar.plan import TarPlan

    BodyContext: TypeAlias = AbstractAsyncContextManager[UploadBody]


class UploadSource(Protocol):
    """A tar that is uploaded.

    `size` is in bytes. `is_sequential`: whether its parts must be sent one after the other.
    """

    size: int
    is_sequential: bool

    def choose_part_size(self, wanted: int, threads: int) -> int:
        """Choose the part size in bytes, for `threads` parts in flight."""
        ...

    async def fingerprint(self) -> str | None:
        """Hash what identifies the bytes: a later push resumes only an upload of the same; None to disable resuming."""
        ...

    async def check(self) -> None:
        """Raise an error if the tar has changed since it was found."""
        ...

    def whole(self, progress: Progress, *, digest: bool) -> UploadBody:
        """The body of an upload in one request; `digest`: whether its MD5 is needed."""
        ...

    def part(self, byte_range: ByteRange, progress: Progress, *, digest: bool) -> BodyContext:
        """The body of a part, in a block that ends once it has arrived; entered in the order of the parts."""
        ...


class DirectorySource:
    """The tar of a directory, which is never written."""

    is_sequential = False

    def __init__(self, plan: TarPlan, pool: TransferPool) -> None:
        self.size = plan.size
        self._plan = plan
        self._pool = pool

    def choose_part_size(self, wanted: int, threads: int) -> int:
        """See `UploadSource`."""
        return choose_part_size(self.size, wanted, threads)

    async def fingerprint(self) -> str:
        """See `UploadSource`."""
        return await self._pool.threads.run(self._plan.fingerprint)

    async def check(self) -> None:
        """See `UploadSource`."""
        await self._pool.threads.run(self._plan.check_tree)

    def whole(self, progress: Progress, *, digest: bool) -> UploadBody:
        """See `UploadSource`."""
        return TarBody(self._plan, ByteRange(0, self.size), self._pool, progress, digest=digest)

    def part(self, byte_range: ByteRange, progress: Progress, *, digest: bool) -> BodyContext:
        """See `UploadSource`."""
        return nullcontext(TarBody(self._plan, byte_range, self._pool, progress, digest=digest))


def choose_part_size(size: int, wanted: int, threads: int) -> int:
    """Choose the part size in bytes: whole MiB, at most `wanted` unless 10,000 parts need more, never under 5 MiB.

    The parts make whole rounds of `threads`, so that no connection idles while others send the last parts.
    """
    # `api/verify.py` computes the parts of earlier pushes by this function: a change would make it miss their ETags.
    rounds = -(-size // (wanted * threads))
    needed = max(-(-size // (rounds * threads)), -(-size // MAX_PARTS))
    return max(-(-needed // MiB) * MiB, MIN_PART_SIZE)
