"""Tars that mean harm: each is refused, with its member named, or made harmless; nothing outside is touched.

Each is fed in one piece, in odd pieces and byte by byte. What is meant to fill memory, disks or time is in
`test_bombs.py`, and what a pull leaves of it in `tests/api/test_hostile_pull.py`.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest

from async_bento.config import Limits
from async_bento.errors import UnsafeArchiveError
from async_bento.transfer.tar.extract import Extractor
from async_bento.transfer.tar.safety import check_links, member_name
from tests.tar.property import as_extracted
from tests.tar.tars import END, block, directory, extract, forge, hard_link, pax, record, symlink

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tar.property import Surroundings

    AssertRefused = Callable[..., None]

KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]
EXTENDED = [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
random_bytes = random.Random(20240229).randbytes


# Names


def assert_name_refused(assert_refused: AssertRefused, name: str, why: str) -> None:
    """Refused for a member of any kind."""
    for kind in KINDS:
        data = pax(record("path", name)) + block("it", kind, linkname="a")
        assert_refused(block("a") + data, why, name)


@pytest.mark.parametrize("name", ["..", "../x", "a/..", "a/../../x", "./../canary/file", "a/b/../../../canary/file"])
def test_a_name_that_climbs_is_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, "climbs")


@pytest.mark.parametrize("name", ["/etc/passwd", "//etc/passwd", "/."])
def test_an_absolute_name_is_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, "absolute")


def test_an_absolute_name_in_a_plain_header_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(directory("x"), 0, b"/tmp\0"), "absolute", "/tmp")


def test_a_name_that_its_prefix_makes_absolute_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(block("x"), 345, b"/etc\0"), "absolute", "/etc/x")


def test_a_name_that_its_prefix_makes_climb_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(block("x"), 345, b"..\0"), "climbs", "../x")


@pytest.mark.parametrize("name", ["C:/x", "c:\\x", "C:", "C:\\..\\x"])
def test_a_drive_letter_is_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, "path of Windows")


@pytest.mark.parametrize("name", ["a\\b", "..\\canary\\file", "\\\\host\\share", "a:b"])
def test_a_backslash_or_colon_is_a_letter_on_posix_and_refused_on_windows(
    surroundings: Surroundings, name: str
) -> None:
    assert surroundings.feed(block(name, content=b"x") + END) is None
    assert surroundings.found == {name: (tarfile.REGTYPE, b"x")}
    with pytest.raises(UnsafeArchiveError, match="path of Windows") as raised:
        member_name(name, windows=True)
    assert raised.value.member == name


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\nb", "a\rb", "a\x1b[2J", "a\x7f", "a\x9b2J", "a\x85b"])
def test_a_nul_or_a_control_character_is_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, "control characters")


def test_what_follows_a_nul_in_a_plain_header_is_no_name(surroundings: Surroundings) -> None:
    assert surroundings.feed(forge(block("a"), 0, b"a\0/../../canary/file") + END) is None
    assert list(surroundings.found) == ["a"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("n" * 256, "part longer than 255 bytes"),
        ("ü" * 128, "part longer than 255 bytes"),
        ("/".join(["d" * 200] * 21), "longer than 4096 bytes"),
        ("n" * 60_000, "longer than 4096 bytes"),
    ],
)
def test_a_name_that_is_too_long_is_refused(assert_refused: AssertRefused, name: str, why: str) -> None:
    assert_name_refused(assert_refused, name, why)


def test_a_name_that_is_too_long_does_not_fill_the_message(surroundings: Surroundings) -> None:
    error = surroundings.feed(pax(record("path", b"\xff" * 20_000)) + block("a"))
    assert 0 < len(str(error)) < 2000


def test_a_path_may_be_as_long_as_the_limit_says_and_no_longer(
    surroundings: Surroundings, assert_refused: AssertRefused
) -> None:
    limits = Limits(path=10)
    assert surroundings.feed(block("a" * 10) + symlink("b", "c" * 10) + END, limits=limits) is None
    assert_refused(block("a" * 11), "its name is longer than 10 bytes", "a" * 11, limits=limits)
    assert_refused(symlink("b", "c" * 11), "its target .* is longer than 10 bytes", "b", limits=limits)
    assert_refused(hard_link("b", "c" * 11), "its name is longer than 10 bytes", "b", limits=limits)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_member_without_a_name_is_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(forge(block("x", kind), 0, bytes(100)), "no name", "")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_root_that_is_no_directory_is_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("a") + block(".", kind, linkname="a"), "root of the tar is a", ".")


def test_a_file_with_the_name_of_a_directory_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(pax(record("path", "a/")) + block("a", content=b"x"), "directory's name", "a/")


# Symbolic links


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("/etc", "absolute"),
        ("..", "leads outside"),
        ("../canary/file", "leads outside"),
        ("a/../../x", "leads outside"),
        ("d/../../x", "leads outside"),
        ("missing/../d", "climbs out of something"),
        ("file/../d", "climbs out of something"),
        ("C:/x", "path of Windows"),
        ("a\nb", "control characters"),
        ("t" * 256, "longer than 255"),
        ("t/" * 2049, "longer than 4096"),
        ("t/" * 129, "more than 128 deep"),
        ("link", "more than 40 links"),
    ],
)
def test_a_link_with_a_bad_target_is_refused(assert_refused: AssertRefused, target: str, why: str) -> None:
    assert_refused(directory("d") + block("file") + directory("a") + symlink("link", target), why, "link")


def test_a_link_to_nothing_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(symlink("link", "x"), 157, bytes(100)), "a link to nothing", "link")


def test_a_file_written_through_a_link_as_in_cve_2026_27905_is_refused(assert_refused: AssertRefused) -> None:
    # BentoML before 1.4.36 checked where a link lies and not where it leads.
    written = block("evil/file", content=b"pwned")
    assert_refused(symlink("evil", "../canary") + written, "'evil' is a link", "evil/file")
    assert_refused(symlink("evil", "/tmp") + written, "absolute", "evil")


def test_a_file_that_replaces_a_link_as_in_cve_2026_27905_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(symlink("evil", "../canary/file") + block("evil", content=b"pwned"), "is there already", "evil")


def test_a_mode_set_through_a_link_as_in_cve_2024_12718_is_refused(assert_refused: AssertRefused) -> None:
    # tarfile gave the mode and the time of a directory to what lay in its place in the end: a link.
    pwned = directory("pwn", mode=0o777, mtime=1)
    assert_refused(directory("pwn") + symlink("pwn", "../canary") + pwned, "is there already", "pwn")
    assert_refused(symlink("pwn", "../canary") + pwned, "is there already", "pwn")
    below = symlink("a/up", "..") + symlink("pwn", "a/up/../canary/below")
    assert_refused(directory("a") + below + pwned, "is there already", "pwn")


def test_a_link_that_another_makes_lead_out_as_in_cve_2025_4138_is_refused(assert_refused: AssertRefused) -> None:
    # As it reads the first leads nowhere outside; the second makes it.
    links = symlink("escape", "link/link/../../canary/file") + symlink("link", "./")
    assert_refused(links, "the link to .* leads outside", "escape")


def test_a_link_through_a_link_to_here_as_in_cve_2025_4330_is_refused(assert_refused: AssertRefused) -> None:
    links = symlink("current", ".") + symlink("parent", "current/../canary")
    assert_refused(links, "the link to .* leads outside", "parent")
    assert_refused(links + block("parent/evil", content=b"x"), "'parent' is a link", "parent/evil")


def test_a_hard_link_that_moves_a_link_as_in_cve_2025_4330_is_refused(assert_refused: AssertRefused) -> None:
    # Where the link lies deeper than the hard link to it, the same target leads further up.
    data = directory("a") + block("a/dummy") + symlink("a/s", "../canary") + hard_link("s", "a/s")
    assert_refused(data, "no file before it", "s")


def overlong_steps(there: Path) -> tuple[bytes, str]:
    """Links to directories whose resolved path is longer than `os.path.realpath` follows, as CVE-2025-4517 has them."""
    steps = "abcdefghijklmnop"
    name = "d" * ((4096 - len(str(there)) - 1) // (len(steps) + 1))
    data, path = b"", ""
    for step in steps:
        data += directory(f"{path}{name}") + symlink(f"{path}{step}", name)
        path += f"{name}/"
    return data, "/".join(steps)


def test_links_beyond_path_max_as_in_cve_2025_4517_are_refused(
    surroundings: Surroundings, assert_refused: AssertRefused
) -> None:
    data, steps = overlong_steps(surroundings.there)
    top = f"{steps}/{'l' * 254}"
    assert_refused(data + symlink(top, "/".join([".."] * 16)), "'a' is a link", top)
    escape = symlink("escape", f"{steps}/{'/'.join(['..'] * 17)}/canary")
    assert_refused(data + escape, "the link to .* leads outside", "escape")
    attack = escape + hard_link("flag", "escape/file") + block("flag", content=b"pwned")
    assert_refused(data + attack, "no file before it", "flag")
    assert_refused(data + escape + block("escape/new", content=b"pwned"), "'escape' is a link", "escape/new")


CHAINS = {
    "one link out": {"q": "../x"},
    "up, then up by its parent": {"a/up": "..", "q": "a/up/../x"},
    "a link below a link": {"a/b/up": "../..", "q": "a/b/up/.."},
    "through two links": {"a/b/up": "..", "a/over": "b/up", "q": "a/over/../.."},
    "a link to a link's parent": {"a/here": ".", "a/there": "here/..", "q": "a/there/.."},
    "another spelling of a link": {"a/b/up": "../..", "q": "a/b/UP/.."},
    "down and up by links alone": {"a/b/c": "../../a", "a/d": "b/c/b/c", "q": "a/d/../../etc"},
}


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "reversed"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_of_links_that_leads_out_is_refused(
    assert_refused: AssertRefused, chain: dict[str, str], reverse: bool
) -> None:
    links = [symlink(name, target) for name, target in chain.items()]
    assert_refused(directory("a/b") + b"".join(links[::-1] if reverse else links), "refused: the link to", "q")


def test_of_a_tar_with_one_bad_link_no_link_is_made(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchiveError):
        extract(directory("d") + symlink("good", "d") + symlink("bad", "..") + END, tmp_path)
    assert as_extracted(tmp_path) == {"d": (tarfile.DIRTYPE, b"")}


def test_a_circle_of_links_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(symlink("one", "two/x") + symlink("two", "one/x"), "more than 40 links", "one")


def test_links_that_double_at_each_step_are_refused_at_once() -> None:
    links = {f"link{number}": f"link{number + 1}/link{number + 1}" for number in range(39)}
    with pytest.raises(UnsafeArchiveError, match="more than 40 links"):
        check_links({**links, "link39": "."}, {""})


@pytest.mark.parametrize("below", [block("link/x", content=b"x"), directory("link/x"), symlink("link/x", "y")])
def test_a_member_below_a_link_is_refused(assert_refused: AssertRefused, below: bytes) -> None:
    assert_refused(directory("d") + symlink("link", "d") + below, "'link' is a link", name_of(below))


def name_of(data: bytes) -> str:
    return tarfile.TarInfo.frombuf(data[:512], "utf-8", "surrogateescape").name


def test_nothing_is_written_through_a_link_that_someone_else_has_put_there(surroundings: Surroundings) -> None:
    there = surroundings.there
    there.mkdir()
    with Extractor(there) as extractor:
        extractor.feed(directory("d") + END[:0])
        (there / "d" / "file").symlink_to(surroundings.canary / "file")
        with pytest.raises(UnsafeArchiveError, match="is there already"):
            extractor.feed(block("d/file", content=b"x"))
    surroundings.check()


# Hard links


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("../canary/file", "climbs"),
        ("/etc/passwd", "absolute"),
        ("missing", "no file before it"),
        ("d", "no file before it"),
        ("link", "no file before it"),
        ("link/x", "no file before it"),
        ("it", "no file before it"),
        ("file/x", "no file before it"),
        ("dangling", "no file before it"),
        (".", "no file before it"),
    ],
)
def test_a_hard_link_to_what_is_no_file_of_the_tar_is_refused(
    assert_refused: AssertRefused, target: str, why: str
) -> None:
    links = symlink("link", "d") + symlink("dangling", "d/y")
    assert_refused(directory("d") + block("file") + block("d/x") + links + hard_link("it", target), why, "it")


# One name for two


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [block("it"), symlink("it", "other"), block("other") + hard_link("it", "other")])
def test_a_duplicate_is_refused(assert_refused: AssertRefused, first: bytes, kind: bytes) -> None:
    second = forge(block("it", kind, linkname="source"), 0, b"it\0")
    assert_refused(block("source") + first + second, "another member is there already", "it")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("first", [directory("it"), block("it/x")])
def test_a_directory_and_then_something_else_of_its_name_is_refused(
    assert_refused: AssertRefused, first: bytes, kind: bytes
) -> None:
    assert_refused(block("source") + first + block("it", kind, linkname="source"), "is there already", "it")


def test_a_file_and_then_a_directory_of_its_name_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(block("it", content=b"x") + forge(directory("it"), 0, b"it\0"), "is there already", "it")


def test_a_file_and_then_a_member_below_it_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(block("it") + block("it/below"), "is there already", "it")


def test_a_directory_that_comes_again_only_gets_the_new_attributes(surroundings: Surroundings) -> None:
    there = surroundings.there
    there.mkdir()
    extract(directory("d", mode=0o700) + block("d/f") + directory("d", mode=0o7711) + END, there)
    assert stat.S_IMODE((there / "d").stat().st_mode) == 0o711
    assert (there / "d" / "f").exists()


TWINS = {
    "files": block("IT", content=b"1") + block("it", content=b"2"),
    "a file, then a link": block("IT") + symlink("it", "x"),
    "a link, then a file": symlink("IT", "x") + block("it"),
    "links": symlink("IT", "x") + symlink("it", "y"),
    "directories": directory("IT") + directory("it"),
    "parents": block("IT/a") + block("it/b"),
    "a file, then a hard link": block("a") + block("IT") + hard_link("it", "a"),
    "a link, then below it": symlink("IT", "../canary") + block("it/file", content=b"pwned"),
}


@pytest.mark.parametrize("twins", [TWINS[name] for name in TWINS if name != "a link, then below it"], ids=str)
def test_twins_by_case_are_two_where_case_counts(surroundings: Surroundings, twins: bytes) -> None:
    if (surroundings.base / "CANARY").exists():
        pytest.skip("case does not count here")
    assert surroundings.feed(twins + END) is None
    assert {"IT", "it"} <= surroundings.found.keys()


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS.keys())
def test_twins_by_case_are_refused_where_case_does_not_count(
    surroundings: Surroundings, twins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind_to_case(surroundings.there, monkeypatch)
    assert isinstance(surroundings.feed(twins + END), UnsafeArchiveError)


def blind_to_case(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every path below a directory mean the one in small letters."""

    def folded(path: object) -> object:
        if not str(path).startswith(f"{there}/"):
            return path
        return type(path)(str(there) + str(path)[len(str(there)) :].lower())

    def fold(where: object, name: str) -> None:
        real = getattr(where, name)
        # Where a symbolic link leads is only text.
        both = name == "hardlink_to"
        monkeypatch.setattr(
            where, name, lambda path, *args, **more: real(folded(path), *(map(folded, args) if both else args), **more)
        )

    for name in ("open", "lstat", "utime"):
        fold(os, name)
    for name in ("mkdir", "symlink_to", "hardlink_to", "lstat", "chmod"):
        fold(type(there), name)


