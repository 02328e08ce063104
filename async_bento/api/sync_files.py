"""RemoteFiles: the blocking counterpart of AsyncRemoteFiles."""

from __future__ import annotations

import io
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from async_bento.api.files import READ_AHEAD
from async_bento.errors import ClosedError

if TYPE_CHECKING:
    import os
    from builtins import list as list_of  # RemoteFiles has a method `list`
    from collections.abc import Generator, Sequence

    from async_bento._core.tag import Tag
    from async_bento.api.files import AsyncRemoteFile, AsyncRemoteFiles, RemoteEntry
    from async_bento.api.loop_thread import LoopThread


class RemoteFiles:
    """The files of a bento or a model in the registry, blocking; `files` of an API makes it.

    The methods and parameters are those of `AsyncRemoteFiles`.
    """

    def __init__(self, files: AsyncRemoteFiles, loop: LoopThread) -> None:
        self._async = files
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncRemoteFiles", "RemoteFiles", 1)

    @property
    def tag(self) -> Tag:
        """The tag. Without a version, or with `latest`, the newest that was uploaded, found by the first call."""
        return self._async.tag

    def list(self) -> list_of[RemoteEntry]:
        """List all files, directories and links, sorted by path.

        Returns:
            The entries, without the root.

        Raises:
            NotFoundError: The registry has no such bento or model.
            BentoError: The list could not be read.
        """
        return self._loop.run(self._async.list)

    def read(self, path: str) -> bytes:
        """Read a file into memory.

        Args:
            path: The path, like `src/service.py`. Links are followed.

        Returns:
            The content.

        Raises:
            NotFoundError: There is no such file, or it is a directory.
            BentoError: The file could not be read.
        """
        return self._loop.run(self._async.read, path)

    @contextmanager
    def open(self, path: str) -> Generator[BinaryIO]:
        """Open a file for reads at any position, as a binary file of Python.

        Args:
            path: The path, like `models/weights.bin`. Links are followed.

        Yields:
            The open file.

        Raises:
            NotFoundError: There is no such file, or it is a directory.
            BentoError: The file could not be opened, or a later read failed.

        Examples:
            >>> with api.models.files("iris_weights").open("weights.zip") as file:
            ...     names = zipfile.ZipFile(file).namelist()
        """
        opened = _Entered(self._async.open(path))
        file = self._loop.run(opened.enter)
        try:
            with io.BufferedReader(_RawFile(file, self._loop), READ_AHEAD) as buffered:
                yield buffered
        finally:
            with suppress(ClosedError):  # the end of the API has closed the file
                self._loop.run(opened.exit)

    def extract(
        self,
        patterns: str | Sequence[str],
        directory: str | os.PathLike[str],
        *,
        exclude: str | Sequence[str] = (),
        force: bool = False,
    ) -> list_of[RemoteEntry]:
        """Download some of the files into a directory, under their paths.

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
        """
        return self._loop.run(self._async.extract, patterns, directory, exclude=exclude, force=force)


class _Entered:
    """An async context manager, entered and exited by two calls on the loop."""

    def __init__(self, manager: AbstractAsyncContextManager[AsyncRemoteFile]) -> None:
        self._manager = manager

    async def enter(self) -> AsyncRemoteFile:
        return await self._manager.__aenter__()

    async def exit(self) -> None:
        # Without the error of the block: the manager closes the file alike.
        await self._manager.__aexit__(None, None, None)


class _RawFile(io.RawIOBase):
    """An open remote file, for a BufferedReader."""

    def __init__(self, file: AsyncRemoteFile, loop: LoopThread) -> None:
        super().__init__()
        self._file = file
        self._loop = loop

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._loop.run(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)
