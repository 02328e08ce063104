from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import random
import resource
import shutil
import stat
import sys
import tarfile
import tempfile
import tracemalloc
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento.archive.extract import Extractor
from async_bento.archive.members import check_links, member_name
from async_bento.config import KiB, MiB
from async_bento.errors import ArchiveError, StoreError, UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
END = bytes(1024)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
random_bytes = random.Random(20240229).randbytes


@pytest.fixture
def there(tmp_path: Path) -> Path:
    there = tmp_path / "there"
    there.mkdir()
    return there


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory of someone for whom permissions count, and be that someone: root writes everywhere."""
    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)
        return
    directory = tempfile.mkdtemp(dir="/tmp")
    os.chown(directory, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield Path(directory)
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)


def block(
    name: str, type_: bytes = tarfile.REGTYPE, content: bytes = b"", fmt: int = tarfile.PAX_FORMAT, **more
) -> bytes:
    """A member: its header as tarfile writes it, its content, its padding."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = type_, len(content), 1_600_000_000
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info.tobuf(fmt, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


def directory(name: str, **more) -> bytes:
    return block(name, tarfile.DIRTYPE, mode=more.pop("mode", 0o755), **more)


def symlink(name: str, target: str, **more) -> bytes:
    return block(name, tarfile.SYMTYPE, linkname=target, **more)


def hard_link(name: str, target: str, **more) -> bytes:
    return block(name, tarfile.LNKTYPE, linkname=target, **more)


def pax(records: bytes, type_: bytes = tarfile.XHDTYPE) -> bytes:
    return block("././@PaxHeader", type_, records)


def record(keyword: str, value: str | bytes) -> bytes:
    rest = b" " + keyword.encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) + b"\n"
    length = len(rest)
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def forge(data: bytes, begin: int, field: bytes) -> bytes:
    """Overwrite a field of a header and make its checksum right again."""
    data = data[:begin] + field + data[begin + len(field) :]
    total = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    return data[:148] + b"%06o\0 " % total + data[156:]


def extract(data: bytes, there: Path, step: int | None = None, **limits) -> Extractor:
    with Extractor(there, **limits) as extractor:
        step = step or len(data) or 1
        for begin in range(0, len(data), step):
            extractor.feed(data[begin : begin + step])
        extractor.close()
        return extractor


def assert_refused(data: bytes, there: Path, why: str, member: str | None = None) -> None:
    outside = sorted(there.parent.rglob("*"))
    with pytest.raises(UnsafeArchiveError, match=why) as raised:
        extract(data + END, there)
    if member is not None:
        assert raised.value.member is not None
        assert raised.value.member.rstrip("/") == member
    assert [path for path in sorted(there.parent.rglob("*")) if there not in path.parents] == outside


def names(there: Path) -> list[str]:
    return sorted(path.name for path in there.iterdir())


def target(link: Path) -> str:
    return os.readlink(link)  # noqa: PTH115 - Path would tidy it


# What comes back


def test_contents_modes_times_and_links_come_back(there: Path) -> None:
    content = random_bytes(3000)
    extractor = extract(
        directory("./", mode=0o750, mtime=1000)
        + directory("./src/", mode=0o500, mtime=1001)
        + block("./src/a.py", content=content, mode=0o640, mtime=1002)
        + symlink("./src/b.py", "./a.py", mtime=1003)
        + hard_link("./src/c.py", "./src/a.py")
        + END,
        there,
    )
    found = {path.name: path.lstat() for path in (there, *there.rglob("*"))}
    assert {name: int(status.st_mtime) for name, status in found.items()} == {
        "there": 1000,
        "src": 1001,
        "a.py": 1002,
        "b.py": 1003,
        "c.py": 1002,
    }
    modes = {name: stat.S_IMODE(found[name].st_mode) for name in ("there", "src", "a.py")}
    assert modes == {"there": 0o750, "src": 0o500, "a.py": 0o640}
    assert (there / "src" / "a.py").read_bytes() == content
    assert target(there / "src" / "b.py") == "./a.py"
    assert found["a.py"].st_ino == found["c.py"].st_ino
    assert (extractor.members, extractor.files, extractor.bytes_written, extractor.finished) == (5, 2, 3000, True)


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 4096])
def test_the_pieces_may_have_any_size(there: Path, step: int) -> None:
    content = random_bytes(1500)
    extract(directory("./") + block("./" + "n" * 120, content=content) + END, there, step)
    assert (there / ("n" * 120)).read_bytes() == content


