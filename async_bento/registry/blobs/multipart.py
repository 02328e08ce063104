"""S3's rules for the parts of a multipart upload, for the disk and for buckets that do not check them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from async_bento._core.s3 import bare_etag
from async_bento.registry.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from async_bento.registry.blobs.base import CompletedPart


def check_parts(
    parts: Sequence[CompletedPart], uploaded_sizes: Mapping[tuple[int, str], int], min_part_size: int
) -> None:
    """Raise `StorageError` unless the parts are ascending, uploaded, and of at least the minimum size but the last.

    `uploaded_sizes` holds bytes by part number and bare ETag.
    """
    if not parts:
        raise StorageError("InvalidPart", "the upload has no parts: list every part with its ETag")
    if any(later.number <= earlier.number for earlier, later in pairwise(parts)):
        raise StorageError("InvalidPartOrder", "the parts are out of order: list them in ascending order")
    for part in parts:
        size = uploaded_sizes.get((part.number, bare_etag(part.etag)))
        if size is None:
            raise StorageError("InvalidPart", f"part {part.number} is invalid: not uploaded, or its ETag differs")
        if size < min_part_size and part is not parts[-1]:
            raise StorageError(
                "EntityTooSmall",
                f"part {part.number} is too small: {size} bytes, but all parts except the last need {min_part_size}",
            )
