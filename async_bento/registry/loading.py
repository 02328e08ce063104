"""Imports of what the client alone does not need: the database, the storages, the mirror and the pages."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from async_bento._core.concurrency import run_in_new_thread
from async_bento._core.s3 import MAX_PUT_SIZE, MIN_PART_SIZE
from async_bento.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.backend import Backend
    from async_bento.registry.pages.views import Pages
    from async_bento.registry.s3_bucket import S3Bucket


async def load_module(name: str) -> Any:
    """Import a module in a thread, since that reads many files."""
    try:
        return await run_in_new_thread(import_module, name)
    except ModuleNotFoundError as error:
        raise ConfigError(f'cannot start the registry: {error}. Run: pip install "async-bento[registry]"') from error


async def load_backend(
    *,
    root: Path | None,
    database: str | None,
    bucket: S3Bucket | None,
    min_part_size: int = MIN_PART_SIZE,
    max_put_size: int = MAX_PUT_SIZE,
    min_free: int = 0,
    immutable: bool = False,
) -> Backend:
    """Describe where a registry keeps its data; see `Backend`."""
    module = await load_module("async_bento.registry.backend")
    backend: Backend = module.Backend(root, database, bucket, min_part_size, max_put_size, min_free, immutable)
    return backend


async def load_pages() -> type[Pages]:
    """Import the pages."""
    pages: type[Pages] = (await load_module("async_bento.registry.pages.views")).Pages
    return pages
