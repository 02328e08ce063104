"""Tars that exhaust memory, disk or time: each limit, and the cost until the limit is reached."""

from __future__ import annotations

import errno
import gzip
import random
import shutil
import sys
import tarfile
import tracemalloc
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento.config import KiB, Limits, MiB
from async_bento.errors import UnsafeArchiveError
from async_bento.transfer.tar.extract import Extractor
from async_bento.transfer.tar.safety import check_links, names_memory
from tests.tar.tars import END, block, directory, extract, forge, hard_link, pax, record, symlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.tar.conftest import AssertRefused
    from tests.tar.property import Surroundings

EXTENDED = [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]


@contextmanager
def memory_below(size: int) -> Iterator[None]:
    """Fail if the peak memory of a block is higher."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


def feed_until_refused(there: Path, pieces: Iterable[bytes], **limits) -> tuple[UnsafeArchiveError, int]:
    """Feed pieces until one is refused, and return the number of accepted ones."""
    with Extractor(there, **limits) as extractor:
        for number, piece in enumerate(pieces):
            try:
                extractor.feed(piece)
            except UnsafeArchiveError as error:
                return error, number
    raise AssertionError("it took everything")


# Members


def test_members_over_limit_refused(tmp_path: Path) -> None:
    members = (block(f"{number}") for number in count())
    error, taken = feed_until_refused(tmp_path, members, limits=Limits(members=50))
    assert (error.member, taken) == ("50", 50)
    assert "more than 50 members" in str(error)
    assert len(list(tmp_path.iterdir())) == 50


def test_empty_members_bounded_memory(tmp_path: Path) -> None:
    assert Limits().members == 1_000_000
    with Extractor(tmp_path) as extractor:
        extractor.feed(block("first"))
        with memory_below(64 * KiB):
            for number in range(3000):
                extractor.feed(block(f"a_name_of_usual_length_{number}"))


def test_repeated_directory_counts(tmp_path: Path) -> None:
    again = directory("./")
    error, taken = feed_until_refused(tmp_path, (again for _ in count()), limits=Limits(members=100))
    assert taken == 100
    assert error.member == "."


# Content


def test_content_over_limit_refused(surroundings: Surroundings, assert_refused: AssertRefused) -> None:
    fits = block("a", content=bytes(600)) + block("b", content=bytes(400))
    assert surroundings.feed(fits + END, limits=Limits(size=1000)) is None
    too_much = block("a", content=bytes(600)) + block("b", content=bytes(401))
    assert_refused(too_much, r"more than 1000 bytes of content \(Limits", "b", limits=Limits(size=1000))


@pytest.mark.parametrize(("announced", "limit"), [(600, 1250), (1, 52)])
def test_content_over_announced_refused(tmp_path: Path, announced: int, limit: int) -> None:
    data = block("a", content=bytes(limit)) + block("b", content=b"x")
    message = rf"more than {limit} bytes of content where {announced} were announced \(Limits"
    with pytest.raises(UnsafeArchiveError, match=message):
        extract(data + END, tmp_path, limits=Limits(allowance=50), announced=announced)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_header_false_size_refused(assert_refused: AssertRefused) -> None:
    claim = forge(block("a"), 124, b"77777777777\0")
    assert_refused(claim, "bytes of content", "a", limits=Limits(size=8**11 - 2), end=b"")
    assert_refused(claim, "the tar is truncated", "a", end=b"")


def test_hard_link_copy_over_limit(assert_refused: AssertRefused, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(path: Path, original: Path) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    def never(*_: object) -> None:
        raise AssertionError("it was copied")

    monkeypatch.setattr(Path, "hardlink_to", no_more)
    monkeypatch.setattr(shutil, "copyfileobj", never)
    data = block("a", content=bytes(600)) + hard_link("b", "a")
    assert_refused(data, "more than 1199 bytes of content", "b", limits=Limits(size=1199))


def test_gzip_bomb_bounded_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(block("bomb", content=bytes(48 * MiB)) + END)
    assert len(bomb) < 256 * KiB
    there = tmp_path / "there"
    with memory_below(8 * MiB):
        there.mkdir()
        with pytest.raises(UnsafeArchiveError, match="more than"):
            extract(bomb, there, limits=Limits(size=40 * MiB))
        assert not list(there.iterdir())
        extract(bomb, there)
    assert (there / "bomb").stat().st_size == 48 * MiB


def test_gzip_nested_bomb_refused(assert_refused: AssertRefused) -> None:
    inner = gzip.compress(random.Random(5).randbytes(2000))
    assert_refused(gzip.compress(inner), "not a tar", None, end=b"")


def test_header_sparse_bomb_refused(assert_refused: AssertRefused) -> None:
    real_size = b"\x80" + (1 << 61).to_bytes(11, "big")
    assert_refused(forge(block("hole", tarfile.GNUTYPE_SPARSE), 483, real_size), "its type .* is not a file", "hole")
    records = record("GNU.sparse.name", "hole") + record("GNU.sparse.realsize", str(1 << 61))
    assert_refused(pax(records) + block("a", content=b"0\n"), "sparse", "hole")


def test_end_endless_zeros_refused(tmp_path: Path) -> None:
    zeros = bytes(64 * KiB)
    error, taken = feed_until_refused(tmp_path, (block("a") + END if not n else zeros for n in count()))
    assert "more than 1048576 bytes follow the end" in str(error)
    assert (error.member, taken) == ("a", 17)


# Headers


@pytest.mark.parametrize("kind", EXTENDED)
def test_header_extended_over_limit(assert_refused: AssertRefused, kind: bytes) -> None:
    limits = Limits(header=64 * KiB)
    assert_refused(
        block("h", kind, size=64 * KiB),
        "extended headers of a tar member take more than 65536",
        "h",
        limits=limits,
        end=b"",
    )


@pytest.mark.parametrize("kind", EXTENDED)
def test_header_extended_endless(tmp_path: Path, kind: bytes) -> None:
    is_pax = kind in {tarfile.XHDTYPE, tarfile.XGLTYPE}
    records = (record(f"comment{number}", "x" * 1000) if is_pax else b"x" * 999 + b"\0" for number in count())
    headers = (block("h", kind, payload) for payload in records)
    with memory_below(MiB):
        error, taken = feed_until_refused(tmp_path, headers)
    assert error.member == "h"
    assert 30 < taken < 64


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_header_extended_empty_flood(tmp_path: Path, kind: bytes) -> None:
    error, taken = feed_until_refused(tmp_path, (block("h", kind) for _ in count()))
    assert (error.member, taken) == ("h", 128)


def test_header_limit_per_member(surroundings: Surroundings) -> None:
    described = (pax(record("comment", "x" * 900)) + block(f"{number}") for number in range(5))
    assert surroundings.feed(b"".join(described) + END, limits=Limits(header=2 * KiB)) is None


# Names


@pytest.mark.parametrize("make", [directory, lambda name: symlink(name, "x")], ids=["directories", "links"])
def test_names_over_limit_refused(tmp_path: Path, make: Callable[[str], bytes]) -> None:
    names = ("/".join([f"{number:0>250}"] * 2) for number in count())
    with memory_below(3 * MiB):
        error, taken = feed_until_refused(tmp_path, map(make, names), limits=Limits(names=MiB))
    assert "take more than 1048576 bytes of memory" in str(error)
    assert error.member is not None
    assert 300 < taken < 1100


@pytest.mark.posix("links without a privilege")
def test_names_limit_is_exact(surroundings: Surroundings, assert_refused: AssertRefused) -> None:
    data, names = directory("d") + symlink("link", "d"), names_memory("d") + names_memory("link", "d")
    assert surroundings.feed(data + END, limits=Limits(names=names)) is None
    assert_refused(data, f"take more than {names - 1} bytes", "link", limits=Limits(names=names - 1))


def test_names_of_parents_count(tmp_path: Path) -> None:
    members = (block("/".join([f"{number}", *"a" * 99, "f"])) for number in count())
    error, taken = feed_until_refused(tmp_path, members, limits=Limits(names=MiB))
    assert "take more than" in str(error)
    assert taken < MiB / 512 / 100


def test_growing_symlinks_refused() -> None:
    further = "/".join(["d" * 200] * 10)
    links = {"link0": further} | {f"link{number}": f"link{number - 1}/{further}" for number in range(1, 10)}
    paths = {"", further, f"{further}/{further}"}
    directories = {"/".join(path.split("/")[:parts]) for path in paths for parts in range(30)}
    with pytest.raises(UnsafeArchiveError, match="leads to a path longer than 4096 bytes") as raised:
        check_links(links, directories)
    assert raised.value.member == "link2"


def test_symlink_targets_stored_once() -> None:
    far = "/".join(["d" * 200] * 19)
    directories = {"", *("/".join(far.split("/")[:parts]) for parts in range(20))}
    links = {"far": far.rpartition("/")[0]} | {f"link{number}": f"far/{'d' * 200}" for number in range(2000)}
    links |= {f"gone{number}": f"far/{'e' * 200}" for number in range(2000)}
    with memory_below(4 * MiB):  # 4,000 paths of 3,819 bytes were 15 MiB
        check_links(links, directories)


# Depth


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE], ids=["file", "directory", "link"])
def test_depth_of_member_over_limit(assert_refused: AssertRefused, kind: bytes) -> None:
    name = "/".join("d" * 2000)
    assert_refused(block(name, kind, linkname="x"), "more than 128 levels deep", name)


def test_depth_of_dirs_over_limit(surroundings: Surroundings) -> None:
    nested = b"".join(directory("/".join("d" * depth)) for depth in range(1, 2000))
    error = surroundings.feed(nested + END)
    assert isinstance(error, UnsafeArchiveError)
    assert error.member == "/".join("d" * 129) + "/"


def test_depth_at_limit_is_removable(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    extract(block("./" + "/".join("d" * 128)) + END, there)
    shutil.rmtree(there)  # before Python 3.13 it recurses
    assert not there.exists()


# Time: none of these may be quadratic


def calls(function: Callable[[], object]) -> int:
    """Count the calls of functions, in Python and in C, that a call makes."""
    made = 0

    def count_one(frame: object, event: str, argument: object) -> None:
        nonlocal made
        made += event in {"call", "c_call"}

    sys.setprofile(count_one)
    try:
        function()
    finally:
        sys.setprofile(None)
    return made


def nested(number: int) -> bytes:
    return b"".join(block("/".join([f"{file // 10}", *"d" * 20, f"{file}"])) for file in range(number))


FLOODS: dict[str, Callable[[int], bytes]] = {
    "files": lambda number: b"".join(block(f"{k}") for k in range(number)),
    "directories": lambda number: b"".join(directory(f"{k}") for k in range(number)),
    "links": lambda number: b"".join(symlink(f"{k}", "x") for k in range(number)),
    "links through one": lambda number: symlink("a", ".") + b"".join(symlink(f"{k}", "a/x") for k in range(number)),
    "links through chains": lambda number: b"".join(
        symlink(f"{k}", f"{k + 1}/x" if k % 39 else ".") for k in reversed(range(number))
    ),
    "hard links to one": lambda number: block("a") + b"".join(hard_link(f"{k}", "a") for k in range(number)),
    "hard links in a chain": lambda number: block("0") + b"".join(hard_link(f"{k + 1}", f"{k}") for k in range(number)),
    "files far below": nested,
    "pax records": lambda number: pax(b"".join(record(f"k{k}", "v") for k in range(number))) + block("a"),
}


@pytest.mark.posix("links without a privilege")
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_extract_flood_linear_steps(tmp_path: Path, flood: Callable[[int], bytes]) -> None:
    def steps(number: int) -> int:
        there = tmp_path / f"{number}"
        there.mkdir()
        data = flood(number) + END
        return calls(lambda: extract(data, there, 10_000))

    steps(10)  # one-time work
    once, twice = steps(300), steps(600)
    assert twice < 2.2 * once


def test_symlink_chain_resolved_once() -> None:
    chain = {f"chain{number}": f"chain{number + 1}" for number in range(38)} | {"chain38": "."}
    through = chain | {f"{number}": "chain0" for number in range(300)}
    separate = chain | {f"{number}": "." for number in range(300)}
    assert calls(lambda: check_links(through, {""})) < 4 * calls(lambda: check_links(separate, {""}))


def test_gzip_empty_members_linear_time(tmp_path: Path) -> None:
    # Quadratic time would exceed the timeout.
    data = gzip.compress(block("a") + END, mtime=0) + gzip.compress(b"", mtime=0) * 150_000
    assert extract(data, tmp_path).finished
