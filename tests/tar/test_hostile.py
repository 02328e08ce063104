"""Hostile tars: each is refused with the name of its member, or made harmless; nothing outside changes.

Each tar is fed in one piece, in odd pieces and byte by byte. `test_bombs.py` has tars that exhaust memory, disk or
time, and `tests/api/test_hostile_pull.py` tests pulls of hostile tars.
"""

from __future__ import annotations

import gzip
import os
import random
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest

from async_bento.config import Limits
from async_bento.errors import UnsafeArchiveError
from async_bento.transfer.tar.extract import Extractor
from async_bento.transfer.tar.safety import check_links, member_path, quoted
from tests.tar.property import as_extracted
from tests.tar.tars import END, block, directory, extract, forge, hard_link, pax, record, symlink

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tar.conftest import AssertRefused
    from tests.tar.property import Surroundings

KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]
EXTENDED = [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
random_bytes = random.Random(20240229).randbytes


# Names


def assert_name_refused(assert_refused: AssertRefused, name: str, why: str) -> None:
    """Refused for a member of any kind."""
    for kind in KINDS:
        data = pax(record("path", name)) + block("it", kind, linkname="a")
        assert_refused(block("a") + data, why, name)


@pytest.mark.parametrize("name", ["..", "../x", "a/..", "a/../../x", "./../canary/file", "a/b/../../../canary/file"])
def test_name_with_dot_dot_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, r"its name contains '\.\.'")


@pytest.mark.parametrize("name", ["/etc/passwd", "//etc/passwd", "/."])
def test_name_absolute_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, "absolute")


def test_absolute_plain_name_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(directory("x"), 0, b"/tmp\0"), "absolute", "/tmp")


def test_absolute_prefix_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(block("x"), 345, b"/etc\0"), "absolute", "/etc/x")


def test_dot_dot_prefix_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(block("x"), 345, b"..\0"), r"its name contains '\.\.'", "../x")


@pytest.mark.parametrize("name", ["C:/x", "c:\\x", "C:", "C:\\..\\x"])
def test_name_drive_letter_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, "begins with a Windows drive")


@pytest.mark.posix("backslashes or colons in names")
@pytest.mark.parametrize("name", ["a\\b", "..\\canary\\file", "\\\\host\\share", "a:b"])
def test_name_backslash_or_colon_kept(surroundings: Surroundings, name: str) -> None:
    assert surroundings.feed(block(name, content=b"x") + END) is None
    assert surroundings.found == {name: (tarfile.REGTYPE, b"x")}


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\nb", "a\rb", "a\x1b[2J", "a\x7f", "a\x9b2J", "a\x85b"])
def test_control_character_refused(assert_refused: AssertRefused, name: str) -> None:
    assert_name_refused(assert_refused, name, "control characters")


def test_plain_name_ends_at_nul(surroundings: Surroundings) -> None:
    assert surroundings.feed(forge(block("a"), 0, b"a\0/../../canary/file") + END) is None
    assert list(surroundings.found) == ["a"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("n" * 256, "component longer than 255 bytes"),
        ("ü" * 128, "component longer than 255 bytes"),
        ("/".join(["d" * 200] * 21), "longer than 4096 bytes"),
        ("n" * 60_000, "longer than 4096 bytes"),
    ],
)
def test_name_too_long_refused(assert_refused: AssertRefused, name: str, why: str) -> None:
    assert_name_refused(assert_refused, name, why)


def test_name_not_unicode_refused() -> None:
    with pytest.raises(UnsafeArchiveError, match="is not Unicode"):
        member_path("a\ud800")


def test_name_of_200_is_quoted_whole() -> None:
    assert quoted("n" * 200) == f"'{'n' * 200}'"
    assert quoted("n" * 201) == f"'{'n' * 200}'…"


def test_long_name_cut_in_message(surroundings: Surroundings) -> None:
    error = surroundings.feed(pax(record("path", b"\xff" * 20_000)) + block("a"))
    assert 0 < len(str(error)) < 2000


