"""The index of a tar that arrives in chunks."""

from __future__ import annotations

import pytest

from async_bento.config import Limits
from async_bento.errors import NotFoundError
from async_bento.transfer.tar.index import IndexEntry, TarIndex
from tests.tar.tars import END, block, directory, symlink

LONG = "long/" * 50 + "c"
TAR = directory("src") + block("src/a", content=b"x" * 700) + block(LONG, content=b"y") + symlink("b", "src/a") + END


def entries(step: int) -> list[IndexEntry]:
    """Index the tar, which arrives in chunks of `step` bytes, each of them once."""
    index, found = TarIndex(Limits()), list[IndexEntry]()
    for start in range(0, len(TAR), step):
        if not index.is_complete and start + step > index.next_byte:
            found += index.feed(TAR[max(start, index.next_byte) : start + step])
    index.check_end()
    return found


@pytest.mark.parametrize("step", [1, 100, 511, 513, 1000])
def test_index_of_split_headers_is_same(step: int) -> None:
    whole = entries(len(TAR))
    assert [(entry.member.path, entry.member.size) for entry in whole] == [
        ("src", 0),
        ("src/a", 700),
        (LONG, 1),
        ("b", 0),
    ]
    assert entries(step) == whole


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("src", "^src is a directory$"),
        ("empty", "^empty is a directory$"),
        ("long", "^long is a directory$"),  # without a member of its own
        ("lon", "^no lon$"),
        ("to", "^empty is a directory, to which to leads$"),
    ],
)
def test_missing_file_is_told_from_directory(path: str, message: str) -> None:
    index = TarIndex(Limits())
    index.feed(directory("empty") + symlink("to", "empty") + TAR)
    with pytest.raises(NotFoundError, match=message):
        index.resolve(path)
