"""The index of a tar that arrives in chunks."""

from __future__ import annotations

import pytest

from async_bento.config import Limits
from async_bento.errors import NotFoundError, UnsafeArchiveError
from async_bento.transfer.tar.index import IndexEntry, TarIndex
from async_bento.transfer.tar.safety import names_memory
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


NAMES = sum(names_memory(path, target) for path, target in [("src", ""), ("src/a", ""), (LONG, ""), ("b", "src/a")])


def test_index_has_names_as_text() -> None:
    index = TarIndex(Limits())
    index.feed(block("grüße") + block("模型" * 20) + END)
    assert [*index.entries] == ["grüße", "模型" * 20]


def test_index_limits_are_exact() -> None:
    TarIndex(Limits(members=4, names=NAMES)).feed(TAR)
    for limits in (Limits(members=3), Limits(names=NAMES - 1)):
        with pytest.raises(UnsafeArchiveError, match=r"\(Limits\..*Raise this limit") as raised:
            TarIndex(limits).feed(TAR)
        assert raised.value.member == "b"


def test_index_error_names_last_member() -> None:
    with pytest.raises(UnsafeArchiveError, match=r"corrupt tar.*Push the item again") as raised:
        TarIndex(Limits()).feed(block("before") + b"x" * 512)
    assert raised.value.member == "before"


@pytest.mark.parametrize("path", ["src/a", "../src//./a", "src/../src/a", "src/to/a", "src/to/../src/a"])
def test_index_resolves_path(path: str) -> None:
    index = TarIndex(Limits())
    index.feed(directory("src") + block("src/a") + symlink("src/to", "../src") + END)
    assert index.resolve(path).member.path == "src/a"


def test_index_follows_40_links() -> None:
    index = TarIndex(Limits())
    index.feed(block("40") + b"".join(symlink(f"{number}", f"{number + 1}") for number in range(-1, 40)) + END)
    assert index.follow("0") == "40"
    with pytest.raises(NotFoundError, match="-1 leads through more than 40 links"):
        index.follow("-1")


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
