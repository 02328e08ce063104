"""Detection of compressed tars, and gzip decompression of a stream in bounded memory, for all readers of tars."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from async_bento.config import KiB, MiB
from async_bento.errors import ArchiveError, UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC_SIZE = 10
"""Bytes needed to detect the compression."""

# After every gzip member zlib returns the rest of its input as a copy. Small pieces keep a flood of empty members
# linear: each costs a copy of 32 KiB at most.
_INPUT_CHUNK = 32 * KiB

# The bound on a decompression bomb: at most this much output exists at once, whatever the input expands to.
_OUTPUT_CHUNK = MiB

_GZIP = b"\x1f\x8b\x08"  # magic and "deflate", the only method (RFC 1952, 2.3.1)
_GZIP_WBITS = 16 + zlib.MAX_WBITS  # 16: zlib parses gzip headers and verifies the CRC and the size in the trailer
_UNSUPPORTED = {
    "xz": re.compile(rb"\xfd7zXZ\0"),
    # All ten bytes: the first member of a plain tar may well be named "BZh9...".
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL),
}


class GzipDecompressor:
    """Decompresses gzip members that follow one another, as parallel compressors write them."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_WBITS)

    def feed(self, data: memoryview) -> Iterator[bytes]:
        """Decompress the next bytes into chunks of at most 1 MiB."""
        for start in range(0, len(data), _INPUT_CHUNK):
            yield from self._decompress(bytes(data[start : start + _INPUT_CHUNK]))

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")  # zeros may pad a member, as on tapes; gzip(1) ignores them, too
                if not data:
                    return
                self._member = zlib.decompressobj(_GZIP_WBITS)
            try:
                output = self._member.decompress(data, _OUTPUT_CHUNK)
            except zlib.error as error:
                raise UnsafeArchiveError(f"the gzip stream of the tar is corrupt ({error})") from error
            if output:
                yield output
            # zlib has unread input in `unconsumed_tail`, and what follows the end of a member in `unused_data`.
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail

    def close(self) -> None:
        """Check that the last gzip member is complete."""
        if not self._member.eof:
            raise UnsafeArchiveError("the gzip stream of the tar is truncated")


def decompressor_for(head: bytes) -> GzipDecompressor | None:
    """Detect the compression by the first `MAGIC_SIZE` bytes; None for a plain tar, an error for bzip2 and xz."""
    if head.startswith(_GZIP):
        return GzipDecompressor()
    for name, magic in _UNSUPPORTED.items():
        if magic.match(head):
            raise ArchiveError(
                f"cannot extract the tar: it is compressed with {name}, and only plain and gzip tars are supported. "
                "Push the item again with async-bento or BentoML, which send plain tars."
            )
    return None
