from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import tempfile
import unicodedata
from itertools import pairwise
from pathlib import Path, PurePosixPath
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from async_bento._core.concurrency import Threads
from async_bento._core.platform import refusal_of_name
from async_bento.config import KiB, MiB
from async_bento.transfer.tar.extract import Extractor
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.tar.reader import TarReader
from tests.platforms import IS_WINDOWS, link_if_possible
from tests.properties import unhurried

if TYPE_CHECKING:
    from collections.abc import Iterator

PATTERN = bytes(range(251)) * (2 * MiB // 251)
sixty = settings(unhurried, max_examples=60)
seeds = st.integers(0, 2**32)


class File(NamedTuple):
    size: int
    mode: int
    mtime_ns: int


def one_spelling(name: str) -> str:
    """Return the same key for names that a case-insensitive file system treats as equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


DRIVE = re.compile(r"[A-Za-z]:(\\|$)")  # at its beginning, a name is refused
names = st.one_of(
    st.sampled_from(
        ["bento.yaml", "src", "a", "-rf", " ", "...", ".env", "b\\c", "d:e", "模型", "n" * 97, "n" * 99, "m" * 255]
    ),
    st.text(
        st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"], exclude_characters="/"), min_size=1, max_size=30
    ),
).filter(lambda name: name not in {".", ".."} and len(name.encode()) <= 255 and not DRIVE.match(name))
names = names.filter(lambda name: refusal_of_name(name) is None)
times = st.one_of(st.integers(0, 2**33 * 10**9), st.sampled_from([-1, -(10**9), 999_999_999, 8**11 * 10**9]))
files = st.builds(
    File,
    size=st.sampled_from([0, 0, 1, 511, 512, 513, 1024, 10_239, 70 * KiB, MiB - 1, MiB, MiB + 1]),
    mode=st.sampled_from([0o644, 0o600, 0o755, 0o700, 0o444, 0o777, 0o4755]),
    mtime_ns=times,
)
trees = st.recursive(
    st.dictionaries(names, files, max_size=4),
    lambda inner: st.dictionaries(names, st.one_of(files, inner), max_size=4),
    max_leaves=6,
)


@st.composite
def forests(draw: st.DrawFn) -> tuple[dict[PurePosixPath, File | None], list[tuple[PurePosixPath, str]], list]:
    """A tree's files (and directories, as None), then symbolic links and hard links among them."""
    found: dict[PurePosixPath, File | None] = {}

    def flatten(tree: dict, below: PurePosixPath) -> None:
        spelled: set[str] = set()
        for name, node in tree.items():
            if one_spelling(name) in spelled:
                continue
            spelled.add(one_spelling(name))
            found[below / name] = node if isinstance(node, File) else None
            if not isinstance(node, File):
                flatten(node, below / name)

    flatten(draw(trees), PurePosixPath())
    places = [PurePosixPath(), *(path for path, node in found.items() if node is None)]
    symlinks: list[tuple[PurePosixPath, str]] = []
    for number in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places))
        target = draw(st.sampled_from([*places, *found, PurePosixPath("missing"), *(link for link, _ in symlinks)]))
        symlinks.append((place / f"link {number}", os.path.relpath(f"/{target}", f"/{place}")))
    sources = [path for path, node in found.items() if node is not None]
    hard_links = [
        (draw(st.sampled_from(places)) / f"{number} same", draw(st.sampled_from(sources)))
        for number in range(draw(st.integers(0, 2)) if sources else 0)
    ]
    return found, symlinks, hard_links


def plant(root: Path, forest: tuple) -> None:
    nodes, symlinks, hard_links = forest
    for path, node in nodes.items():
        if node is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(PATTERN[: node.size])
            (root / path).chmod(node.mode)
            os.utime(root / path, ns=(0, node.mtime_ns))
    for path, target in symlinks:
        link_if_possible(root / path, target)
    for path, source in hard_links:
        (root / path).hardlink_to(root / source)


def described(root: Path) -> dict[str, tuple]:
    """Return the properties of a tree that must survive a push and a pull."""
    seen: dict[int, str] = {}
    result: dict[str, tuple] = {}
    for path in sorted([root, *root.rglob("*")]):
        name = path.relative_to(root).as_posix()
        status = path.lstat()
        executable = bool(status.st_mode & stat.S_IXUSR)
        if path.is_symlink():
            what: tuple = ("link", os.readlink(path))  # noqa: PTH115 - Path would tidy it
        elif path.is_dir():
            what = ("directory",)
        else:
            what = ("file", executable, path.read_bytes(), seen.setdefault(status.st_ino, name))
        result[name] = (*what, status.st_mtime_ns // 10**9)
    return result


def packed(root: Path, threads: Threads, ranges: list[tuple[int, int]] | None = None, io_chunk: int = MiB) -> bytes:
    plan = TarPlan.scan(root)

    parts: dict[int, bytes] = {}
    for start, stop in ranges or [(0, plan.size)]:
        reader = TarReader(plan, start, min(stop, plan.size), io_chunk=io_chunk)
        parts[start] = b"".join(iter(reader.read, b""))
        reader.close()
    return b"".join(parts[start] for start in sorted(parts))


@pytest.fixture(scope="module")
def threads() -> Iterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.executor.shutdown()


@pytest.mark.posix("links without a privilege")
@sixty
@given(forest=forests(), seed=seeds)
def test_any_tree_restored(threads: Threads, forest: tuple, seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as here:
        source, there = Path(here, "source"), Path(here, "there")
        source.mkdir()
        there.mkdir()
        plant(source, forest)
        data = packed(source, threads, io_chunk=random.choice([4 * KiB, 64 * KiB, MiB]))
        with Extractor(there) as extractor:
            begin = 0
            while begin < len(data):
                end = begin + random.choice([1, 100, 512, 5000, MiB, 3 * MiB])
                extractor.feed(data[begin:end])
                begin = end
            extractor.close()
        assert described(there) == described(source)


@sixty
@given(forest=forests(), seed=seeds)
def test_any_ranges_equal_tarfile(threads: Threads, forest: tuple, seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as here:
        root = Path(here)
        plant(root, forest)
        expected = written_by_tarfile(root)
        cuts = {0, len(expected), *(random.randrange(len(expected)) for _ in range(random.randrange(8)))}
        cuts |= {min(cut // 512 * 512 + 512, len(expected)) for cut in list(cuts)[:3]}
        bounds = sorted(cuts)
        ranges = list(pairwise(bounds))
        random.shuffle(ranges)
        assert packed(root, threads, ranges, random.choice([4 * KiB, 64 * KiB, MiB])) == expected


@sixty
@given(forest=forests())
def test_tarfile_lists_plan_members(threads: Threads, forest: tuple) -> None:
    with tempfile.TemporaryDirectory() as here:
        root = Path(here)
        plant(root, forest)
        with tarfile.open(fileobj=io.BytesIO(packed(root, threads)), encoding="utf-8") as tar:
            names = [member.name for member in tar.getmembers()]
        assert sorted(names) == sorted([".", *(f"./{path.relative_to(root).as_posix()}" for path in root.rglob("*"))])
        assert len(names) == TarPlan.scan(root).members


def written_by_tarfile(root: Path) -> bytes:
    def clean(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if IS_WINDOWS else info.mode
        info.mtime = (root / info.name).lstat().st_mtime_ns // 10**9
        return info

    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
            tar.add(root, arcname="./", filter=clean)
        return file.getvalue()