# Kinds


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE], ids=["chr", "blk", "fifo"])
def test_a_device_or_a_fifo_is_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("odd", kind, devmajor=1, devminor=3), "member of type", "odd")


@pytest.mark.parametrize("kind", [b"V", b"M", b"D", b"N", b"A", b"I", b"X", b"?", b"\xff"])
def test_a_kind_that_no_bento_has_is_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("odd", kind), "member of type", "odd")


@pytest.mark.parametrize(("given", "kept"), [(0o7777, 0o775), (0o4755, 0o755), (0o2755, 0o755), (0o666, 0o664), (0, 0)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE], ids=["file", "directory"])
def test_set_uid_set_gid_sticky_and_world_write_are_dropped(tmp_path: Path, kind: bytes, given: int, kept: int) -> None:
    extract(block("it", kind, mode=given) + END, tmp_path)
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == kept


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_content_where_none_belongs_is_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("a") + forge(block("b", kind, b"x", linkname="a"), 0, b"b\0"), "with content", "b")


# Numbers


@pytest.mark.parametrize("size", [-1, -512, -(1 << 62), 1 << 62, 1 << 80])
def test_a_negative_or_absurd_size_is_refused(assert_refused: AssertRefused, size: int) -> None:
    field = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    assert_refused(forge(block("a"), 124, field), "a size of", "a")