def test_a_piece_may_be_a_view_of_anything(there: Path) -> None:
    with Extractor(there) as extractor:
        extractor.feed(memoryview(block("a", content=b"x" * 512) + END).cast("I"))
        extractor.close()
    assert (there / "a").read_bytes() == b"x" * 512


@pytest.mark.parametrize(("given", "kept"), [(0o7777, 0o775), (0o4755, 0o755), (0o666, 0o664), (0, 0)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_set_uid_set_gid_sticky_and_world_write_are_dropped(there: Path, kind: bytes, given: int, kept: int) -> None:
    extract(block("it", kind, mode=given) + END, there)
    assert stat.S_IMODE((there / "it").stat().st_mode) == kept


def test_a_read_only_directory_can_be_filled(ordinary_user: Path) -> None:
    there = ordinary_user / "there"
    there.mkdir()
    extract(directory("d", mode=0) + directory("d/e", mode=0) + block("d/e/f", content=b"x") + END, there)
    for closed in (there / "d", there / "d" / "e"):
        assert stat.S_IMODE(closed.stat().st_mode) == 0
        closed.chmod(0o700)
    assert (there / "d" / "e" / "f").read_bytes() == b"x"


def test_missing_parents_are_made(there: Path) -> None:
    extract(block("a/b/c", content=b"x") + END, there)
    assert (there / "a" / "b" / "c").read_bytes() == b"x"


def test_a_directory_may_come_twice(there: Path) -> None:
    extract(directory("d") + block("d/f") + directory("d", mode=0o711) + END, there)
    assert stat.S_IMODE((there / "d").stat().st_mode) == 0o711


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tarfile_is_read(there: Path, fmt: int) -> None:
    name = "d" * 90 + "/" + "n" * 95
    extract(directory("d" * 90 + "/", fmt=fmt) + block(name, content=b"x", fmt=fmt) + END, there)
    assert (there / name).read_bytes() == b"x"


@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_are_read(there: Path, fmt: int) -> None:
    name = "/".join(["grüße" * 20] * 4)
    extract(
        block(name, content=b"x", fmt=fmt) + hard_link("h", name, fmt=fmt) + symlink("s", name, fmt=fmt) + END, there
    )
    assert (there / "h").read_bytes() == (there / "s").read_bytes() == b"x"


def test_old_types_of_files_are_files(there: Path) -> None:
    extract(block("a", tarfile.AREGTYPE, b"a") + block("c", tarfile.CONTTYPE, b"c") + END, there)
    assert (there / "a").read_bytes() + (there / "c").read_bytes() == b"ac"


def test_pax_records_outweigh_the_header(there: Path) -> None:
    records = record("path", "./real") + record("mtime", "1234.5678901239") + record("comment", "ignored\0")
    data = pax(record("size", "700")) + pax(records) + block("fake", content=b"")
    extract(data + b"x" * 700 + bytes(324) + block("next") + END, there)
    assert (there / "real").read_bytes() == b"x" * 700
    assert (there / "real").stat().st_mtime_ns == 1_234_567_890_123
    assert names(there) == ["next", "real"]


def test_a_pax_linkpath_outweighs_the_header(there: Path) -> None:
    extract(pax(record("linkpath", "real")) + symlink("link", "fake") + END, there)
    assert target(there / "link") == "real"


def test_an_empty_pax_record_is_as_good_as_none(there: Path) -> None:
    extract(pax(record("path", "") + record("size", "")) + block("a", content=b"x") + END, there)
    assert (there / "a").read_bytes() == b"x"


@pytest.mark.parametrize("given", ["-1.5", "-0", "0.000000001", "4102444800"])
def test_times_before_1970_and_fractions_come_back(there: Path, given: str) -> None:
    extract(pax(record("mtime", given)) + block("a") + END, there)
    assert (there / "a").stat().st_mtime_ns == round(float(given) * 10**9)


def test_a_comment_for_all_members_is_passed_over(there: Path) -> None:
    extract(pax(record("comment", "a commit"), tarfile.XGLTYPE) + block("a") + END, there)
    assert (there / "a").exists()


def test_a_size_in_base_256_is_read(there: Path) -> None:
    data = forge(block("a", content=b"x" * 600), 124, b"\x80" + (600).to_bytes(11, "big"))
    extract(data + END, there)
    assert (there / "a").stat().st_size == 600


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 elsewhere")
def test_a_name_that_is_no_utf8_comes_back(there: Path) -> None:
    extract(block("caf\udce9", content=b"x") + END, there)
    assert names(there) == ["caf\udce9"]


def test_a_hard_link_is_copied_where_the_file_system_knows_none(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, original: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    extractor = extract(block("a", content=b"x" * 700, mode=0o750) + hard_link("b", "a") + END, there)
    status = (there / "b").stat()
    assert (there / "b").read_bytes() == b"x" * 700
    assert (status.st_mtime, stat.S_IMODE(status.st_mode)) == (1_600_000_000, 0o750)
    assert extractor.bytes_written == 1400


def test_a_dangling_link_and_a_link_through_links_are_fine(there: Path) -> None:
    extract(
        directory("a/b") + symlink("a/b/top", "../..") + symlink("x", "a/b/top/a/b/../b") + symlink("y", "a/z") + END,
        there,
    )
    assert (there / "x").resolve() == there.resolve() / "a" / "b"
    assert not (there / "y").exists()


# What is refused: names


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "absolute"),
        ("//etc/passwd", "absolute"),
        ("../x", "climbs"),
        ("a/../../x", "climbs"),
        ("a/..", "climbs"),
        ("..", "climbs"),
        ("C:/x", "path of Windows"),
        ("c:\\x", "path of Windows"),
        ("a\nb", "control characters"),
        ("a\x1b[2J", "control characters"),
        ("a\x7f", "control characters"),
        ("n" * 256, "part longer than 255 bytes"),
        ("ü" * 128, "part longer than 255 bytes"),
        ("/".join(["d" * 200] * 21), "longer than 4096 bytes"),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_name_that_is_not_plain_is_refused(there: Path, name: str, why: str, kind: bytes) -> None:
    assert_refused(block("a") + block(name, kind, linkname="a"), there, why, name)


def test_a_nul_in_a_pax_path_is_refused(there: Path) -> None:
    assert_refused(pax(record("path", "a\0b")) + block("a"), there, "control characters", "a\0b")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_member_without_a_name_is_refused(there: Path, kind: bytes) -> None:
    assert_refused(forge(block("x", kind), 0, bytes(100)), there, "no name")


def test_an_absolute_root_is_refused(there: Path) -> None:
    assert_refused(forge(directory("x"), 0, b"/\0"), there, "refused|no name")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_root_that_is_no_directory_is_refused(there: Path, kind: bytes) -> None:
    assert_refused(block("a") + block(".", kind, linkname="a"), there, "root of the tar is a")


def test_a_file_with_the_name_of_a_directory_is_refused(there: Path) -> None:
    assert_refused(pax(record("path", "a/")) + block("a", content=b"x"), there, "directory's name")


def test_backslashes_and_colons_are_names_on_posix_and_refused_on_windows() -> None:
    for name in ("a\\b", "a:b", "..\\x"):
        assert member_name(name, windows=False) == name
        with pytest.raises(UnsafeArchiveError, match="path of Windows"):
            member_name(name, windows=True)


@pytest.mark.parametrize(
    ("raw", "name"), [("./", ""), (".", ""), ("./a/b", "a/b"), ("a//b/", "a/b"), ("a/./b", "a/b"), ("...", "...")]
)
def test_a_name_has_one_form(raw: str, name: str) -> None:
    assert member_name(raw) == name


def test_the_longest_path_is_the_callers_to_say(there: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match="longer than 10 bytes"):
        extract(block("a" * 11) + END, there, max_path=10)


# What is refused: kinds


@pytest.mark.parametrize(
    "kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"M", b"D", b"X", b"?"]
)
def test_what_is_no_file_directory_or_link_is_refused(there: Path, kind: bytes) -> None:
    assert_refused(block("odd", kind), there, "member of type", "odd")


def test_a_sparse_member_by_pax_is_refused(there: Path) -> None:
    records = record("GNU.sparse.major", "1") + record("GNU.sparse.name", "odd") + record("GNU.sparse.minor", "0")
    assert_refused(pax(records) + block("a", content=b"0\n"), there, "sparse", "odd")


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_content_where_none_belongs_is_refused(there: Path, kind: bytes) -> None:
    assert_refused(block("a") + block("b", kind, b"x", linkname="a"), there, "with content", "b")


@pytest.mark.parametrize("size", [-1, 1 << 62, 1 << 80])
def test_a_negative_or_absurd_size_is_refused(there: Path, size: int) -> None:
    field = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    assert_refused(forge(block("a"), 124, field), there, "a size of", "a")


def test_an_absurd_size_by_pax_is_refused(there: Path) -> None:
    assert_refused(pax(record("size", str(1 << 62))) + block("a"), there, "a size of", "a")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_extended_header_that_fills_memory_is_refused(there: Path, kind: bytes) -> None:
    assert_refused(block("h", kind, size=MiB + 1), there, f"a header of {MiB + 1} bytes")


@pytest.mark.parametrize("keyword", ["path", "linkpath", "size"])
def test_a_name_or_size_for_all_members_is_refused(there: Path, keyword: str) -> None:
    assert_refused(pax(record(keyword, "1"), tarfile.XGLTYPE) + block("a"), there, "for all members")


# What is refused: links


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("/etc", "absolute"),
        ("..", "leads outside"),
        ("../x", "leads outside"),
        ("a/../../x", "leads outside"),
        ("d/../../x", "leads outside"),
        ("missing/../d", "climbs out of something"),
        ("file/../d", "climbs out of something"),
        ("C:/x", "path of Windows"),
        ("a\nb", "control characters"),
        ("t" * 256, "longer than 255"),
        ("t/" * 2049, "longer than 4096"),
        ("link", "more than 40 links"),
    ],
)
def test_a_link_with_a_bad_target_is_refused(there: Path, target: str, why: str) -> None:
    assert_refused(directory("d") + block("file") + directory("a") + symlink("link", target), there, why, "link")


