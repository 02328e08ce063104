"""The bytes of a tar → a directory, safely, as they arrive.

Nothing is read back, nothing waits for the end but links and the modes of directories, and no tar lies on disk.
"""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from async_bento.config import MiB
from async_bento.errors import StoreError, UnsafeArchiveError
from async_bento.transfer.tar.checkpoint import Checkpoint, OpenFile
from async_bento.transfer.tar.decompress import MAGIC_SIZE, decompressor_for
from async_bento.transfer.tar.headers import EXTENSIONS, Member, merge, read_extension, read_header
from async_bento.transfer.tar.safety import DEFAULT_LIMITS, member_name, quoted
from async_bento.transfer.tar.writer import Tree

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from async_bento.config import Limits
    from async_bento.transfer.tar.decompress import Decompressor

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_END_BLOCKS = 2

_MAX_FILL = MiB
"""The zeros that may follow the end: tar fills a record, of 10 KiB by default, and of 1 MiB by `tar -b 2048`."""


class _Whole(NamedTuple):
    """The members that are on the disk as they should be, and the byte of the tar behind them."""

    position: int
    members: int
    files: int
    bytes_written: int


class Extractor:
    """Extracts a tar that is fed to it in pieces of any size: plain, or in gzip, bzip2 or xz.

    It blocks, so each call belongs into a thread; any thread, but one call at a time. Memory is bounded by the limits;
    the formula is theirs.

    Files keep their contents, times and modes, minus set-uid, set-gid, sticky and write permission for everyone. Owners
    and extended attributes are not restored. What is no file, directory or link, or would reach outside, is refused,
    and so is the whole tar, and one that is broken or not whole; what has been written until then is the caller's to
    remove.

    Args:
        destination: A directory that is there and empty.
        limits: What the tar may hold.
        announced: How much content it should have, in bytes; 0 where nobody says.
        checkpoint: How far another extractor of the same tar had come in this directory. What is fed begins there, and
            what the other wrote behind it is written anew.

    Attributes:
        members: The members so far.
        files: The files so far, hard links among them.
        bytes_written: The content so far, in bytes.
        finished: Whether `close` has found everything in order.

    Raises:
        StoreError: The destination is not empty, or not as the other extractor left it.
    """

    def __init__(
        self,
        destination: Path,
        limits: Limits = DEFAULT_LIMITS,
        *,
        announced: int = 0,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        begin = checkpoint or Checkpoint()
        self.members = begin.members
        self.files = begin.files
        self.bytes_written = begin.bytes_written
        self.finished = False
        self._limits = limits
        self._announced = announced
        self._max_bytes = limits.content(announced)
        self._tree = Tree(destination, limits, checkpoint)
        self._usable = True
        self._position = begin.position
        self._reach = begin.reach
        self._whole = _Whole(begin.position, begin.members, begin.files, begin.bytes_written)
        self._head: bytearray | None = None if checkpoint else bytearray()
        self._decompressor: Decompressor | None = None
        self._block = bytearray()
        self._zero_blocks = 0
        self._fill = 0
        self._last: str | None = None
        self._described = 0
        self._records: dict[str, str] = {}
        self._extension: tuple[bytes, bytearray] | None = None
        self._file: Member | None = None
        self._left = 0
        self._padding = 0
        if begin.file is not None:
            self._go_on_with(begin.file)

    def _go_on_with(self, file: OpenFile) -> None:
        size = file.written + file.left
        self._file = Member(file.name, "file", size, file.mode, file.mtime_ns, "")
        self._last = file.name
        self._left = file.left
        self._padding = -size % _BLOCK

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
            UnsafeArchiveError: A member is refused; or the tar, or what it is compressed with, is broken.
            StoreError: The disk is full, or refuses; the message names the member.
            ValueError: The extractor was closed, or has failed before.
        """
        with self._guard():
            for piece in self._unpack(memoryview(data).cast("B")):
                self._consume(memoryview(piece))

    def close(self) -> None:
        """Check that the tar has come to its end, make its links, and set the modes and times of its directories.

        Raises:
            UnsafeArchiveError: A link leads outside, or the tar ends too early.
            StoreError: The disk is full, or refuses; the message names the member.
            ValueError: The extractor was closed, or has failed before.
        """
        with self._guard():
            if self._decompressor is not None:
                self._decompressor.close()
            if self._zero_blocks < _END_BLOCKS:
                raise UnsafeArchiveError("the tar ends too early")
            self._tree.finish()
            self._usable = False
            self.finished = True

    def checkpoint(self, reach: int) -> Checkpoint | None:
        """Say how far it has come. It can be asked after `abort`, but not when something has failed.

        Args:
            reach: How far it may come before the next checkpoint is taken, as a byte of the tar.

        Returns:
            Where another can go on; None for a compressed tar, which cannot be begun in its middle, and as long as it
            is not known whether it is one.
        """
        if self._decompressor is not None or self._head is not None:
            return None
        whole, file = self._whole, self._file
        if file is not None:  # which is said as it is, and not written again from its first byte
            name = member_name(file.name, self._limits)
            open_file = OpenFile(name, file.mode, file.mtime_ns, file.size - self._left, self._left)
            whole = _Whole(self._position, self.members, self.files, self.bytes_written)
        else:
            open_file = None
        return Checkpoint(
            **whole._asdict(),
            reach=reach,
            directories=self._tree.directories,
            links=self._tree.links,
            file=open_file,
        )

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
        except UnsafeArchiveError as error:
            self.abort()
            if error.member is None:
                error.member = self._last
                error.args = (f"{error}, {self._where()}",)
            raise
        except BaseException:
            self.abort()
            raise

    def _where(self) -> str:
        if self._last is None:
            return "before its first member"
        if self._left:
            return f"in {quoted(self._last)}, {self._left} bytes before its end"
        return f"at {quoted(self._last)}"

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
                self._position += len(piece)
                self._take(piece)
                data = data[len(piece) :]
            elif self._padding:
                skipped = min(self._padding, len(data))
                self._position += skipped
                self._padding -= skipped
                data = data[skipped:]
            elif self._zero_blocks == _END_BLOCKS:
                self._fill += len(data)
                if self._fill > _MAX_FILL:
                    raise UnsafeArchiveError(f"more than {_MAX_FILL} bytes follow the end of the tar")
                if bytes(data).count(0) != len(data):
                    raise UnsafeArchiveError("something follows the end of the tar")
                return
            else:
                missing = _BLOCK - len(self._block)
                self._block += data[:missing]
                self._position += min(missing, len(data))
                data = data[missing:]
                if len(self._block) == _BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    self._begin(block)

    def _begin(self, block: bytes) -> None:
        if block == _ZEROS:
            if self._described:
                raise UnsafeArchiveError("the tar ends after a header that describes no member")
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise UnsafeArchiveError("a block of zeros stands between the members of the tar")
        header = read_header(block)
        self._last = header.name
        if header.type in EXTENSIONS:
            self._described += _BLOCK + header.size  # without the block, a flood of empty ones would be free
            if self._described > self._limits.header:
                raise UnsafeArchiveError(
                    f"a member is described by more than {self._limits.header} bytes (Limits.header)"
                )
            self._extension = (header.type, bytearray())
            self._expect(header.size)
        else:
            member = merge(header, self._records)
            self._last, self._described, self._records = member.name, 0, {}
            self._tree.overwrites = self._position <= self._reach
            self._place(member)
            if self._file is None:
                self._mark()

    def _mark(self) -> None:
        """A member is whole: the next one begins behind its padding."""
        self._whole = _Whole(self._position + self._padding, self.members, self.files, self.bytes_written)

    def _place(self, member: Member) -> None:
        self.members += 1
        if self.members > self._limits.members:
            raise UnsafeArchiveError(f"the tar has more than {self._limits.members} members (Limits.members)")
        name = member_name(member.name, self._limits)
        if member.kind == "directory":
            self._tree.add_directory(name, member.mode, member.mtime_ns)
            return
        if not name:
            raise UnsafeArchiveError(f"the root of the tar is a {member.kind}", member=member.name)
        if member.kind == "symlink":
            self._tree.add_symlink(name, member.target, member.mtime_ns)
        elif member.kind == "hard link":
            self.files += 1
            self.bytes_written += self._tree.add_hard_link(name, self._source(member), self._check_room)
        else:
            self.files += 1
            self._check_room(member.size)
            self._tree.open_file(name)
            self._file = member
            self._expect(member.size)

    def _source(self, member: Member) -> str:
        try:
            return member_name(member.target, self._limits)
        except UnsafeArchiveError as error:
            raise UnsafeArchiveError(f"{quoted(member.name)} is refused: {error}", member=member.name) from error

    def _check_room(self, size: int) -> None:
        if self._max_bytes is not None and self.bytes_written + size > self._max_bytes:
            announced = f", of which {self._announced} were announced" if self._announced > 0 else ""
            raise UnsafeArchiveError(
                f"the tar holds more than the {self._max_bytes} bytes it may{announced} "
                "(Limits.size, max_ratio, allowance)"
            )

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
            records = read_extension(type_, bytes(payload))
            if any(self._records.get(keyword, value) != value for keyword, value in records.items()):
                # readers differ in which of them counts
                raise UnsafeArchiveError("two headers describe one member differently")
            self._records.update(records)
        elif self._file is not None:
            self._tree.close_file(self._file.mode, self._file.mtime_ns)
            self._file = None
            self._mark()
