"""What the parts of a multipart upload must be like, wherever they lie."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from typing import TYPE_CHECKING

from async_bento.registry.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from async_bento.registry.blobs.base import ClaimedPart

_MD5 = re.compile(r"[0-9a-f]{32}")


def plain(etag: str) -> str:
    """An ETag to be compared with others.

    Args:
        etag: The ETag, with or without quotes.

    Returns:
        It, without quotes, in lower case.
    """
    return etag.strip('"').lower()


def etag_of_parts(claimed: Sequence[ClaimedPart]) -> str | None:
    """The ETag that S3 gives to what is made of parts: the MD5 of the parts' MD5s, and how many there are.

    Args:
        claimed: The parts.

    Returns:
        The ETag, quotes and all; None where a part's ETag is no MD5.
    """
    digests = [plain(part.etag) for part in claimed]
    if not all(map(_MD5.fullmatch, digests)):
        return None
    binary = b"".join(map(bytes.fromhex, digests))
    return f'"{hashlib.md5(binary, usedforsecurity=False).hexdigest()}-{len(digests)}"'


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
        size = arrived.get((part.number, plain(part.etag)))
        if size is None:
            raise StorageError("InvalidPart", f"part {part.number} has not arrived, or has another ETag")
        if size < min_part_size and part is not claimed[-1]:
            raise StorageError(
                "EntityTooSmall", f"part {part.number} has {size} bytes; all but the last need {min_part_size}"
            )