@pytest.mark.posix("links without a privilege")
def test_name_length_limit_is_exact(surroundings: Surroundings, assert_refused: AssertRefused) -> None:
    limits = Limits(path=10)
    assert surroundings.feed(block("a" * 10) + symlink("b", "c" * 10) + END, limits=limits) is None
    assert_refused(block("a" * 11), "its name is longer than 10 bytes", "a" * 11, limits=limits)
    assert_refused(symlink("b", "c" * 11), "its target .* is longer than 10 bytes", "b", limits=limits)
    assert_refused(hard_link("b", "c" * 11), "its target .* is longer than 10 bytes", "b", limits=limits)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_name_empty_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(forge(block("x", kind), 0, bytes(100)), "no name", "")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_root_not_directory_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("a") + block(".", kind, linkname="a"), "root of the tar is a", ".")


def test_file_name_with_slash_refused(assert_refused: AssertRefused) -> None:
    assert_refused(pax(record("path", "a/")) + block("a", content=b"x"), "a file has the name of a directory", "a/")


# Symbolic links


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("/etc", "absolute"),
        ("..", "leads outside"),
        ("../canary/file", "leads outside"),
        ("a/../../x", "leads outside"),
        ("d/../../x", "leads outside"),
        ("missing/../d", "has '..' after a component that is not a directory of the tar"),
        ("file/../d", "has '..' after a component that is not a directory of the tar"),
        ("C:/x", "begins with a Windows drive"),
        ("a\nb", "control characters"),
        ("t" * 256, "component longer than 255"),
        ("t/" * 2049, "longer than 4096"),
        ("t/" * 129, "more than 128 levels deep"),
        ("link", "more than 40 links"),
    ],
)
def test_symlink_bad_target_refused(assert_refused: AssertRefused, target: str, why: str) -> None:
    assert_refused(directory("d") + block("file") + directory("a") + symlink("link", target), why, "link")


def test_symlink_no_target_refused(assert_refused: AssertRefused) -> None:
    assert_refused(forge(symlink("link", "x"), 157, bytes(100)), "symlink target is empty", "link")


def test_written_through_cve_2026_27905(assert_refused: AssertRefused) -> None:
    # BentoML before 1.4.36 checked the path of a link but not its target.
    written = block("evil/file", content=b"pwned")
    assert_refused(symlink("evil", "../canary") + written, "its parent 'evil' is a symlink", "evil/file")
    assert_refused(symlink("evil", "/tmp") + written, "absolute", "evil")


def test_replaced_link_cve_2026_27905(assert_refused: AssertRefused) -> None:
    assert_refused(
        symlink("evil", "../canary/file") + block("evil", content=b"pwned"),
        "an earlier member has the same name",
        "evil",
    )


def test_mode_through_cve_2024_12718(assert_refused: AssertRefused) -> None:
    # tarfile applied the mode and the time of a directory to the link that had replaced the directory.
    pwned = directory("pwn", mode=0o777, mtime=1)
    assert_refused(directory("pwn") + symlink("pwn", "../canary") + pwned, "an earlier member has the same name", "pwn")
    assert_refused(symlink("pwn", "../canary") + pwned, "an earlier member has the same name", "pwn")
    below = symlink("a/up", "..") + symlink("pwn", "a/up/../canary/below")
    assert_refused(directory("a") + below + pwned, "an earlier member has the same name", "pwn")


def test_link_by_link_cve_2025_4138(assert_refused: AssertRefused) -> None:
    # Alone, the first link stays inside; the second one makes it lead outside.
    links = symlink("escape", "link/link/../../canary/file") + symlink("link", "./")
    assert_refused(links, "its target .* leads outside", "escape")


def test_dot_link_cve_2025_4330(assert_refused: AssertRefused) -> None:
    links = symlink("current", ".") + symlink("parent", "current/../canary")
    assert_refused(links, "its target .* leads outside", "parent")
    assert_refused(links + block("parent/evil", content=b"x"), "its parent 'parent' is a symlink", "parent/evil")