@pytest.mark.parametrize("size", [b"zzzzzzzzzzz\0", b"00000000009\0", b"0x10       \0", b"\x81" * 12])
def test_a_size_that_is_no_number_is_refused(assert_refused: AssertRefused, size: bytes) -> None:
    assert_refused(block("before") + forge(block("a"), 124, size), "not a tar, or a broken one", "before")


@pytest.mark.parametrize("size", [b"0o17\0", b"1_0\0", b"+10\0", b"-0\0", b"\t1\0"])
def test_a_size_that_only_python_reads_is_refused(assert_refused: AssertRefused, size: bytes) -> None:
    assert_refused(forge(block("a", content=bytes(8)), 124, size), "no octal number", "a")


@pytest.mark.parametrize("kind", EXTENDED)
def test_a_negative_or_absurd_size_of_an_extended_header_is_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    for size in (-1, 1 << 62):
        field = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
        assert_refused(forge(block("h", kind), 124, field), "a size of", "h")


@pytest.mark.parametrize("field", [100, 108, 116, 136, 329, 337], ids=["mode", "uid", "gid", "mtime", "major", "minor"])
def test_a_number_that_is_none_is_refused(assert_refused: AssertRefused, field: int) -> None:
    assert_refused(block("before") + forge(block("a"), field, b"zzzzzz"), "not a tar, or a broken one", "before")


