"""An extraction that is interrupted anywhere and resumed by another one gives the same tree."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import Limits
from async_bento.errors import StoreError, UnsafeArchiveError
from async_bento.transfer.tar.checkpoint import Checkpoint
from async_bento.transfer.tar.extract import Extractor
from async_bento.transfer.tar.safety import names_memory
from tests.builders import random_bytes
from tests.platforms import IS_WINDOWS
from tests.tar.tars import BUILT, END, block, directory, hard_link, pax, record, symlink

if TYPE_CHECKING:
    from pathlib import Path

LONG = "n" * 150
TAR = (
    directory("./", mode=0o755)
    + directory("./src", mode=0o555)
    + block("./src/run.sh", content=random_bytes(1700, 1), mode=0o755)
    + block("./src/empty")
    + hard_link("./src/same", "./src/run.sh")
    + symlink("./link", "src/run.sh")
    + pax(record("path", f"./{LONG}")) + block("short", content=random_bytes(600, 2), mode=0o444)
    + block("./not/announced/file", content=random_bytes(512, 3))
    + (b"" if IS_WINDOWS else block("./bytes-\udcff", content=b"x"))
    + directory("./last", mode=0o700)
    + END
)  # fmt: skip


def tree(root: Path) -> dict[str, object]:
    """Return the entries of a tree with modes, times and links."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        what = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (what, oct(status.st_mode), status.st_mtime == BUILT, status.st_nlink)
    return found


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, object]:
    root = tmp_path / "expected"
    root.mkdir()
    with Extractor(root) as extractor:
        extractor.feed(TAR)
        extractor.close()
    assert len(tree(root)) == (10 if IS_WINDOWS else 11)
    return tree(root)


def saved(extractor: Extractor, covered: int) -> Checkpoint:
    """Return a checkpoint as read by another process."""
    checkpoint = extractor.checkpoint(covered)
    assert checkpoint is not None
    return Checkpoint.from_json(json.loads(json.dumps(checkpoint.to_json())))


def go_on(root: Path, checkpoint: Checkpoint, data: bytes = TAR) -> None:
    with Extractor(root, checkpoint=checkpoint) as extractor:
        extractor.feed(data[checkpoint.position :])
        extractor.close()


@pytest.mark.parametrize("further", [0, 1, 600, 2000, len(TAR)])
def test_resume_at_any_byte(tmp_path: Path, expected: dict[str, object], further: int) -> None:
    """The process saves a checkpoint at some byte, and continues for a while before the kill."""
    for at in range(10, len(TAR) + 1, 389):
        root = tmp_path / "root"
        root.mkdir()
        upto = min(at + further, len(TAR))
        extractor = Extractor(root)
        extractor.feed(TAR[:at])
        checkpoint = saved(extractor, upto)
        extractor.feed(TAR[at:upto])
        extractor.abort()

        go_on(root, checkpoint)

        assert tree(root) == expected, f"interrupted at {at}, killed at {upto}"
        shutil.rmtree(root)


@pytest.mark.posix("file modes")
def test_resume_within_file(tmp_path: Path) -> None:
    content = random_bytes(10_000, 4)
    data = block("large", content=content, mode=0o740) + END
    extractor = Extractor(tmp_path)
    extractor.feed(data[:5000])
    extractor.abort()
    checkpoint = saved(extractor, 5000)

    assert checkpoint.position == 5000
    with (tmp_path / "large").open("ab") as file:
        file.write(bytes(20_000))  # as another process may have
    go_on(tmp_path, checkpoint, data)
    assert (tmp_path / "large").read_bytes() == content
    assert (tmp_path / "large").stat().st_mode & 0o777 == 0o755


def test_resume_names_truncated_file(tmp_path: Path) -> None:
    data = block("large", content=random_bytes(10_000, 4))
    extractor = Extractor(tmp_path)
    extractor.feed(data[:5000])
    extractor.abort()
    with pytest.raises(UnsafeArchiveError, match="truncated, in 'large', 4000 bytes before its end") as raised:
        go_on(tmp_path, saved(extractor, 5000), data[:6512])
    assert raised.value.member == "large"


def test_resume_after_covered_header(tmp_path: Path) -> None:
    data = block("first", content=b"1") + block("second", content=b"2") + END
    extractor = Extractor(tmp_path)
    extractor.feed(data[:1024])
    checkpoint = saved(extractor, 1536)
    extractor.feed(data[1024:1536])  # the last byte before the next checkpoint
    extractor.abort()

    go_on(tmp_path, checkpoint, data)
    assert (tmp_path / "second").read_bytes() == b"2"


def test_checkpoint_between_members(tmp_path: Path) -> None:
    first = block("first", content=b"1")
    data = first + pax(record("path", LONG)) + block("second", content=b"2") + END
    for at in range(len(first), len(first) + 3 * 512):
        root = tmp_path / str(at)
        root.mkdir()
        extractor = Extractor(root)
        extractor.feed(data[:at])
        checkpoint = saved(extractor, at)

        assert (checkpoint.position, checkpoint.members, checkpoint.files) == (len(first), 1, 1)


