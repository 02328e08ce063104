"""A tar plan, written to a file and extracted by bentoml's own extractor."""

from __future__ import annotations

import asyncio

import pytest

from async_bento._core.concurrency import Threads
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.tar.reader import TarReader
from tests.interop.homes import MiB, tree

pytestmark = pytest.mark.interop

RANGE = MiB + 7  # not a multiple of the block size


def write_out(plan, path):
    """Write the tar range by range, last range first, as concurrent parts do."""
    with path.open("wb") as tar:
        for start in reversed(range(0, plan.size, RANGE)):
            tar.seek(start)
            reader = TarReader(plan, start, min(start + RANGE, plan.size), io_chunk=MiB)
            tar.writelines(iter(reader.read, b""))
            reader.close()


@pytest.mark.parametrize("item", ["bentos/my_service/v1", "models/small/m1", "models/large/m2"])
async def test_bentoml_extracts_our_tar(with_bento, there, item):
    root = with_bento.path / item
    expected = tree(root, modes=False)
    (root / "models" / "small").mkdir(parents=True)
    threads = Threads(2)
    try:
        plan = await threads.run(TarPlan.scan, root, exclude=("models",))
        await threads.run(write_out, plan, there.path / "planned.tar")
    finally:
        threads.close()

    await there.calls(["extract", {"tar": "planned.tar", "into": "extracted"}])

    assert await asyncio.to_thread(tree, there.path / "extracted", modes=False) == expected
