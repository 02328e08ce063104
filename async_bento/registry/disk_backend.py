"""The backend on a directory: records in SQLite, blobs in files, and the registry's secrets.

<root>/registry.sqlite3     see `records/sqlite.py`
<root>/blobs/               see `blobs/disk_files.py`
<root>/api_token            the token that clients must send
<root>/signing_key          the key of presigned URLs
<root>/lock                 held while a registry uses the directory
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from async_bento._core.concurrency import Threads
from async_bento._core.files import atomic_write
from async_bento.errors import ConfigError
from async_bento.registry.backend import OpenBackend, new_secret
from async_bento.registry.blobs.disk import DiskBlobs
from async_bento.registry.blobs.disk_endpoints import DiskEndpoints
from async_bento.registry.blobs.presign import Presigner
from async_bento.registry.records.sqlite import SqliteRecords

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

_DATABASE = "registry.sqlite3"


class DiskBackend:
    """A directory, created if it does not exist, which one registry at a time may use; sizes are bytes."""

    def __init__(self, root: Path, *, min_part_size: int, max_put_size: int) -> None:
        self._root = root
        self._min_part_size = min_part_size
        self._max_put_size = max_put_size

    def __str__(self) -> str:
        return str(self._root)

    @asynccontextmanager
    async def open(self, *, api_token: str | None, url_expiry: float) -> AsyncGenerator[OpenBackend]:
        """See `Backend`."""
        async with AsyncExitStack() as stack:
            try:
                threads = await self._lock_directory(stack)
                key = await threads.run(_read_or_create_secret, self._root / "signing_key")
                if api_token is None:
                    api_token = await threads.run(_read_or_create_secret, self._root / "api_token")
                records = SqliteRecords(self._root / _DATABASE)
                stack.push_async_callback(records.close)
                await records.open()
                presigner = Presigner(key.encode(), url_expiry)
                blobs = DiskBlobs(self._root / "blobs", presigner, min_part_size=self._min_part_size)
                stack.callback(blobs.close)
                await blobs.start()
            except OSError as error:
                raise ConfigError(f"cannot use {self._root}: {error.strerror or error}") from error
            yield OpenBackend(records, blobs, api_token, DiskEndpoints(blobs, max_put_size=self._max_put_size).routes())

    def _make_directory(self) -> None:
        """Create the directory, unless it is the home of the local stores, whose files would be mixed with these."""
        if not (self._root / _DATABASE).exists():
            for name in (".yatai.yaml", "bentos", "models"):
                if (self._root / name).exists():
                    raise ConfigError(
                        f"cannot use {self._root}: its {name} belongs to a local store of BentoML. "
                        "Choose another directory."
                    )
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def _lock_directory(self, stack: AsyncExitStack) -> Threads:
        """Create and lock the directory; return a worker thread for its files."""
        threads = Threads(1)
        stack.callback(threads.close)
        await threads.run(self._make_directory)
        # By default, only the thread that acquired a FileLock may release it.
        lock = FileLock(self._root / "lock", timeout=0, thread_local=False)
        held = ExitStack()
        stack.push_async_callback(threads.run, held.close)
        try:
            await threads.run(held.enter_context, lock)
        except Timeout as error:
            raise ConfigError(
                f"cannot use {self._root}: another registry is using it. Stop that registry, or choose another "
                "directory."
            ) from error
        return threads


def _read_or_create_secret(path: Path) -> str:
    """Read a secret file that only its owner may read; create it if it is missing or empty."""
    with suppress(FileNotFoundError):
        path.chmod(0o600)
        if secret := path.read_text().strip():
            return secret
    secret = new_secret()
    # A fixed temporary name, so that killed processes leave one file at most.
    atomic_write(path, f"{secret}\n", durable=False, temp_path=path.with_name(f".{path.name}"))
    return secret