def test_resume_repeatedly(tmp_path: Path, expected: dict[str, object]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    checkpoint = None
    for reached in range(10, len(TAR), 683):
        extractor = Extractor(root, checkpoint=checkpoint)
        begin = checkpoint.position if checkpoint else 0
        extractor.feed(TAR[begin : max(begin, reached)])
        extractor.abort()
        checkpoint = saved(extractor, max(reached, checkpoint.covered if checkpoint else 0))

    assert checkpoint is not None
    go_on(root, checkpoint)
    assert tree(root) == expected


def test_checkpoint_of_gzip_is_none(tmp_path: Path) -> None:
    extractor = Extractor(tmp_path)
    extractor.feed(gzip.compress(TAR))
    assert extractor.checkpoint(0) is None


def test_checkpoint_before_detection(tmp_path: Path) -> None:
    extractor = Extractor(tmp_path)
    extractor.feed(TAR[:9])
    assert extractor.checkpoint(0) is None


def test_duplicate_on_resume_refused(
    tmp_path: Path,
) -> None:
    data = block("a", content=b"1") + block("b", content=b"2") + block("a", content=b"3") + END
    extractor = Extractor(tmp_path)
    extractor.feed(data[:1024])
    extractor.abort()

    with pytest.raises(UnsafeArchiveError, match="tar member 'a' refused: an earlier member has the same name"):
        go_on(tmp_path, saved(extractor, 2048), data)


def test_leftover_links_removed(tmp_path: Path) -> None:
    """A hard link made by an interrupted run is another name of a file that was complete before."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.write_bytes(b"precious")
    first = block("a", content=b"1")
    data = first + block("b", content=b"2") + directory("d") + block("d/c", content=b"3") + END
    extractor = Extractor(root)
    extractor.feed(first)
    extractor.abort()
    (root / "b").hardlink_to(root / "a")
    (root / "d").symlink_to(tmp_path)

    go_on(root, saved(extractor, len(data)), data)

    assert (root / "a").read_bytes() == b"1"
    assert (root / "b").read_bytes() == b"2"
    assert (root / "d/c").read_bytes() == b"3"
    assert not (root / "d").is_symlink()
    assert not (tmp_path / "c").exists()
    assert outside.read_bytes() == b"precious"


def test_symlinked_file_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.write_bytes(bytes(9000))
    data = block("large", content=random_bytes(9000)) + END
    extractor = Extractor(root)
    extractor.feed(data[:5000])
    extractor.abort()
    (root / "large").unlink()
    (root / "large").symlink_to(outside)

    with pytest.raises(StoreError, match="symbolic links"):
        go_on(root, saved(extractor, 5000), data)
    assert outside.read_bytes() == bytes(9000)


def test_short_file_refused(tmp_path: Path) -> None:
    data = block("large", content=random_bytes(9000)) + END
    extractor = Extractor(tmp_path)
    extractor.feed(data[:5000])
    extractor.abort()
    os.truncate(tmp_path / "large", 100)

    with pytest.raises(StoreError, match="cannot resume large: the file is shorter than its checkpoint"):
        go_on(tmp_path, saved(extractor, 5000), data)


def test_limits_kept_on_resume(tmp_path: Path) -> None:
    data = block("a", content=bytes(600)) + block("b", content=bytes(600)) + END
    extractor = Extractor(tmp_path)
    extractor.feed(data[:1536])
    extractor.abort()
    checkpoint = saved(extractor, 1536)

    for limits, why in (
        (Limits(members=1), "more than 1 members"),
        (Limits(size=1000), "more than 1000 bytes of content"),
    ):
        again = Extractor(tmp_path, limits, checkpoint=checkpoint)
        with pytest.raises(UnsafeArchiveError, match=why):
            again.feed(data[1536:])


def test_names_limit_kept_on_resume(tmp_path: Path) -> None:
    data = directory("a") + symlink("b", "a") + directory("c") + END
    names = names_memory("a") + names_memory("b", "a") + names_memory("c")
    extractor = Extractor(tmp_path)
    extractor.feed(data[:1024])
    extractor.abort()
    for limit, is_enough in ((names - 1, False), (names, True)):
        again = Extractor(tmp_path, Limits(names=limit), checkpoint=saved(extractor, 2048))
        if is_enough:
            again.feed(data[1024:])
        else:
            with pytest.raises(UnsafeArchiveError, match=r"Limits\.names"):
                again.feed(data[1024:])


def test_symlink_escape_refused(tmp_path: Path) -> None:
    data = directory("a") + symlink("a/up", "..") + symlink("b", "a/up/../x") + END
    extractor = Extractor(tmp_path)
    extractor.feed(data[:1024])
    extractor.abort()

    with pytest.raises(UnsafeArchiveError, match="leads outside"):
        go_on(tmp_path, saved(extractor, 1024), data)
    assert not (tmp_path / "b").is_symlink()


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        {"position": 1},
        Checkpoint().to_json() | {"position": "x"},
        Checkpoint().to_json() | {"directories": [1]},
        Checkpoint().to_json() | {"directories": {"a": [1]}},
        Checkpoint().to_json() | {"directories": {"a": "late"}},
        Checkpoint().to_json() | {"symlinks": {"a": "target"}},
        Checkpoint().to_json() | {"symlinks": {"a": ["target", "late"]}},
        Checkpoint().to_json() | {"file": ["a", 1]},
        Checkpoint().to_json() | {"file": 7},
    ],
)
def test_invalid_json_raises(data: Any) -> None:
    with pytest.raises(ValueError):
        Checkpoint.from_json(data)


def test_resume_empty_tar(tmp_path: Path) -> None:
    extractor = Extractor(tmp_path)
    extractor.feed(END[:100])
    go_on(tmp_path, saved(extractor, 100), bytes(tarfile.RECORDSIZE))
    assert not [*tmp_path.iterdir()]