def test_a_time_that_no_clock_shows_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(block("a"), 136, b"\x80" + b"\xff" * 11), "has a time of", "a")


def test_a_wrong_checksum_is_refused(assert_refused: AssertRefused) -> None:
    data = bytearray(block("abc"))
    data[1] ^= 1
    assert_refused(block("before") + bytes(data), "not a tar, or a broken one", "before")


# PAX records that lie


@pytest.mark.parametrize("size", [1 << 62, 10**18 * 9])
def test_an_absurd_size_by_pax_is_refused(assert_refused: AssertRefused, size: int) -> None:
    assert_refused(pax(record("size", str(size))) + block("a"), "a size of", "a")


def test_a_size_by_pax_that_hides_a_member_makes_it_content(surroundings: Surroundings) -> None:
    hidden = block("hidden", content=b"x")
    assert surroundings.feed(pax(record("size", str(len(hidden)))) + block("a") + hidden + END) is None
    assert surroundings.found == {"a": (tarfile.REGTYPE, hidden)}


def test_a_size_by_pax_that_shows_content_as_a_member_is_held_to_the_same_rules(assert_refused: AssertRefused) -> None:
    assert_refused(pax(record("size", "0")) + block("a", content=block("../x")), "climbs", "../x")


@pytest.mark.parametrize("value", ["-1", "1_0", "0x10", " 1", "1.0", "٣", "9" * 5000])
def test_a_pax_size_that_is_no_number_is_refused(assert_refused: AssertRefused, value: str) -> None:
    assert_refused(pax(record("size", value)) + block("a"), "has a size of", "a")