def test_a_link_to_nothing_is_refused(there: Path) -> None:
    assert_refused(forge(symlink("link", "x"), 157, bytes(100)), there, "a link to nothing", "link")


CHAINS = {
    "one link out": {"q": "../x"},
    "up, then up by its parent": {"a/up": "..", "q": "a/up/../x"},
    "a link below a link": {"a/b/up": "../..", "q": "a/b/up/.."},
    "through two links": {"a/b/up": "..", "a/over": "b/up", "q": "a/over/../.."},
    "a link to a link's parent": {"a/here": ".", "a/there": "here/..", "q": "a/there/.."},
    "another spelling of a link": {"a/b/up": "../..", "q": "a/b/UP/.."},
    "as in CVE-2025-4517": {"a/b/c": "../../a", "a/d": "b/c/b/c", "q": "a/d/../../etc"},
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_links_that_lead_out_together_are_refused(there: Path, chain: dict[str, str], reverse: bool) -> None:
    links = [symlink(name, target) for name, target in chain.items()]
    assert_refused(directory("a/b") + b"".join(links[::-1] if reverse else links), there, "refused: the link to")
    assert not [path for path in there.rglob("*") if path.is_symlink()]


def test_a_circle_of_links_is_refused(there: Path) -> None:
    assert_refused(symlink("one", "two/x") + symlink("two", "one/x"), there, "more than 40 links")


def test_a_chain_as_long_as_a_kernel_follows_is_fine_and_no_longer() -> None:
    chain = {f"link{number}": f"link{number + 1}" for number in range(40)}
    check_links(chain, {""})
    with pytest.raises(UnsafeArchiveError, match="more than 40 links"):
        check_links({**chain, "link40": "x"}, {""})


def test_links_that_double_at_each_step_are_refused_at_once() -> None:
    links = {f"link{number}": f"link{number + 1}/link{number + 1}" for number in range(39)}
    with pytest.raises(UnsafeArchiveError, match="more than 40 links"):
        check_links({**links, "link39": "."}, {""})


def test_a_member_below_a_link_is_refused(there: Path) -> None:
    assert_refused(directory("d") + symlink("link", "d") + block("link/x", content=b"x"), there, "is a link", "link/x")


def test_a_directory_below_a_link_is_refused(there: Path) -> None:
    assert_refused(directory("d") + symlink("link", "d") + directory("link/x/y"), there, "is a link", "link/x/y")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("first", [block("it"), symlink("it", "other"), block("other") + hard_link("it", "other")])
def test_a_member_that_lands_on_another_is_refused(there: Path, first: bytes, kind: bytes) -> None:
    assert_refused(
        block("source") + first + block("it", kind, linkname="source"), there, "another member is there already", "it"
    )


@pytest.mark.parametrize("first", [block("it"), directory("it"), block("it/x")])
def test_a_link_that_lands_on_another_member_is_refused_as_it_arrives(there: Path, first: bytes) -> None:
    with Extractor(there) as extractor:
        extractor.feed(first)
        with pytest.raises(UnsafeArchiveError, match="is there already"):
            extractor.feed(symlink("it", "x"))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_member_that_lands_on_a_directory_is_refused(there: Path, kind: bytes) -> None:
    assert_refused(
        block("source") + block("it/x") + block("it", kind, linkname="source"), there, "is there already", "it"
    )


def test_a_member_below_a_file_is_refused(there: Path) -> None:
    assert_refused(block("it") + block("it/below"), there, "is there already", "it")


@pytest.mark.parametrize("target", ["../x", "/etc/passwd", "missing", "d", "link", "link/x", "it", "file/x", "."])
def test_a_hard_link_to_what_is_no_file_of_the_tar_is_refused(there: Path, target: str) -> None:
    data = directory("d") + block("file") + block("d/x") + symlink("link", "d") + hard_link("it", target)
    assert_refused(data, there, r"'it' is refused", "it")


def test_nothing_is_ever_written_through_a_link_that_is_there(there: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with Extractor(there) as extractor:
        extractor.feed(directory("d") + bytes(0))
        (there / "d" / "file").symlink_to(tmp_path / "elsewhere" / "file")
        with pytest.raises(UnsafeArchiveError, match="is there already"):
            extractor.feed(block("d/file", content=b"x"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_link_is_made_before_the_end(there: Path) -> None:
    with Extractor(there) as extractor:
        extractor.feed(symlink("link", "x") + END)
        assert not names(there)
        extractor.close()
    assert names(there) == ["link"]


# What is refused: too much


def test_more_members_than_allowed_are_refused(there: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match="more than 3 members"):
        extract(b"".join(block(f"{number}") for number in range(4)) + END, there, max_members=3)


def test_more_content_than_allowed_is_refused_before_it_is_written(there: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match="more than 1000 bytes") as raised:
        extract(block("a", content=bytes(600)) + block("b", content=bytes(401)), there, max_bytes=1000)
    assert raised.value.member == "b"
    assert names(there) == ["a"]


def test_as_much_as_is_allowed_is_fine(there: Path) -> None:
    data = block("a", content=bytes(600)) + block("b", content=bytes(400))
    assert extract(data + END, there, max_bytes=1000, max_members=2).bytes_written == 1000


# What is broken


@pytest.mark.parametrize("compress", [bytes, *COMPRESS.values()], ids=["plain", *COMPRESS])
def test_a_tar_cut_anywhere_is_broken(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    tar = directory("./") + block("./" + "n" * 110, content=random_bytes(700)) + symlink("./s", "x") + END
    data = compress(tar)
    cuts = {*range(0, len(data), 512), *range(0, len(data), 97), *range(max(0, len(data) - 12), len(data))}
    for cut in sorted(cuts):
        there = tmp_path / f"{cut}"
        there.mkdir()
        with pytest.raises(ArchiveError, match="ends too early"):
            extract(data[:cut], there)
        assert not (there / "s").is_symlink()


def test_one_block_of_zeros_is_no_end(there: Path) -> None:
    with pytest.raises(ArchiveError, match="between the members"):
        extract(block("a") + bytes(512) + block("b") + END, there)


def test_zeros_after_the_end_are_padding(there: Path) -> None:
    assert extract(block("a") + END + bytes(10_000), there).finished


@pytest.mark.parametrize("garbage", [b"x", bytes(700) + b"x", block("b") + END])
def test_anything_else_after_the_end_is_broken(there: Path, garbage: bytes) -> None:
    with pytest.raises(ArchiveError, match="follows the end"):
        extract(block("a") + END + garbage, there)


def test_a_tar_that_ends_after_an_extended_header_is_broken(there: Path) -> None:
    with pytest.raises(ArchiveError, match="describes no member"):
        extract(pax(record("path", "a")) + END, there)


def test_a_wrong_checksum_is_broken(there: Path) -> None:
    data = bytearray(block("abc"))
    data[1] ^= 1
    with pytest.raises(ArchiveError, match="not a tar, or a broken one"):
        extract(bytes(data) + END, there)


def test_a_number_that_is_none_is_broken(there: Path) -> None:
    with pytest.raises(ArchiveError, match="not a tar, or a broken one"):
        extract(forge(block("abc"), 124, b"zzzzzzzzzzz\0") + END, there)


def test_a_page_of_html_is_no_tar(there: Path) -> None:
    with pytest.raises(ArchiveError, match="not a tar"):
        extract(b"<html>" + b"404 " * 500, there)


@pytest.mark.parametrize(
    "records",
    [
        b"garbage",
        b"99 path=a\n",
        b"9 path=a",
        b"8 path=a\n",
        b"7 patha\n",
        b"5 =a\n",
        b"0 path=a\n",
        b"-9 path=a\n",
        b"10 path=a\n\0",
        b"99999999999999 path=a\n",
    ],
)
def test_a_malformed_pax_header_is_broken(there: Path, records: bytes) -> None:
    with pytest.raises(ArchiveError, match="PAX header of the tar is malformed"):
        extract(pax(records) + block("a") + END, there)


@pytest.mark.parametrize("value", ["-1", "1_0", "0x10", " 1", "1.0", "٣", "9" * 5000])
def test_a_pax_size_that_is_no_number_is_broken(there: Path, value: str) -> None:
    with pytest.raises(ArchiveError, match="has a size of"):
        extract(pax(record("size", value)) + block("a") + END, there)


@pytest.mark.parametrize("value", ["now", "1e5", "--1", "1.2.3", "nan", "9" * 5000])
def test_a_pax_time_that_is_no_number_is_broken(there: Path, value: str) -> None:
    with pytest.raises(ArchiveError, match="has a time of"):
        extract(pax(record("mtime", value)) + block("a") + END, there)


# Compression


@pytest.mark.parametrize("step", [1, 100, None])
@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS.keys())
def test_compressed_tars_are_read(there: Path, compress: Callable[[bytes], bytes], step: int | None) -> None:
    content = random_bytes(5000)
    extract(compress(block("a", content=content) + END), there, step)
    assert (there / "a").read_bytes() == content


@pytest.mark.parametrize("step", [1, None])
@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS.keys())
def test_streams_behind_one_another_are_one(there: Path, compress: Callable[[bytes], bytes], step: int | None) -> None:
    data = block("a", content=b"x" * 1000) + END
    parts = [compress(data[:700]), compress(b""), compress(data[700:])]
    extract(b"".join(parts) + bytes(100), there, step)
    assert (there / "a").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS.keys())
def test_garbage_behind_a_compressed_tar_is_broken(there: Path, compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ArchiveError, match="stream is broken"):
        extract(compress(block("a") + END) + b"garbage, and some more", there)


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS.keys())
def test_a_flipped_bit_in_a_compressed_tar_is_broken(there: Path, compress: Callable[[bytes], bytes]) -> None:
    data = bytearray(compress(block("a", content=random_bytes(5000)) + END))
    data[len(data) // 2] ^= 16
    with pytest.raises(ArchiveError):
        extract(bytes(data), there)


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS.keys())
def test_a_bomb_costs_no_memory(there: Path, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(block("bomb", content=bytes(48 * MiB)) + END)
    assert len(bomb) < 256 * KiB
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeArchiveError, match="more than"):
            extract(bomb, there, max_bytes=40 * MiB)
        (there / "bomb").unlink(missing_ok=True)
        extract(bomb, there)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (there / "bomb").stat().st_size == 48 * MiB
    assert peak < 16 * MiB  # 8 of them are the dictionary of an xz


def test_a_flood_of_empty_streams_takes_no_time_of_its_square(there: Path) -> None:
    # The square of it would last longer than a test may.
    data = gzip.compress(block("a") + END, mtime=0) + gzip.compress(b"", mtime=0) * 150_000
    assert extract(data, there).finished


def test_an_xz_that_asks_for_too_much_memory_is_broken(there: Path) -> None:
    data = bytearray(lzma.compress(block("a") + END, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]))
    assert data[12:16] == b"\x02\x00\x21\x01"  # a block's header with one filter, LZMA2, and one byte for it
    data[16] = 36  # a dictionary of 1 GiB
    data[20:24] = zlib.crc32(bytes(data[12:20])).to_bytes(4, "little")
    with pytest.raises(ArchiveError, match="xz stream is broken: Memory"):
        extract(bytes(data), there)


