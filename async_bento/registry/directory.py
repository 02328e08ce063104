"""The directory of a registry, which one process at a time uses: its lock and its secrets.

<root>/registry.sqlite3     the records, unless they are in another database
<root>/blobs/               the bytes, unless they are in a bucket; see `blobs/disk_files.py`
<root>/api_token            the first token, unless another file holds it
<root>/signing_key          the key of presigned URLs
<root>/lock                 held while a registry uses the directory
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from secrets import token_hex, token_urlsafe
from typing import TYPE_CHECKING, cast

from filelock import FileLock, Timeout

from async_bento._core import platform
from async_bento._core.concurrency import Threads
from async_bento._core.files import atomic_write
from async_bento.errors import ConfigError
from async_bento.registry.tokens import generate_token

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

DATABASE = "registry.sqlite3"
BLOBS = "blobs"
TOKEN_FILE = "api_token"  # noqa: S105 - a name
SIGNING_KEY = "signing_key"
SECRETS = (TOKEN_FILE, SIGNING_KEY)


class Directory:
    """A locked directory of a registry."""

    def __init__(self, root: Path, threads: Threads) -> None:
        self.root = root
        self._threads = threads

    async def signing_key(self) -> str:
        """Read the key of presigned URLs, or create it."""
        return (await self._threads.run(_read_or_create_secret, self.root / SIGNING_KEY, token_urlsafe))[0]

    async def private_file(self, name: str) -> Path:
        """Create a file if it does not exist, and let its owner alone read it."""
        path = self.root / name
        await self._threads.run(path.touch, mode=0o600)
        await self._threads.run(path.chmod, 0o600)
        return path

    async def private_directory(self, name: str) -> Path:
        """Create a directory if it does not exist, and let its owner alone enter it."""
        path = self.root / name
        await self._threads.run(path.mkdir, mode=0o700, exist_ok=True)
        await self._threads.run(path.chmod, 0o700)
        return path


@asynccontextmanager
async def open_directory(root: Path) -> AsyncGenerator[Directory]:
    """Create a directory if it does not exist, and lock it; raise `ConfigError` if that is impossible."""
    async with AsyncExitStack() as stack:
        threads = Threads(1)
        stack.callback(threads.close)
        await threads.run(_make_directory, root)
        if not await stack.enter_async_context(try_lock(root, threads)):
            raise ConfigError(
                f"cannot use {root}: another registry is using it. Stop that registry, or choose another directory."
            )
        yield Directory(root, threads)


@asynccontextmanager
async def try_lock(root: Path, threads: Threads) -> AsyncGenerator[bool]:
    """Lock a directory, and yield whether that was possible: no registry has the lock."""
    # By default, only the thread that acquired a FileLock may release it.
    lock = FileLock(root / "lock", timeout=0, mode=0o600, thread_local=False)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(threads.entered(cast("AbstractContextManager[object]", lock)))
        except Timeout:
            is_locked = False
        else:
            is_locked = True
        yield is_locked


def _make_directory(root: Path) -> None:
    """Create a directory, unless it is the home of the local stores, whose files would be mixed with these."""
    if not (root / DATABASE).exists():
        for name in (".yatai.yaml", "bentos", "models"):
            if (root / name).exists():
                raise ConfigError(
                    f"cannot use {root}: its {name} belongs to a local store of BentoML. Choose another directory."
                )
    root.mkdir(mode=0o700, parents=True, exist_ok=True)


async def read_or_create_token(path: Path) -> tuple[str, bool]:
    """Read the token in a file, or create both; return the token, and whether it is new.

    Raise `ConfigError` for a file that holds no token or cannot be read or written.
    """
    threads = Threads(1)
    try:
        token, is_new = await threads.run(_read_or_create_secret, path, generate_token)
        check_token(token, str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"cannot use the token file {path}: {reason}. Pass another --token-file.") from error
    finally:
        threads.close()
    return token, is_new


def check_token(token: str, source: str) -> None:
    """Raise `ConfigError` for a token that no HTTP header can hold."""
    if not (token.isascii() and token.isprintable() and token.strip()):
        raise ConfigError(
            f"invalid {source}: it is empty or has characters other than printable ASCII. Use letters and digits."
        )


def _read_or_create_secret(path: Path, generate: Callable[[], str]) -> tuple[str, bool]:
    """Read a secret file that only its owner may read; create it if it is missing or empty.

    Copies of a registry may start together: all of them get the secret of the one that created the file.
    """
    if secret := _read_secret(path):
        return secret, False
    secret = generate()
    written = path.with_name(f".{path.name}.{token_hex(8)}")
    atomic_write(written, f"{secret}\n", durable=True)
    try:
        os.link(written, path)  # unlike a rename, it replaces no file
    except FileExistsError:
        if other := _read_secret(path):
            return other, False
        platform.replace(written, path)
    except OSError:  # a filesystem without hard links, where the last copy would win
        platform.replace(written, path)
    finally:
        platform.remove(written, missing_ok=True)
    return secret, True


def _read_secret(path: Path) -> str:
    with suppress(FileNotFoundError):
        secret = path.read_text(encoding="utf-8").strip()
        with suppress(OSError):  # a mounted secret belongs to another user
            path.chmod(0o600)
        return secret
    return ""
