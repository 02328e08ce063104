"""S3's limits, and its ETags of multipart uploads, for the client and for the registry."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_PART_SIZE = 5 * 1024**2
"""Bytes of the smallest part of a multipart upload; the last one may be smaller."""

MAX_PARTS = 10_000
"""Parts of one upload; they are numbered from 1."""

MAX_PUT_SIZE = 5 * 1024**3
"""Bytes of the largest single PUT, and of the largest part; S3 refuses a larger one with EntityTooLarge."""

_MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag of parts ends in their number, like `-3`


def bare_etag(etag: str) -> str:
    """Drop an ETag's quotes and its upper case, so that two ETags compare."""
    return etag.strip('"').lower()


def is_md5(text: str) -> bool:
    """Return whether a bare ETag is an MD5 in hexadecimal."""
    return _MD5.fullmatch(text) is not None


def etag_of_parts(etags: Sequence[str]) -> str | None:
    """Return the quoted ETag of an object made of parts: the MD5 of the parts' MD5s, and the number of parts.

    None where the ETag of a part is no MD5, as with encryption by a key of KMS.
    """
    digests = [bare_etag(etag) for etag in etags]
    if not all(map(is_md5, digests)):
        return None
    # `usedforsecurity=False` here and elsewhere: an OpenSSL in FIPS mode refuses MD5 otherwise.
    binary = b"".join(map(bytes.fromhex, digests))
    return f'"{hashlib.md5(binary, usedforsecurity=False).hexdigest()}-{len(digests)}"'
