"""Digests of the files of a tar that arrives in chunks."""

from __future__ import annotations

import hashlib

import pytest

from async_bento.config import Limits
from async_bento.transfer.tar.digests import FileDigests
from async_bento.transfer.tar.index import TarIndex
from tests.builders import random_bytes
from tests.tar.tars import END, block, directory, symlink

FILES = {"a": random_bytes(700, 1), "d/empty": b"", "d/b": random_bytes(1024, 2), "not chosen": b"x"}
TAR = (
    block("a", content=FILES["a"])
    + directory("d")
    + block("d/empty")
    + symlink("d/to", "b")
    + block("d/b", content=FILES["d/b"])
    + block("not chosen", content=b"x")
    + END
)


@pytest.mark.parametrize("step", [1, 100, 511, 700, 5000])
def test_digests_of_any_chunks_are_same(step: int) -> None:
    index = TarIndex(Limits())
    index.feed(TAR)
    chosen = [index.entries[path] for path in ("a", "d/empty", "d/b")]
    digests = FileDigests(index, chosen)
    data = b"".join(TAR[piece.start : piece.stop] for piece in digests.pieces)

    digests.feed(data[: len(data) - 1000])
    digests.restart()
    assert digests.digests == {}
    for start in range(0, len(data), step):
        digests.feed(data[start : start + step])

    found = {entry.member.path: digests.digests[entry.content] for entry in chosen}
    assert found == {path: hashlib.blake2b(FILES[path]).digest() for path in found}
