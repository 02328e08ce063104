"""Extraction of a tar as its bytes arrive: no tar on the disk, nothing read back.

A chunk goes from `Extractor.feed` to `TreeWriter.write`; headers and rules are consulted once per member.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from async_bento.config import MiB
from async_bento.errors import StoreError, UnsafeArchiveError
from async_bento.transfer.tar.checkpoint import Checkpoint, PartialFile
from async_bento.transfer.tar.decompress import MAGIC_SIZE, decompressor_for
from async_bento.transfer.tar.headers import Member
from async_bento.transfer.tar.members import BLOCK, LIMIT_REMEDY, REMEDY, MemberParser
from async_bento.transfer.tar.safety import DEFAULT_LIMITS, LimitExceededError, quoted
from async_bento.transfer.tar.writer import TreeWriter

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from async_bento.config import Limits
    from async_bento.transfer.tar.decompress import GzipDecompressor

# Zeros that may follow the end: tar fills a record, of 10 KiB by default and of 1 MiB by `tar -b 2048`.
_MAX_FILL = MiB

_DISK_REMEDY = "Check the free space and the permissions of the disk."


class _Boundary(NamedTuple):
    """The end of the last complete member, where an extraction can resume, and the counts up to there."""

    position: int
    members: int
    files: int
    bytes_written: int


class Extractor:
    """Extracts a tar fed in chunks of any size, plain or gzip, into an empty directory.

    Calls block; they may come from any thread, one at a time. Files keep contents, times and the
    executable bit; other mode bits follow the umask, and owners and extended attributes are not restored. An unsafe or
    corrupt tar is refused as a whole; the caller removes what was extracted. Memory is bounded as `Limits` describes.

    `announced` is the content size in bytes by the registry, 0 where unknown. With a checkpoint of an earlier extractor
    in the same directory, the first byte fed is the byte at its `position`.
    """

    def __init__(
        self,
        destination: Path,
        limits: Limits = DEFAULT_LIMITS,
        *,
        announced: int = 0,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        start = checkpoint or Checkpoint()
        self.files = start.files
        self.bytes_written = start.bytes_written
        self.finished = False
        self._announced = announced
        self._max_bytes = limits.content(announced)
        self._writer = TreeWriter(destination, limits, checkpoint)
        self._usable = True
        self._position = start.position
        self._covered = start.covered
        self._boundary = _Boundary(start.position, start.members, start.files, start.bytes_written)
        # The first bytes, until the compression is known; only plain tars are resumed.
        self._head: bytearray | None = None if checkpoint else bytearray()
        self._decompressor: GzipDecompressor | None = None
        self._block = bytearray()
        self._fill = 0
        self._parser = MemberParser(limits, start.members)
        self._extension: bytearray | None = None
        self._file: Member | None = None
        self._payload_left = 0
        self._padding = 0
        if start.file is not None:
            self._resume_file(start.file)

    def _resume_file(self, file: PartialFile) -> None:
        size = file.written + file.left
        self._file = Member(file.path, file.path, "file", size, 0, file.mtime_ns, "")
        self._parser.last_name = file.path  # for messages: its header is not parsed again
        self._payload_left = file.left
        self._padding = -size % BLOCK

    @property
    def members(self) -> int:
        """The members so far."""
        return self._parser.members

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Extract the next bytes of the tar."""
        with self._translate_errors():
            for chunk in self._decompress(memoryview(data).cast("B")):
                self._parse(memoryview(chunk))

    def close(self) -> None:
        """Check that the tar is complete, make its symlinks, and set the times of its directories."""
        with self._translate_errors():
            if self._decompressor is not None:
                self._decompressor.close()
            if not self._parser.is_ended:
                raise UnsafeArchiveError("the tar is truncated")
            self._writer.finish(self._add_copy)
            self._usable = False
            self.finished = True

    def checkpoint(self, covered: int) -> Checkpoint | None:
        """Describe where another extractor can resume, also after `abort`, but not after an error.

        `covered` is the byte of the tar that this extractor will not pass before its next checkpoint. None is returned
        for a compressed tar, which cannot be resumed, and before enough bytes arrived to detect the compression.
        """
        if self._decompressor is not None or self._head is not None:
            return None
        boundary, file = self._boundary, None
        if self._file is not None:  # resume within the file: it may be most of the tar
            member = self._file
            written = member.size - self._payload_left
            file = PartialFile(member.path, member.mtime_ns, written, self._payload_left)
            boundary = _Boundary(self._position, self.members, self.files, self.bytes_written)
        return Checkpoint(
            **boundary._asdict(),
            covered=covered,
            directories=self._writer.directories,
            symlinks=self._writer.symlinks,
            file=file,
        )

    def abort(self) -> None:
        """Close the file being written, if any; extracted files stay."""
        self._usable = False
        self._writer.abort()

    @contextmanager
    def _translate_errors(self) -> Generator[None]:
        if not self._usable:
            raise ValueError("the extractor is closed")
        try:
            yield
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError):
                path = self._writer.current or "the root of the tar"
                raise StoreError(f"cannot write {path}: {error.strerror}. {_DISK_REMEDY}") from error
            if isinstance(error, UnsafeArchiveError):
                where = self._where() if error.member is None else ""
                member = self._parser.last_name if error.member is None else error.member
                remedy = LIMIT_REMEDY if isinstance(error, LimitExceededError) else REMEDY
                raise UnsafeArchiveError(f"{error}{where}. {remedy}", member=member) from error
            raise

    def _where(self) -> str:
        name = self._parser.last_name
        if name is None:
            return ", before its first member"
        if self._payload_left:
            return f", in {quoted(name)}, {self._payload_left} bytes before its end"
        return f", at {quoted(name)}"

    def _decompress(self, data: memoryview) -> Iterable[bytes | memoryview]:
        if self._head is not None:
            self._head += data
            if len(self._head) < MAGIC_SIZE:
                return ()
            head, self._head = bytes(self._head), None
            self._decompressor = decompressor_for(head)
            data = memoryview(head)
        return (data,) if self._decompressor is None else self._decompressor.feed(data)

    def _parse(self, data: memoryview) -> None:
        start, end = 0, len(data)
        while start < end:
            if self._payload_left:
                stop = min(start + self._payload_left, end)
                self._position += stop - start
                self._take_payload(data[start:stop])
            elif self._padding:
                stop = min(start + self._padding, end)
                self._position += stop - start
                self._padding -= stop - start
            elif self._parser.is_ended:
                self._check_fill(data[start:])
                return
            else:
                stop = min(start + BLOCK - len(self._block), end)
                self._position += stop - start
                self._block += data[start:stop]
                if len(self._block) == BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    self._take_header(block)
            start = stop

    def _check_fill(self, data: memoryview) -> None:
        self._fill += len(data)
        if self._fill > _MAX_FILL:
            raise UnsafeArchiveError(f"more than {_MAX_FILL} bytes follow the end of the tar")
        if bytes(data).count(0) != len(data):
            raise UnsafeArchiveError("garbage follows the end of the tar")

    def _take_header(self, block: bytes) -> None:
        member = self._parser.add_block(block)
        if member is not None:
            # The position is the end of the header: an interrupted run that had not read it has left no such member.
            self._writer.overwrite = self._position <= self._covered
            self._add(member)
            if self._file is None:
                self._mark_boundary()
        elif self._parser.extension_size is not None:
            self._extension = bytearray()
            self._expect_payload(self._parser.extension_size)

    def _mark_boundary(self) -> None:
        position = self._position + self._padding  # the next member starts after the padding
        self._boundary = _Boundary(position, self.members, self.files, self.bytes_written)

    def _add(self, member: Member) -> None:
        if member.type == "directory":
            self._writer.add_directory(member.path, member.mtime_ns)
        elif member.type == "symlink":
            self._writer.add_symlink(member.path, member.target, member.mtime_ns)
        elif member.type == "hard link":
            self.files += 1
            self.bytes_written += self._writer.add_hard_link(member.path, member.target, self._check_content)
        else:
            self.files += 1
            self._check_content(member.size)
            self._writer.open_file(member.path, member.mode)
            self._file = member
            self._expect_payload(member.size)

    def _check_content(self, size: int) -> None:
        """Refuse content beyond the limit before any of it is written."""
        if self._max_bytes is not None and self.bytes_written + size > self._max_bytes:
            announced = f" where {self._announced} were announced" if self._announced > 0 else ""
            raise LimitExceededError(
                f"the tar has more than {self._max_bytes} bytes of content{announced} "
                "(Limits.size, max_ratio, allowance)"
            )

    def _add_copy(self, size: int) -> None:
        """Count the copy of a symlink's target, before it is written."""
        self._check_content(size)
        self.bytes_written += size

    def _expect_payload(self, size: int) -> None:
        self._payload_left = size
        self._padding = -size % BLOCK
        if not size:
            self._end_payload()

    def _take_payload(self, chunk: memoryview) -> None:
        if self._extension is not None:
            self._extension.extend(chunk)
        else:
            self._writer.write(chunk)
            self.bytes_written += len(chunk)
        self._payload_left -= len(chunk)
        if not self._payload_left:
            self._end_payload()

    def _end_payload(self) -> None:
        if self._extension is not None:
            payload, self._extension = bytes(self._extension), None
            self._parser.add_extension(payload)
        elif self._file is not None:
            self._writer.close_file(self._file.mtime_ns)
            self._file = None
            self._mark_boundary()
