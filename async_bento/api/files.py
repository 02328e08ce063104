"""AsyncRemoteFiles: the files of a bento or a model in the registry, read without a pull."""

from __future__ import annotations

import io
import tempfile
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

from async_bento._core.concurrency import ByteBudget, shielded
from async_bento.api.remote_item import RemoteItem
from async_bento.config import KiB, MiB
from async_bento.errors import ClosedError, NotFoundError, TransferError
from async_bento.store.directory import TargetDirectory
from async_bento.transfer.stream import FileOutput, tree_output
from async_bento.transfer.tar.selection import pieces_of, select
from async_bento.transfer.verify import ObjectChangedError

if TYPE_CHECKING:
    import os
    from builtins import list as list_of  # RemoteFiles has a method `list`
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from async_bento._core.tag import Tag
    from async_bento.api.kinds import Kind
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.transfer.remote import RemoteTar
    from async_bento.transfer.stream import TreeOutput
    from async_bento.transfer.tar.index import IndexEntry

T = TypeVar("T")

READ_AHEAD = 256 * KiB
"""Bytes that a small `read` requests at least: a request costs a round trip, however few bytes it is for."""

RANGES_AHEAD = 2
"""The largest ranges (`Transfer.range_size`) that an open file holds in memory, in flight or not yet read."""

SPOOLED = MiB
"""Bytes of a streamed file that are kept in memory; more are in a temporary file."""

_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 and 9999, since 1970