@pytest.mark.parametrize("value", ["now", "1e5", "--1", "1.2.3", "nan", "9" * 5000])
def test_a_pax_time_that_is_no_number_is_refused(assert_refused: AssertRefused, value: str) -> None:
    assert_refused(pax(record("mtime", value)) + block("a"), "has a time of", "a")


@pytest.mark.parametrize("keyword", ["path", "linkpath", "size"])
def test_a_name_or_size_for_all_members_is_refused(assert_refused: AssertRefused, keyword: str) -> None:
    data = pax(record(keyword, "1"), tarfile.XGLTYPE) + block("a")
    assert_refused(data, "for all members", "././@PaxHeader")


@pytest.mark.parametrize(
    "records",
    [
        b"garbage",
        b"99 path=a\n",
        b"9 path=a",
        b"8 path=a",
        b"8 path=a\n",
        b"7 patha\n",
        b"5 =a\n",
        b"0 path=a\n",
        b"-9 path=a\n",
        b"10 path=a\n\0",
        b"99999999999999 path=a\n",
    ],
)
def test_a_malformed_pax_header_is_refused(assert_refused: AssertRefused, records: bytes) -> None:
    assert_refused(pax(records) + block("a"), "PAX header of the tar is malformed", "././@PaxHeader")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pax(record("path", "harmless")), pax(record("path", "evil"))),
        (pax(record("size", "0")), pax(record("size", "512"))),
        (block("long", tarfile.GNUTYPE_LONGNAME, b"harmless\0"), block("long", tarfile.GNUTYPE_LONGNAME, b"evil\0")),
        (pax(record("path", "harmless")), block("long", tarfile.GNUTYPE_LONGNAME, b"evil\0")),
    ],
)
def test_headers_that_contradict_each_other_are_refused(
    surroundings: Surroundings, assert_refused: AssertRefused, first: bytes, second: bytes
) -> None:
    assert_refused(first + second + block("a", content=bytes(512)), "differently", name_of(second))
    assert surroundings.feed(first + first + block("a") + END) is None


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("name", [b"", b"\0evil", b"evil"])
def test_a_long_name_that_is_empty_or_has_no_end_is_refused(
    assert_refused: AssertRefused, kind: bytes, name: bytes
) -> None:
    assert_refused(block("h", kind, name) + block("a"), "a long name of the tar is empty", "h")


