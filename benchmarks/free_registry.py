"""A registry whose presigned URLs lead to a storage that discards uploads and serves ready files.

python benchmarks/free_registry.py --storage http://127.0.0.1:8333/bench --directory /dev/shm/registry

The API and the records are those of `async_bento.registry`; only the blobs are elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, cast

from aiohttp import web

from async_bento.registry.app import Api
from async_bento.registry.backend import assemble
from async_bento.registry.blobs.base import Content
from async_bento.registry.records.blobs import BlobRecords
from async_bento.registry.records.database import Database, parse_database_url
from async_bento.registry.records.sql import Records
from async_bento.registry.tokens import Actor
from async_bento.registry.transmission import TransmissionPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento.registry.blobs.base import Blobs, CompletedPart


class FreeBlobs:
    """The URLs of the storage, which keeps no upload; nothing goes through the registry."""

    def __init__(self, storage: str) -> None:
        self._storage = storage

    async def presign_put(self, key: str) -> str:
        return self._url(key)

    async def presign_get(self, key: str) -> str:
        return self._url(key)

    async def start_multipart(self, key: str) -> str:
        return "upload"

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        return f"{self._url(key)}?partNumber={part_number}&uploadId={upload_id}"

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> Content:
        """Accept any parts."""
        return Content(0, '"unknown"')

    def _url(self, key: str) -> str:
        """Return a URL without the id of the upload: the served file exists before the upload."""
        return f"{self._storage}/{key.rpartition('/')[0]}.tar"


async def serve(storage: str, directory: Path) -> None:
    """Serve until the process is terminated; print the endpoint and the token."""
    database, token = Database(parse_database_url(f"sqlite:///{directory}/registry.sqlite3")), "token"
    await database.open()
    records, blob_records = Records(database), BlobRecords(database)
    opened = assemble(records, blob_records, cast("Blobs", FreeBlobs(storage)), url_expiry=3600)
    await opened.tokens.set_first(token, by=Actor("registry"))
    api = Api(opened, TransmissionPolicy("presigned_url"))
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