@dataclass(frozen=True)
class RemoteEntry:
    """A file, a directory or a link of a bento or a model in the registry.

    Attributes:
        path: The path in the bento or model, like `src/service.py`.
        type: `file`, `directory`, `symlink` or `hard link`.
        size: The size of a file in bytes; 0 for all others. A hard link has the content of its target.
        mode: The permission bits.
        mtime_ns: The modification time in nanoseconds since 1970.
        target: The target of a link; else empty.
    """

    path: str
    type: Literal["file", "directory", "symlink", "hard link"]
    size: int
    mode: int
    mtime_ns: int
    target: str = ""

    @property
    def modified(self) -> datetime:
        """The modification time, in UTC; a time outside the years 1 to 9999 is given as the nearest one in them."""
        # Not `fromtimestamp`: a tar may state any time, and Windows accepts none before 1970.
        return _EPOCH + timedelta(seconds=min(max(self.mtime_ns // _NS, _FIRST_SECOND), _LAST_SECOND))


class AsyncRemoteFiles:
    """The files of a bento or a model in the registry; `files` of an API makes it.

    The headers of the tar in the registry are read by ranges, and of its contents only what you ask for. The list of
    files is kept in memory as long as the registry has the same bytes. Where the server sends no ranges, or the tar is
    compressed, the tar is streamed up to the last byte that is needed. Nothing is open between two calls.
    """

    def __init__(self, resources: Resources, kind: Kind[Any, Any], tag: Tag) -> None:
        self._item = RemoteItem(resources, kind, tag)
        self._resources = resources
        self._kind = kind

    @property
    def tag(self) -> Tag:
        """The tag. Without a version, or with `latest`, the newest that was uploaded, found by the first call."""
        return self._item.tag

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.tag)!r})"

    async def list(self) -> list_of[RemoteEntry]:
        """List all files, directories and links, sorted by path.

        Returns:
            The entries, without the root.

        Raises:
            NotFoundError: The registry has no such bento or model.
            BentoError: The list could not be read.

        Examples:
            >>> for entry in await api.files("iris_classifier").list():
            ...     print(entry.path, entry.size)
        """

        async def entries(tar: RemoteTar) -> list_of[RemoteEntry]:
            await tar.load()
            return [_entry(entry) for path, entry in sorted(tar.index.entries.items()) if path]

        return await self._run("list", entries)

    async def read(self, path: str) -> bytes:
        """Read a file into memory.

        Args:
            path: The path, like `src/service.py`. Links are followed.

        Returns:
            The content.

        Raises:
            NotFoundError: There is no such file, or it is a directory.
            BentoError: The file could not be read.

        Examples:
            >>> text = (await api.files("iris_classifier").read("bento.yaml")).decode()
        """

        async def read(tar: RemoteTar) -> bytes:
            output = FileOutput(io.BytesIO())
            entry = await _find(tar, path, output)
            if entry is not None:
                await tar.copy_content(entry, output)
            output.file.seek(0)
            return output.file.read()

        return await self._run("read", read)

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[AsyncRemoteFile]:
        """Open a file for reads at any position.

        Of a tar that must be streamed, the content is put into a temporary file.

        Args:
            path: The path, like `models/weights.bin`. Links are followed.

        Yields:
            The open file.

        Raises:
            NotFoundError: There is no such file, or it is a directory.
            BentoError: The file could not be opened.

        Examples:
            >>> async with api.models.files("iris_weights").open("weights.safetensors") as file:
            ...     header = await file.read(8)
        """
        threads = self._resources.threads
        spool = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115 - closed in a thread
        output = FileOutput(spool)

        async def find(tar: RemoteTar) -> tuple[RemoteTar, IndexEntry | None]:
            entry = await _find(tar, path, output)
            if entry is not None and tar.is_streamed:
                await tar.copy_content(entry, output)
                entry = None
            return tar, entry

        try:
            tar, entry = await self._run("open", find)
            yield AsyncRemoteFile(self, path, (tar, entry) if entry else spool)
        finally:
            try:
                await shielded(threads.run(spool.close))
            except ClosedError:  # the API was closed while the file was open
                spool.close()

    async def extract(
        self,
        patterns: str | Sequence[str],
        directory: str | os.PathLike[str],
        *,
        exclude: str | Sequence[str] = (),
        force: bool = False,
    ) -> list_of[RemoteEntry]:
        """Download some of the files into a directory, under their paths.

        The rules are those of a pull into a directory: the files are in a hidden directory next to it until one rename
        puts them there, and modes follow the umask but for the executable bit.

        Args:
            patterns: Patterns of whole paths, as of `fnmatch`: `*` also matches `/`. `src/` means all files below.
            directory: The directory, absent or empty.
            exclude: Patterns of paths to leave out.
            force: Replace a bento or model in the directory, with all its other files.

        Returns:
            The extracted entries, in the order of the tar.

        Raises:
            NotFoundError: No path matches.
            PathExistsError: The directory is not empty.
            BentoError: The files could not be downloaded; the directory is unchanged.

        Examples:
            >>> files = api.files("iris_classifier:v1")
            >>> await files.extract("src/*.py", "sources", exclude="*_test.py")
        """
        include, without = _patterns(patterns), _patterns(exclude)
        target = TargetDirectory(self._kind.store.item_type, directory)
        threads = self._resources.threads

        async def extract(tar: RemoteTar) -> list_of[RemoteEntry]:
            await tar.load(stream=False)
            with self._resources.progress("pull", self._kind.word, self.tag) as progress:
                async with threads.entered(target.stage()) as staged:
                    async with threads.entered(tree_output(staged, self._resources.config.limits)) as output:
                        selected = await self._copy(tar, include, without, output, progress)
                        progress.enter("finishing")
                        await threads.run(output.close)
                    await threads.run(target.place, staged, f"files of {self.tag}", force=force)
            return [_entry(entry) for entry in selected]

        async with self._resources.call():
            await threads.run(target.check, force=force)
        return await self._run("extract", extract)

    async def _copy(
        self, tar: RemoteTar, include: Sequence[str], exclude: Sequence[str], output: TreeOutput, progress: Progress
    ) -> list_of[IndexEntry]:
        """Pass the files that match to an output, in one download if possible; raise NotFoundError if none does."""
        is_streamed = not tar.index.is_complete
        is_copied = is_streamed and await tar.copy_matching(include, exclude, output, progress)
        selected = select(tar.index, include, exclude)
        if not selected:
            raise NotFoundError(f"no file matches {', '.join(include)}. `async-bento ls {self.tag}` shows all")
        if not is_copied:
            if is_streamed:
                await self._resources.threads.run(output.restart)
                progress.restart(": a hard link leads to a file that was left out")
            await tar.copy(pieces_of(tar.index, selected), output, progress)
        return selected

    async def _run(self, verb: str, operation: Callable[[RemoteTar], Awaitable[T]]) -> T:
        return await self._item.run(f"{verb} files of", operation)


