"""Pieces of a tar that arrives as a stream, plain or compressed, and the outputs for pieces; for `RemoteTar`."""

from __future__ import annotations

import shutil
from collections import deque
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol

from async_bento.transfer.tar.decompress import MAGIC_SIZE, decompressor_for
from async_bento.transfer.tar.extract import Extractor
from async_bento.transfer.tar.index import TarIndex
from async_bento.transfer.tar.selection import END, KnownPieces

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from async_bento.config import Limits
    from async_bento.transfer.resumable_extract import ResumePoint
    from async_bento.transfer.tar.decompress import GzipDecompressor
    from async_bento.transfer.tar.selection import Piece, Selector


class EndOfPiecesError(Exception):
    """The rest of the tar is not needed."""


class OtherTarError(Exception):
    """The tar is not the one by whose index the pieces were chosen."""


class Output(Protocol):
    """Consumes the bytes of pieces, in order. Every method blocks, and runs in a worker thread."""

    def feed(self, data: bytes | memoryview) -> None:
        """Consume the next bytes."""
        ...

    def restart(self) -> None:
        """Drop all consumed bytes: they come again from the first."""
        ...


class FileOutput:
    """Writes the bytes to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def feed(self, data: bytes | memoryview) -> None:
        """Write the next bytes."""
        self.file.write(data)

    def restart(self) -> None:
        """Empty the file."""
        self.file.seek(0)
        self.file.truncate()


class TreeOutput:
    """Extracts the bytes, which are a tar without its end, into an empty directory."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        self._extractor = Extractor(directory, limits)

    def feed(self, data: bytes | memoryview) -> None:
        """Extract the next bytes."""
        self._extractor.feed(data)

    def restart(self) -> None:
        """Empty the directory."""
        self._extractor.abort()
        shutil.rmtree(self._directory)
        self._directory.mkdir()
        self._extractor = Extractor(self._directory, self._limits)

    def close(self) -> None:
        """Make the links, and set the times of the directories."""
        self._extractor.feed(END)
        self._extractor.close()

    def abort(self) -> None:
        """Close the file that is being written."""
        self._extractor.abort()


@contextmanager
def tree_output(directory: Path, limits: Limits) -> Generator[TreeOutput]:
    """Extract in a block that ends with `close`; enter and exit block."""
    output = TreeOutput(directory, limits)
    try:
        yield output
    finally:
        output.abort()


class StreamSink:
    """Indexes a tar as it arrives, and passes on the bytes of the pieces that a selector chooses.

    Raises `EndOfPiecesError` with the last of them.
    """

    def __init__(self, limits: Limits, selector: Selector | None = None, output: Output | None = None) -> None:
        self.resume_point: ResumePoint | None = None
        self._limits = limits
        self._selector = selector
        self._output = output
        self._is_done = False
        self._forget()

    def _forget(self) -> None:
        self.index = TarIndex(self._limits)
        self._pieces = deque(() if self._selector is None else self._selector.start(self.index))
        self._is_started = False  # whether the prefix of the next piece was passed on
        self._position = 0
        self._head = bytearray()
        self._decompressor: GzipDecompressor | None = None

    def start(self, total: int | None, etag: str | None, next_checkpoint: Callable[[int], int] | None = None) -> None:
        """Take the size and the ETag of the tar, which do not matter."""

    def restart(self) -> None:
        """Drop all consumed bytes, unless the pieces are complete."""
        if self._is_done:  # `download` restarts the sink of a whole tar after every error, this end included
            return
        self._forget()
        if self._output is not None:
            self._output.restart()

    def feed(self, data: Sequence[bytes | memoryview]) -> None:
        """Consume the next bytes."""
        for chunk in data:
            if len(self._head) >= MAGIC_SIZE:
                self._decompress(memoryview(chunk))
                continue
            self._head += chunk
            if len(self._head) >= MAGIC_SIZE:
                head = bytes(self._head)
                self._decompressor = decompressor_for(head[:MAGIC_SIZE])
                self._decompress(memoryview(head))

    def close(self) -> None:
        """Check that the tar is complete, and that it has all pieces."""
        if self._decompressor is not None:
            self._decompressor.close()
        self.index.check_end()
        if self._pieces:
            raise OtherTarError

    def _decompress(self, chunk: memoryview) -> None:
        if self._decompressor is None:
            self._take(chunk)
        else:
            for piece in self._decompressor.feed(chunk):
                self._take(memoryview(piece))

    def _take(self, chunk: memoryview) -> None:
        start, self._position = self._position, self._position + len(chunk)
        found = self.index.feed(chunk[max(0, self.index.next_byte - start) :])
        if self._selector is None:
            return
        assert self._output is not None, "a selector has an output"
        for entry in found:
            self._pieces.extend(self._selector.add(entry))
        while self._pieces and self._pass_on(self._output, self._pieces[0], chunk, start):
            self._pieces.popleft()
            self._is_started = False
        if self._selector.is_done and not self._pieces:
            self._is_done = True
            raise EndOfPiecesError

    def _pass_on(self, output: Output, piece: Piece, chunk: memoryview, start: int) -> bool:
        """Pass on what a chunk has of a piece; whether the piece is complete."""
        if piece.start > self._position:
            return False
        is_same = self.index.entries.get(piece.entry.member.path) == piece.entry
        if not isinstance(self._selector, KnownPieces):
            is_same = True  # the selector has chosen the pieces from the index of this stream
        elif not is_same and (self.index.is_complete or self.index.next_byte > piece.entry.content):
            raise OtherTarError
        if not self._is_started:
            self._is_started = True
            output.feed(piece.prefix)
        output.feed(chunk[max(0, piece.start - start) : max(0, piece.stop - start)])
        return is_same and piece.stop <= self._position
