"""gzip, bzip2 and xz, as the bytes arrive, in bounded memory."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from typing import TYPE_CHECKING, Protocol

from async_bento.config import KiB, MiB
from async_bento.errors import UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC_SIZE = 10
"""The bytes to see before it is known what a stream is."""

_INPUT = 32 * KiB
"""What a decompressor is given at once. It hands the rest of it back behind every stream, so a flood of empty streams
costs a copy of so much for each."""

_OUTPUT = MiB
"""What a decompressor may give at once, however much its input would inflate to."""

_XZ_MEMORY = 128 * MiB
"""What xz may take for its dictionary; `xz -9` takes 65 MiB, a header may ask for 4 GiB."""

# All ten bytes of bzip2, because the name of the first member of a plain tar may well begin with BZh.
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL)


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib with the manners of `bz2` and `lzma`: it keeps the input it had no room to answer."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _xz() -> _Stream:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


class Decompressor:
    """Decompresses one stream, or several one behind the other, as parallel compressors write them.

    Args:
        name: What it is, for messages.
        open_stream: Makes the decompressor of one stream.
    """

    def __init__(self, name: str, open_stream: Callable[[], _Stream]) -> None:
        self._name = name
        self._open_stream = open_stream
        self._stream = open_stream()

    def feed(self, data: memoryview) -> Iterator[bytes]:
        """Decompress some more.

        Args:
            data: The compressed bytes.

        Yields:
            What they inflate to, at most 1 MiB at once.

        Raises:
            UnsafeArchiveError: The stream is broken, or followed by something that is neither zeros nor another stream.
        """
        for begin in range(0, len(data), _INPUT):
            yield from self._feed(bytes(data[begin : begin + _INPUT]))

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._stream.eof:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._stream = self._open_stream()
            try:
                output = self._stream.decompress(data, _OUTPUT)
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise UnsafeArchiveError(f"the {self._name} stream is broken: {error}") from error
            if output:
                yield output
            if self._stream.eof:
                data = self._stream.unused_data
            elif self._stream.needs_input:
                return
            else:
                data = b""

    def close(self) -> None:
        """Check that the stream has come to its end.

        Raises:
            UnsafeArchiveError: It has not.
        """
        if not self._stream.eof:
            raise UnsafeArchiveError(f"the {self._name} stream ends too early")


def decompressor_for(head: bytes) -> Decompressor | None:
    """Find out what a stream is.

    Args:
        head: Its first `MAGIC_SIZE` bytes.

    Returns:
        What decompresses it, or None where it is not compressed.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return Decompressor("gzip", _Gzip)
    if head.startswith(b"\xfd7zXZ\0"):
        return Decompressor("xz", _xz)
    if _BZIP2.match(head):
        return Decompressor("bzip2", bz2.BZ2Decompressor)
    return None