def test_hard_link_cve_2025_4330(assert_refused: AssertRefused) -> None:
    # If the link is deeper than its hard link, the same target leads further up from the hard link.
    data = directory("a") + block("a/dummy") + symlink("a/s", "../canary") + hard_link("s", "a/s")
    assert_refused(data, "is not an earlier file of the tar", "s")


def overlong_steps(there: Path) -> tuple[bytes, str]:
    """Links to directories whose resolved path is longer than `os.path.realpath` follows, as CVE-2025-4517 has them."""
    steps = "abcdefghijklmnop"
    name = "d" * ((4096 - len(str(there)) - 1) // (len(steps) + 1))
    data, path = b"", ""
    for step in steps:
        data += directory(f"{path}{name}") + symlink(f"{path}{step}", name)
        path += f"{name}/"
    return data, "/".join(steps)


def test_beyond_path_max_cve_2025_4517(surroundings: Surroundings, assert_refused: AssertRefused) -> None:
    data, steps = overlong_steps(surroundings.there)
    top = f"{steps}/{'l' * 254}"
    assert_refused(data + symlink(top, "/".join([".."] * 16)), "its parent 'a' is a symlink", top)
    escape = symlink("escape", f"{steps}/{'/'.join(['..'] * 17)}/canary")
    assert_refused(data + escape, "its target .* leads outside", "escape")
    attack = escape + hard_link("flag", "escape/file") + block("flag", content=b"pwned")
    assert_refused(data + attack, "is not an earlier file of the tar", "flag")
    assert_refused(
        data + escape + block("escape/new", content=b"pwned"), "its parent 'escape' is a symlink", "escape/new"
    )


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
def test_symlink_chain_escape_refused(assert_refused: AssertRefused, chain: dict[str, str], reverse: bool) -> None:
    links = [symlink(name, target) for name, target in chain.items()]
    assert_refused(directory("a/b") + b"".join(links[::-1] if reverse else links), "refused: its target", "q")


def test_bad_symlink_prevents_all(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchiveError):
        extract(directory("d") + symlink("good", "d") + symlink("bad", "..") + END, tmp_path)
    assert as_extracted(tmp_path) == {"d": (tarfile.DIRTYPE, b"")}


def test_symlink_path_limit_is_exact() -> None:
    links, directories = {"here": "long/path", "link": "here/below"}, {"", "long", "long/path"}
    check_links(links, directories, Limits(path=15))
    with pytest.raises(UnsafeArchiveError, match="leads to a path longer than 14 bytes") as raised:
        check_links(links, directories, Limits(path=14))
    assert raised.value.member == "link"


def test_symlink_circle_refused(assert_refused: AssertRefused) -> None:
    assert_refused(symlink("one", "two/x") + symlink("two", "one/x"), "more than 40 links", "one")


def test_doubling_symlinks_refused() -> None:
    links = {f"link{number}": f"link{number + 1}/link{number + 1}" for number in range(39)}
    with pytest.raises(UnsafeArchiveError, match="more than 40 links"):
        check_links({**links, "link39": "."}, {""})


@pytest.mark.parametrize("below", [block("link/x", content=b"x"), directory("link/x"), symlink("link/x", "y")])
def test_member_below_symlink_refused(assert_refused: AssertRefused, below: bytes) -> None:
    assert_refused(directory("d") + symlink("link", "d") + below, "its parent 'link' is a symlink", name_of(below))


def name_of(data: bytes) -> str:
    return tarfile.TarInfo.frombuf(data[:512], "utf-8", "surrogateescape").name


def test_planted_symlink_refused(surroundings: Surroundings) -> None:
    there = surroundings.there
    there.mkdir()
    with Extractor(there) as extractor:
        extractor.feed(directory("d") + END[:0])
        (there / "d" / "file").symlink_to(surroundings.canary / "file")
        with pytest.raises(UnsafeArchiveError, match="an earlier member has the same name"):
            extractor.feed(block("d/file", content=b"x"))
    surroundings.check()


# Hard links


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("../canary/file", r"its target .* contains '\.\.'"),
        ("/etc/passwd", "absolute"),
        ("missing", "is not an earlier file of the tar"),
        ("d", "is not an earlier file of the tar"),
        ("link", "is not an earlier file of the tar"),
        ("link/x", "is not an earlier file of the tar"),
        ("it", "is not an earlier file of the tar"),
        ("file/x", "is not an earlier file of the tar"),
        ("dangling", "is not an earlier file of the tar"),
        (".", "is not an earlier file of the tar"),
    ],
)
def test_hard_link_bad_target_refused(assert_refused: AssertRefused, target: str, why: str) -> None:
    links = symlink("link", "d") + symlink("dangling", "d/y")
    assert_refused(directory("d") + block("file") + block("d/x") + links + hard_link("it", target), why, "it")