def test_a_plain_tar_may_begin_like_a_compressed_one(there: Path) -> None:
    extract(block("BZh9.txt", content=b"x") + END, there)
    assert (there / "BZh9.txt").read_bytes() == b"x"


# Memory, the disk, the end


def test_names_of_files_are_not_kept(there: Path) -> None:
    tar = b"".join(block(f"a_name_of_usual_length_{number}") for number in range(3000))
    extractor = Extractor(there)
    extractor.feed(tar[: 512 * 100])
    tracemalloc.start()
    try:
        extractor.feed(tar[512 * 100 :])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50 * KiB


def test_a_disk_that_takes_no_more_is_named(there: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MiB, before[1]))
    try:
        with pytest.raises(StoreError, match=r"File too large while writing src/model.bin") as raised:
            extract(block("./src/model.bin", content=bytes(2 * MiB)) + END, there)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(raised.value.__cause__, OSError)


def test_a_directory_that_may_not_be_written_is_named(ordinary_user: Path) -> None:
    there = ordinary_user / "there"
    there.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="Permission denied while writing src/a"):
        extract(block("src/a") + END, there)


def test_a_destination_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere: No such file"):
        Extractor(tmp_path / "nowhere")


def test_a_destination_that_is_not_empty_is_refused(there: Path) -> None:
    (there / "something").touch()
    with pytest.raises(StoreError, match="not empty"):
        Extractor(there)


