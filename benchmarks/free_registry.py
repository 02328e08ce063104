"""A registry whose presigned URLs lead to a storage that discards uploads and serves ready files.

python benchmarks/free_registry.py --storage http://127.0.0.1:8333/bench --directory /dev/shm/registry

The API and the records are those of `async_bento.registry`; only the blobs are elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from aiohttp import web

from async_bento.registry.app import Api
from async_bento.registry.backend import OpenBackend
from async_bento.registry.records.database import Database, parse_database_url
from async_bento.registry.records.sql import Records
from async_bento.registry.transmission import TransmissionPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from async_bento.registry.blobs.base import CompletedPart, OpenBlob


class FreeBlobs:
    """The URLs of the storage, which keeps no upload; nothing goes through the registry."""

    def __init__(self, storage: str) -> None:
        self._storage = storage

    async def presign_put(self, key: str) -> str:
        return f"{self._storage}/{key}"

    async def presign_get(self, key: str) -> str:
        return f"{self._storage}/{key}"

    async def start_multipart(self, key: str) -> str:
        return "upload"

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        return f"{self._storage}/{key}?partNumber={part_number}&uploadId={upload_id}"

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> None:
        """Accept any parts."""

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> NoReturn:
        raise NotImplementedError

    async def delete(self, key: str) -> NoReturn:
        raise NotImplementedError

    def open(self, key: str) -> AbstractAsyncContextManager[OpenBlob]:
        raise NotImplementedError


async def serve(storage: str, directory: Path) -> None:
    """Serve until the process is terminated; print the endpoint and the token."""
    database, token = Database(parse_database_url(f"sqlite:///{directory}/registry.sqlite3")), "token"
    await database.open()
    api = Api(OpenBackend(Records(database), FreeBlobs(storage), token), TransmissionPolicy("presigned_url"))
    runner = web.AppRunner(api.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", token, sep="\n", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Run the registry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True, help="the URL of the bucket")
    parser.add_argument("--directory", type=Path, required=True, help="the directory of the records")
    options = parser.parse_args()
    asyncio.run(serve(options.storage, options.directory))


if __name__ == "__main__":
    main()