class AsyncRemoteFile:
    """An open file of a bento or a model in the registry; `open` of `AsyncRemoteFiles` makes it.

    Attributes:
        size: The size in bytes.
    """

    def __init__(self, files: AsyncRemoteFiles, path: str, source: tuple[RemoteTar, IndexEntry] | IO[bytes]) -> None:
        self._files = files
        self._path = path
        self._source = source
        self._position = 0
        self._ahead = b""
        self._ahead_start = 0
        self.size = source[1].member.size if isinstance(source, tuple) else source.seek(0, io.SEEK_END)

    async def read(self, size: int = -1) -> bytes:
        """Read from the current position.

        Args:
            size: The most bytes to read; all up to the end if negative.

        Returns:
            The bytes, fewer than `size` only at the end of the file.

        Raises:
            TransferError: The item was pushed again since the file was opened.
            BentoError: The bytes could not be read.
        """
        stop = self.size if size < 0 else min(self._position + size, self.size)
        offset = self._position - self._ahead_start
        data = self._ahead[offset : offset + stop - self._position] if offset >= 0 else b""
        start = self._position + len(data)
        if start < stop:
            end = min(max(stop, start + READ_AHEAD), self.size)
            more = b"".join([chunk async for chunk in self._chunks(start, end)])
            self._ahead, self._ahead_start = more if len(more) <= READ_AHEAD else b"", start
            data += more[: stop - start]
        self._position = max(self._position, stop)
        return data

    async def iter_chunks(self) -> AsyncGenerator[bytes]:
        """Iterate over the rest of the file, several ranges at once.

        Yields:
            The next bytes, of any number.

        Raises:
            TransferError: The item was pushed again since the file was opened.
            BentoError: The bytes could not be read.
        """
        async with aclosing(self._chunks(self._position, self.size)) as chunks:
            async for chunk in chunks:
                self._position += len(chunk)
                yield chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Change the position; requests nothing.

        Args:
            offset: The bytes from the place that `whence` names.
            whence: `io.SEEK_SET`, `io.SEEK_CUR` or `io.SEEK_END`.

        Returns:
            The new position in bytes from the start.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}: the position is negative")
        self._position = base + offset
        return self._position

    async def _chunks(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        resources = self._files._resources  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its maker
        if not isinstance(self._source, tuple):
            step = resources.config.transfer.io_chunk
            for position in range(start, stop, step):
                async with resources.call():
                    content = await resources.threads.run(_pread, self._source, position, min(position + step, stop))
                yield content
            return
        tar, entry = self._source
        # Not the window of all downloads, of which a caller that pauses would hold a part.
        window = ByteBudget(RANGES_AHEAD * resources.config.transfer.range_in_window)
        chunks = tar.chunks(entry.content + start, entry.content + stop, window)
        try:
            async with aclosing(chunks):
                while True:
                    async with resources.call():  # one step: the caller may use and close the API between two
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    yield chunk
        except ObjectChangedError as error:
            failed = f"cannot read {self._path} of {self._files.tag}"
            raise TransferError(f"{failed}: {error}. Open the file again.") from error


async def _find(tar: RemoteTar, path: str, output: FileOutput) -> IndexEntry | None:
    """The file that a path leads to; None if a tar that is streamed has put its content into the output."""
    path = path.strip("/")
    await tar.load(path)
    if tar.is_streamed and not tar.index.is_complete and await tar.copy_streamed(path, output):
        return None
    # A link may lead to any member, before or after it: that takes the whole list.
    if (entry := tar.index.entries.get(path)) is None or entry.member.type != "file":
        await tar.load()
        return tar.index.resolve(path)
    return entry


def _pread(file: IO[bytes], start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _entry(entry: IndexEntry) -> RemoteEntry:
    member = entry.member
    return RemoteEntry(member.path, member.type, member.size, member.mode & 0o7777, member.mtime_ns, member.target)


def _patterns(patterns: str | Sequence[str]) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else [*patterns]