def open_files(there: Path) -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += descriptor.readlink().is_relative_to(there)
    return count


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("give_up", [Extractor.abort, Extractor.close, lambda it: it.feed(b"x" * 2000)])
def test_no_file_stays_open(there: Path, give_up: Callable[[Extractor], None]) -> None:
    extractor = Extractor(there)
    extractor.feed(block("a", content=bytes(600))[:1000])
    assert open_files(there) == 1
    if give_up is Extractor.abort:
        give_up(extractor)
    else:
        with pytest.raises(ArchiveError):
            give_up(extractor)
    assert open_files(there) == 0
    assert not extractor.finished


def test_an_extractor_that_has_failed_takes_no_more(there: Path) -> None:
    extractor = Extractor(there)
    with pytest.raises(UnsafeArchiveError):
        extractor.feed(block("../x"))
    with pytest.raises(ValueError, match="closed"):
        extractor.feed(END)
    with pytest.raises(ValueError, match="closed"):
        extractor.close()


def test_leaving_the_context_is_not_closing(there: Path) -> None:
    with Extractor(there) as extractor:
        extractor.feed(symlink("link", "x") + END)
    assert not extractor.finished
    assert not names(there)


def test_what_tarfile_makes_of_a_directory_comes_back(there: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "c.txt").write_text("c")
    (source / "link").symlink_to("a/b/c.txt")
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:") as tar:  # BentoML's call, float times and owners included
            tar.add(source, arcname="./")
        extract(file.getvalue(), there)
    assert (there / "link").read_text() == "c"
    assert abs((there / "a").stat().st_mtime - (source / "a").stat().st_mtime) < 1e-5
