"""A registry's directory: records in SQLite, bytes in plain files, and its secrets."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from async_bento._core.concurrency import Threads
from async_bento._core.files import atomic_write
from async_bento.errors import ConfigError
from async_bento.registry.backend import Opened, new_secret
from async_bento.registry.blobs.disk import LocalBlobs
from async_bento.registry.blobs.endpoints import Storage
from async_bento.registry.blobs.presign import Presigner
from async_bento.registry.records.sqlite import SqliteRecords

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


class Directory:
    """A directory that one registry at a time may use.

    Args:
        root: The directory; it is made where there is none, for nobody else to read.
        min_part_size: How small a part of a multipart upload may be that is not the last, in bytes.
        max_put_size: How much one presigned PUT may bring, in bytes.
    """

    def __init__(self, root: Path, *, min_part_size: int, max_put_size: int) -> None:
        self._root = root
        self._min_part_size = min_part_size
        self._max_put_size = max_put_size

    def __str__(self) -> str:
        return str(self._root)

    @asynccontextmanager
    async def open(self, *, api_token: str | None, url_expiry: float) -> AsyncGenerator[Opened]:
        """See `Backend`."""
        async with AsyncExitStack() as stack:
            try:
                threads = await self._claim(stack)
                key = await threads.run(_kept_secret, self._root / "signing_key")
                if api_token is None:
                    api_token = await threads.run(_kept_secret, self._root / "api_token")
                records = SqliteRecords(self._root / "registry.sqlite3")
                stack.push_async_callback(records.close)
                await records.open()
                blobs = LocalBlobs(
                    self._root / "blobs", Presigner(key.encode(), url_expiry), min_part_size=self._min_part_size
                )
                stack.callback(blobs.close)
                await blobs.start()
            except OSError as error:
                raise ConfigError(f"cannot use {self._root}: {error.strerror or error}") from error
            yield Opened(records, blobs, api_token, Storage(blobs, max_put_size=self._max_put_size).routes())

    async def _claim(self, stack: AsyncExitStack) -> Threads:
        """Make the directory, keep everybody else out, and return the thread to use it from meanwhile."""
        threads = Threads(1)
        stack.callback(threads.close)
        await threads.run(partial(self._root.mkdir, mode=0o700, parents=True, exist_ok=True))
        # Not bound to the thread that took it: any worker may be the one to give it back.
        lock = FileLock(self._root / "lock", timeout=0, thread_local=False)
        held = ExitStack()
        stack.push_async_callback(threads.run, held.close)
        try:
            await threads.run(held.enter_context, lock)
        except Timeout as error:
            raise ConfigError(f"{self._root} is used by another registry") from error
        return threads


def _kept_secret(path: Path) -> str:
    """A secret that is made once, in a file that is for its owner alone."""
    with suppress(FileNotFoundError):
        path.chmod(0o600)
        if kept := path.read_text().strip():
            return kept
    secret = new_secret()
    # One temporary name, so that killed processes leave no more than one file.
    atomic_write(path, f"{secret}\n", durable=False, temp_path=path.with_name(f".{path.name}"))
    return secret
