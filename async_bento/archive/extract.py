"""The bytes of a tar → a directory, safely, as they arrive.

Nothing is read back, nothing waits for the end but links and the modes of directories, and no tar lies on disk.
"""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_bento.archive.decompress import MAGIC_SIZE, decompressor_for
from async_bento.archive.headers import EXTENSIONS, Member, merge, read_extension, read_header
from async_bento.archive.members import MAX_PATH, member_name
from async_bento.archive.tree import Tree
from async_bento.errors import ArchiveError, StoreError, UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from async_bento.archive.decompress import Decompressor

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_END_BLOCKS = 2

MAX_MEMBERS = 1_000_000
"""The most members a tar may have. It bounds the memory for names where all are directories or links."""


class Extractor:
    """Extracts a tar that is fed to it in pieces of any size: plain, or in gzip, bzip2 or xz.

    It blocks, so each call belongs into a thread; any thread, but one call at a time. Memory is bounded by the
    names of directories and symbolic links, 1 MiB for an extended header, 1 MiB for what was inflated, and 128 MiB for
    the dictionary of an xz.

    Files keep their contents, times and modes, minus set-uid, set-gid, sticky and write permission for everyone. Owners
    and extended attributes are not restored. What is no file, directory or link, or would reach outside, is refused,
    and so is the whole tar; what has been written until then is the caller's to remove.

    Args:
        destination: A directory that is there and empty.
        max_members: The most members.
        max_bytes: The most content, in bytes; None for as much as arrives.
        max_path: The longest path of a member, in bytes.

    Attributes:
        members: The members so far.
        files: The files so far, hard links among them.
        bytes_written: The content so far, in bytes.
        finished: Whether `close` has found everything in order.

    Raises:
        StoreError: The destination is not empty, or cannot be read.
    """

    def __init__(
        self,
        destination: Path,
        *,
        max_members: int = MAX_MEMBERS,
        max_bytes: int | None = None,
        max_path: int = MAX_PATH,
    ) -> None:
        self.members = 0
        self.files = 0
        self.bytes_written = 0
        self.finished = False
        self._max_members = max_members
        self._max_bytes = max_bytes
        self._max_path = max_path
        self._tree = Tree(destination)
        self._usable = True
        self._head: bytearray | None = bytearray()
        self._decompressor: Decompressor | None = None
        self._block = bytearray()
        self._zero_blocks = 0
        self._records: dict[str, str] = {}
        self._extension: tuple[bytes, bytearray] | None = None
        self._file: Member | None = None
        self._left = 0
        self._padding = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Extract some more.

        Args:
            data: The next bytes, as many as there are.

        Raises:
            UnsafeArchiveError: A member is refused.
            ArchiveError: The tar, or what it is compressed with, is broken.
            StoreError: The disk is full, or refuses; the message names the member.
            ValueError: The extractor was closed, or has failed before.
        """
        with self._guard():
            for piece in self._unpack(memoryview(data).cast("B")):
                self._consume(memoryview(piece))

    def close(self) -> None:
        """Check that the tar has come to its end, make its links, and set the modes and times of its directories.

        Raises:
            UnsafeArchiveError: A link leads outside.
            ArchiveError: The tar ends too early.
            StoreError: The disk is full, or refuses; the message names the member.
            ValueError: The extractor was closed, or has failed before.
        """
        with self._guard():
            if self._decompressor is not None:
                self._decompressor.close()
            if self._zero_blocks < _END_BLOCKS:
                raise ArchiveError(f"the tar ends too early, {self._where()}")
            self._tree.finish()
            self._usable = False
            self.finished = True

    def abort(self) -> None:
        """Let go of the file that is being written, if any; what was extracted stays."""
        self._usable = False
        self._tree.abort()

    @contextmanager
    def _guard(self) -> Generator[None]:
        if not self._usable:
            raise ValueError("the extractor is closed")
        try:
            yield
        except OSError as error:
            self.abort()
            raise StoreError(f"{error.strerror} while writing {self._tree.current or 'the directory'}") from error
        except BaseException:
            self.abort()
            raise

    def _where(self) -> str:
        if self._file is not None:
            return f"in {self._file.name!r}, {self._left} bytes short"
        return f"after {self.members} members" if self.members else "before its first member"

    def _unpack(self, data: memoryview) -> Iterable[bytes | memoryview]:
        if self._head is not None:
            self._head += data
            if len(self._head) < MAGIC_SIZE:
                return ()
            head, self._head = bytes(self._head), None
            self._decompressor = decompressor_for(head)
            data = memoryview(head)
        return (data,) if self._decompressor is None else self._decompressor.feed(data)

    def _consume(self, data: memoryview) -> None:
        while data:
            if self._left:
                piece = data[: self._left]
                self._take(piece)
                data = data[len(piece) :]
            elif self._padding:
                skipped = min(self._padding, len(data))
                self._padding -= skipped
                data = data[skipped:]
            elif self._zero_blocks == _END_BLOCKS:
                if bytes(data).count(0) != len(data):
                    raise ArchiveError("something follows the end of the tar")
                return
            else:
                missing = _BLOCK - len(self._block)
                self._block += data[:missing]
                data = data[missing:]
                if len(self._block) == _BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    self._begin(block)

    def _begin(self, block: bytes) -> None:
        if block == _ZEROS:
            if self._records:
                raise ArchiveError("the tar ends after a header that describes no member")
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise ArchiveError("a block of zeros stands between the members of the tar")
        header = read_header(block)
        if header.type in EXTENSIONS:
            self._extension = (header.type, bytearray())
            self._expect(header.size)
        else:
            self._place(merge(header, self._records))
            self._records = {}

    def _place(self, member: Member) -> None:
        self.members += 1
        if self.members > self._max_members:
            raise UnsafeArchiveError(f"the tar has more than {self._max_members} members", member=member.name)
        name = member_name(member.name, max_path=self._max_path)
        if member.kind == "directory":
            self._tree.add_directory(name, member.mode, member.mtime_ns)
            return
        if not name:
            raise UnsafeArchiveError(f"the root of the tar is a {member.kind}", member=member.name)
        if member.kind == "symlink":
            self._tree.add_symlink(name, member.target, member.mtime_ns)
        elif member.kind == "hard link":
            self.files += 1
            self.bytes_written += self._tree.add_hard_link(name, self._source(member))
            self._check_room(member)
        else:
            self.files += 1
            self._check_room(member)
            self._tree.open_file(name)
            self._file = member
            self._expect(member.size)

    def _source(self, member: Member) -> str:
        try:
            return member_name(member.target, max_path=self._max_path)
        except UnsafeArchiveError as error:
            raise UnsafeArchiveError(f"{member.name!r} is refused: {error}", member=member.name) from error

    def _check_room(self, member: Member) -> None:
        if self._max_bytes is not None and self.bytes_written + member.size > self._max_bytes:
            raise UnsafeArchiveError(f"the tar holds more than {self._max_bytes} bytes", member=member.name)

    def _expect(self, size: int) -> None:
        self._left = size
        self._padding = -size % _BLOCK
        if not size:
            self._complete()

    def _take(self, piece: memoryview) -> None:
        if self._extension is not None:
            self._extension[1].extend(piece)
        else:
            self._tree.write(piece)
            self.bytes_written += len(piece)
        self._left -= len(piece)
        if not self._left:
            self._complete()

    def _complete(self) -> None:
        if self._extension is not None:
            type_, payload = self._extension
            self._extension = None
            self._records.update(read_extension(type_, bytes(payload)))
        elif self._file is not None:
            self._tree.close_file(self._file.mode, self._file.mtime_ns)
            self._file = None