def test_a_tar_that_ends_after_an_extended_header_is_refused(assert_refused: AssertRefused) -> None:
    for nothing in (pax(record("path", "a")), pax(b""), pax(b"", tarfile.XGLTYPE)):
        assert_refused(nothing, "describes no member", "././@PaxHeader")


def test_a_sparse_member_is_refused(assert_refused: AssertRefused) -> None:
    assert_refused(block("odd", tarfile.GNUTYPE_SPARSE), "member of type", "odd")
    records = record("GNU.sparse.major", "1") + record("GNU.sparse.name", "odd") + record("GNU.sparse.minor", "0")
    assert_refused(pax(records) + block("a", content=b"0\n"), "sparse", "odd")
    records = record("GNU.sparse.size", str(1 << 50)) + record("GNU.sparse.numblocks", "0")
    assert_refused(pax(records) + block("a"), "sparse", "././@PaxHeader")


# Not whole, or more than whole


@pytest.mark.parametrize("compress", [bytes, *COMPRESS.values()], ids=["plain", *COMPRESS])
def test_a_tar_cut_at_any_offset_is_refused(surroundings: Surroundings, compress: Callable[[bytes], bytes]) -> None:
    name = "./" + "n" * 110
    tar = directory("./") + block(name, content=random_bytes(700)) + symlink("./s", "x") + END
    data = compress(tar)
    for cut in range(len(data)):
        error = surroundings.feed(data[:cut])
        assert isinstance(error, UnsafeArchiveError), cut
        assert "ends too early" in str(error), cut
        assert error.member in {None, ".", "././@PaxHeader", name, "./s"}, cut


def test_a_tar_cut_in_a_member_names_it(assert_refused: AssertRefused) -> None:
    data = block("a", content=b"x" * 1000)
    assert_refused(data[: 512 + 300], "ends too early, in 'a', 700 bytes before its end", "a", end=b"")


def test_one_block_of_zeros_is_no_end(assert_refused: AssertRefused) -> None:
    assert_refused(block("a") + bytes(512), "ends too early", "a", end=b"")
    assert_refused(block("a") + bytes(512) + block("b"), "between the members", "a")


@pytest.mark.parametrize("garbage", [b"x", bytes(700) + b"x", block("b") + END])
def test_garbage_after_the_end_is_refused(assert_refused: AssertRefused, garbage: bytes) -> None:
    assert_refused(block("a") + END, "something follows the end of the tar, at 'a'", "a", end=garbage)


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS.keys())
def test_garbage_after_a_compressed_tar_is_refused(
    assert_refused: AssertRefused, compress: Callable[[bytes], bytes]
) -> None:
    assert_refused(compress(block("a") + END) + b"garbage, and some more", "stream is broken", "a", end=b"")


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS.keys())
def test_a_flipped_bit_in_a_compressed_tar_is_refused(
    assert_refused: AssertRefused, compress: Callable[[bytes], bytes]
) -> None:
    data = bytearray(compress(block("a") + block("b", content=random_bytes(300_000)) + END))
    data[-20_000] ^= 16
    member = None if compress is bz2.compress else "b"  # bzip2 gives nothing of a block that is broken
    assert_refused(bytes(data), "broken", member, end=b"")