# One name for two


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [block("it"), symlink("it", "other"), block("other") + hard_link("it", "other")])
def test_duplicate_member_refused(assert_refused: AssertRefused, first: bytes, kind: bytes) -> None:
    second = forge(block("it", kind, linkname="source"), 0, b"it\0")
    assert_refused(block("source") + first + second, "an earlier member has the same name", "it")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("first", [directory("it"), block("it/x")])
def test_duplicate_of_dir_refused(assert_refused: AssertRefused, first: bytes, kind: bytes) -> None:
    assert_refused(
        block("source") + first + block("it", kind, linkname="source"), "an earlier member has the same name", "it"
    )


def test_dir_replacing_file_refused(assert_refused: AssertRefused) -> None:
    assert_refused(
        block("it", content=b"x") + forge(directory("it"), 0, b"it\0"), "an earlier member has the same name", "it"
    )


def test_member_below_file_refused(assert_refused: AssertRefused) -> None:
    assert_refused(block("it") + block("it/below"), "an earlier member has the same name", "it")


def test_duplicate_dir_updates_time(surroundings: Surroundings) -> None:
    there = surroundings.there
    there.mkdir()
    extract(directory("d", mtime=1000) + block("d/f") + directory("d", mtime=1001) + END, there)
    assert (there / "d").stat().st_mtime == 1001
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
def test_case_twins_kept(surroundings: Surroundings, twins: bytes) -> None:
    if (surroundings.base / "CANARY").exists():
        pytest.skip("case does not count here")
    assert surroundings.feed(twins + END) is None
    assert {"IT", "it"} <= surroundings.found.keys()


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS.keys())
def test_case_twins_refused(surroundings: Surroundings, twins: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    blind_to_case(surroundings.there, monkeypatch)
    error = surroundings.feed(twins + END)
    assert isinstance(error, UnsafeArchiveError) or "no symbolic links can be made" in str(error)


def blind_to_case(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Map every path below a directory to lower case."""

    def folded(path: object) -> object:
        if not str(path).startswith(f"{there}/"):
            return path
        return type(path)(str(there) + str(path)[len(str(there)) :].lower())

    def fold(where: object, name: str) -> None:
        real = getattr(where, name)
        # The target of a symbolic link is only text.
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
def test_type_device_or_fifo_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("odd", kind, devmajor=1, devminor=3), "its type .* is not a file", "odd")


@pytest.mark.parametrize("kind", [b"V", b"M", b"D", b"N", b"A", b"I", b"X", b"?", b"\xff"])
def test_type_unknown_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("odd", kind), "its type .* is not a file", "odd")


@pytest.mark.posix("file modes")
@pytest.mark.parametrize("given", [0o7777, 0o4755, 0o2755, 0o777, 0o666, 0o100, 0])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE], ids=["file", "directory"])
def test_mode_special_bits_dropped(tmp_path: Path, kind: bytes, given: int) -> None:
    extract(block("it", kind, mode=given) + END, tmp_path)
    executable = kind == tarfile.DIRTYPE or given & stat.S_IXUSR
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == (0o755 if executable else 0o644)


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_content_of_non_file_refused(assert_refused: AssertRefused, kind: bytes) -> None:
    assert_refused(block("a") + forge(block("b", kind, b"x", linkname="a"), 0, b"b\0"), "has content", "b")


# Numbers


@pytest.mark.parametrize("size", [-1, -512, -(1 << 62), 1 << 62, 1 << 80])
def test_header_size_out_of_range(assert_refused: AssertRefused, size: int) -> None:
    field = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    assert_refused(forge(block("a"), 124, field), "its size is", "a")


@pytest.mark.parametrize("size", [b"zzzzzzzzzzz\0", b"00000000009\0", b"0x10       \0", b"\x81" * 12])
def test_header_size_non_numeric(assert_refused: AssertRefused, size: bytes) -> None:
    assert_refused(block("before") + forge(block("a"), 124, size), "not a tar, or a corrupt tar", "before")


@pytest.mark.parametrize("size", [b"0o17\0", b"1_0\0", b"+10\0", b"-0\0", b"\t1\0"])
def test_header_size_python_syntax(assert_refused: AssertRefused, size: bytes) -> None:
    assert_refused(forge(block("a", content=bytes(8)), 124, size), "not an octal number", "a")


@pytest.mark.parametrize("kind", EXTENDED)
def test_extended_size_out_of_range(assert_refused: AssertRefused, kind: bytes) -> None:
    for size in (-1, 1 << 62):
        field = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
        assert_refused(forge(block("h", kind), 124, field), "its size is", "h")


@pytest.mark.parametrize("field", [100, 108, 116, 136, 329, 337], ids=["mode", "uid", "gid", "mtime", "major", "minor"])
def test_header_field_non_numeric(assert_refused: AssertRefused, field: int) -> None:
    assert_refused(block("before") + forge(block("a"), field, b"zzzzzz"), "not a tar, or a corrupt tar", "before")


def test_header_time_out_of_range(assert_refused: AssertRefused) -> None:
    assert_refused(forge(block("a"), 136, b"\x80" + b"\xff" * 11), "its time is", "a")


def test_header_bad_checksum_refused(assert_refused: AssertRefused) -> None:
    data = bytearray(block("abc"))
    data[1] ^= 1
    assert_refused(block("before") + bytes(data), "not a tar, or a corrupt tar", "before")


# PAX records that lie


@pytest.mark.parametrize("size", [1 << 62, 10**18 * 9])
def test_pax_size_out_of_range(assert_refused: AssertRefused, size: int) -> None:
    assert_refused(pax(record("size", str(size))) + block("a"), "its size is", "a")


def test_pax_size_hides_member(surroundings: Surroundings) -> None:
    hidden = block("hidden", content=b"x")
    assert surroundings.feed(pax(record("size", str(len(hidden)))) + block("a") + hidden + END) is None
    assert surroundings.found == {"a": (tarfile.REGTYPE, hidden)}


def test_pax_size_exposes_member(assert_refused: AssertRefused) -> None:
    assert_refused(pax(record("size", "0")) + block("a", content=block("../x")), r"its name contains '\.\.'", "../x")


@pytest.mark.parametrize("value", ["-1", "1_0", "0x10", " 1", "1.0", "٣", "9" * 5000])
def test_pax_size_non_numeric(assert_refused: AssertRefused, value: str) -> None:
    assert_refused(pax(record("size", value)) + block("a"), "its PAX size is", "a")


@pytest.mark.parametrize("value", ["now", "1e5", "--1", "1.2.3", "nan", "9" * 5000])
def test_pax_time_non_numeric(assert_refused: AssertRefused, value: str) -> None:
    assert_refused(pax(record("mtime", value)) + block("a"), "its time is", "a")


@pytest.mark.parametrize("keyword", ["path", "linkpath", "size"])
def test_global_name_or_size_refused(assert_refused: AssertRefused, keyword: str) -> None:
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
def test_pax_malformed_refused(assert_refused: AssertRefused, records: bytes) -> None:
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
def test_contradictory_headers_refused(
    surroundings: Surroundings, assert_refused: AssertRefused, first: bytes, second: bytes
) -> None:
    assert_refused(first + second + block("a", content=bytes(512)), "differently", name_of(second))
    assert surroundings.feed(first + first + block("a") + END) is None


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("name", [b"", b"\0evil", b"evil"])
def test_gnu_long_name_invalid_refused(assert_refused: AssertRefused, kind: bytes, name: bytes) -> None:
    assert_refused(block("h", kind, name) + block("a"), "a GNU long name in the tar is empty", "h")


def test_header_without_member_refused(assert_refused: AssertRefused) -> None:
    for nothing in (pax(record("path", "a")), pax(b""), pax(b"", tarfile.XGLTYPE)):
        assert_refused(nothing, "extended header without a member", "././@PaxHeader")


def test_sparse_member_refused(assert_refused: AssertRefused) -> None:
    assert_refused(block("odd", tarfile.GNUTYPE_SPARSE), "its type .* is not a file", "odd")
    records = record("GNU.sparse.major", "1") + record("GNU.sparse.name", "odd") + record("GNU.sparse.minor", "0")
    assert_refused(pax(records) + block("a", content=b"0\n"), "sparse", "odd")
    records = record("GNU.sparse.size", str(1 << 50)) + record("GNU.sparse.numblocks", "0")
    assert_refused(pax(records) + block("a"), "sparse", "././@PaxHeader")


# Truncated, or with trailing data


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_truncated_at_any_byte_refused(surroundings: Surroundings, compress: Callable[[bytes], bytes]) -> None:
    name = "./" + "n" * 110
    tar = directory("./") + block(name, content=random_bytes(700)) + symlink("./s", "x") + END
    data = compress(tar)
    # Within a block of a tar, all bytes are alike; those of gzip are not.
    cuts = [cut for cut in range(len(data)) if compress is gzip.compress or cut % 512 in {0, 1, 2, 99, 256, 510, 511}]
    for cut in cuts:
        error = surroundings.feed(data[:cut])
        assert isinstance(error, UnsafeArchiveError), cut
        assert "truncated" in str(error), cut
        assert error.member in {None, ".", "././@PaxHeader", name, "./s"}, cut


def test_truncation_names_member(assert_refused: AssertRefused) -> None:
    data = block("a", content=b"x" * 1000)
    assert_refused(data[: 512 + 300], "truncated, in 'a', 700 bytes before its end", "a", end=b"")


def test_single_zero_block_refused(assert_refused: AssertRefused) -> None:
    assert_refused(block("a") + bytes(512), "the tar is truncated", "a", end=b"")
    assert_refused(block("a") + bytes(512) + block("b"), "between members", "a")


@pytest.mark.parametrize("garbage", [b"x", bytes(700) + b"x", block("b") + END])
def test_garbage_after_end_refused(assert_refused: AssertRefused, garbage: bytes) -> None:
    assert_refused(block("a") + END, "garbage follows the end of the tar, at 'a'", "a", end=garbage)


def test_garbage_after_gzip_refused(assert_refused: AssertRefused) -> None:
    data = gzip.compress(block("a") + END) + b"garbage, and some more"
    assert_refused(data, "gzip stream of the tar is corrupt", "a", end=b"")


def test_gzip_flipped_bit_refused(assert_refused: AssertRefused) -> None:
    data = bytearray(gzip.compress(block("a") + block("b", content=random_bytes(60_000)) + END))
    data[-20_000] ^= 16
    assert_refused(bytes(data), "gzip stream of the tar is corrupt", "b", end=b"")


def test_error_names_remedy(surroundings: Surroundings) -> None:
    assert str(surroundings.feed(block("../x"))).endswith("'..'. Push the item again from a clean copy.")
    error = surroundings.feed(block("a") + block("b"), limits=Limits(members=1))
    assert str(error).endswith("(Limits.members), at 'b'. Raise this limit only for a source you trust.")
    error = surroundings.feed(block("/".join("d" * 129)))
    assert str(error).endswith("(Limits.depth). Raise this limit only for a source you trust.")
    assert type(error) is UnsafeArchiveError
