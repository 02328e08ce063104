"""What the parts of a multipart upload must be like, wherever they lie."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from async_bento._core.s3 import bare_etag
from async_bento.registry.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from async_bento.registry.blobs.base import ClaimedPart


def check_parts(claimed: Sequence[ClaimedPart], arrived: Mapping[tuple[int, str], int], min_part_size: int) -> None:
    """Check the parts that an upload is to be completed with.

    Args:
        claimed: The parts, ascending.
        arrived: The size in bytes of what has arrived, by its number and its plain ETag.
        min_part_size: How small a part may be that is not the last, in bytes.

    Raises:
        StorageError: They are not what has arrived.
    """
    if not claimed:
        raise StorageError("InvalidPart", "every part must be named with the ETag it was answered with")
    if any(later.number <= earlier.number for earlier, later in pairwise(claimed)):
        raise StorageError("InvalidPartOrder", "the parts must be named in ascending order")
    for part in claimed:
        size = arrived.get((part.number, bare_etag(part.etag)))
        if size is None:
            raise StorageError("InvalidPart", f"part {part.number} has not arrived, or has another ETag")
        if size < min_part_size and part is not claimed[-1]:
            raise StorageError(
                "EntityTooSmall", f"part {part.number} has {size} bytes; all but the last need {min_part_size}"
            )
