"""Parsing of tar headers: ustar, GNU and PAX.

`tarfile.TarInfo` parses a single block, except of the most frequent kind. Extended headers, which span several blocks,
are parsed here, because `tarfile.TarFile` keeps every member in memory and trusts any size.
"""

from __future__ import annotations

import re
import sys
import tarfile
from typing import TYPE_CHECKING, Literal, NamedTuple

from async_bento.errors import UnsafeArchiveError
from async_bento.transfer.tar.safety import check_target, hard_link_path, member_path, quoted, refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_bento.config import Limits

MAX_SIZE = 1 << 62
"""A size beyond every filesystem's; sums of sizes below it fit into 64 bits."""

MemberType = Literal["file", "directory", "symlink", "hard link"]

_TYPES: Mapping[bytes, MemberType] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard link",
}

EXTENSIONS = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})
"""Types of the headers that describe the next member."""

_GNU_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
# Names are UTF-8. Where file names are ASCII, as in the C locale, the same bytes are written by way of surrogates.
_ENCODING = "ascii" if sys.getfilesystemencoding() == "ascii" else "utf-8"
_MODE, _SIZE_FIELD, _CHECKSUM = 100, slice(124, 136), slice(148, 156)  # fields of a block (POSIX.1-1988, ustar)
_DEVICES, _PREFIX = slice(329, 345), 345
_NO_DEVICES = {bytes(16), 2 * b"0000000\0"}
# From the mode to the link name, which is empty: mode, owner, group, size, time, checksum, type.
_PLAIN_NUMBERS = re.compile(
    rb"(?P<mode>[0-7]{7})\0[0-7]{7}\0[0-7]{7}\0"
    rb"(?P<size>[0-7]{11})\0(?P<mtime>[0-7]{11})\0(?P<checksum>[0-7]{6})\0 (?P<type>[05x])\0"
)
_OCTAL = re.compile(rb" *[0-7]* *(\0.*)?", re.DOTALL)
_BASE_256 = (b"\x80", b"\xff")  # first byte of a binary number in GNU tar: positive, negative
_NS_DIGITS = 9
_NS = 1_000_000_000
_USTAR_TIMES = range(8**11)  # eleven octal digits
# Digits are bounded: int() of a long string takes the square of its length (CVE-2020-10735).
_RECORD_LENGTH = re.compile(rb"[0-9]{1,7} ")
_SIZE = re.compile(r"[0-9]{1,19}", re.ASCII)
_TIME = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]*))?", re.ASCII)


class Member(NamedTuple):
    """A member that has passed every check of a single member.

    Fields:
        name: The name as the tar has it, for messages.
        path: The name normalised by `member_path`; empty for the root.
        target: A symlink's target as it is, a hard link's target normalised; else empty.
    """

    name: str
    path: str
    type: MemberType
    size: int
    mode: int
    mtime_ns: int
    target: str


class Header(NamedTuple):
    """The fields of a header block; sizes in bytes, the time in seconds."""

    name: str
    type: bytes
    size: int
    mode: int
    mtime: int
    linkname: str = ""


def parse_block(block: bytes) -> Header:
    """Parse a header block of 512 bytes that are not all zero."""
    return _parse_plain(block) or _parse_any(block)


def _parse_plain(block: bytes) -> Header | None:
    """Parse a file's, directory's or PAX header's block as tar programs write most of them; None for any other."""
    # In a fifth of the time of tarfile, for each of what may be a hundred thousand small files; each may have two.
    numbers = _PLAIN_NUMBERS.match(block, _MODE)
    # `_parse_any` has the rest: base-256 numbers, links, devices, names with a prefix.
    if numbers is None or block[_DEVICES] not in _NO_DEVICES:
        return None
    if block[_PREFIX] or sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ") != int(numbers["checksum"], 8):
        return None
    name, type_ = _decode(block[:_MODE].partition(b"\0")[0]), numbers["type"]
    return Header(
        name.rstrip("/") if type_ == tarfile.DIRTYPE else name,
        type_,
        int(numbers["size"], 8),
        int(numbers["mode"], 8),
        int(numbers["mtime"], 8),
    )


def _parse_any(block: bytes) -> Header:
    try:
        header = tarfile.TarInfo.frombuf(block, _ENCODING, "surrogateescape")
    except tarfile.HeaderError as error:
        raise UnsafeArchiveError(f"not a tar, or a corrupt tar ({error})") from error
    size = block[_SIZE_FIELD]
    # tarfile parses octal fields by int(), which accepts signs and underscores; other readers see another size.
    if not size.startswith(_BASE_256) and not _OCTAL.fullmatch(size):
        raise refused(header.name, "its size is not an octal number")
    if not 0 <= header.size < MAX_SIZE:
        raise refused(header.name, f"its size is {header.size} bytes")
    return Header(header.name, header.type, header.size, header.mode, int(header.mtime), header.linkname)


def parse_extension(type_: bytes, payload: bytes) -> dict[str, str]:
    """Parse an extended header into PAX records for the next member; GNU long names become `path` or `linkpath`."""
    if type_ in _GNU_LONG:
        name, end, _ = payload.partition(b"\0")
        if not name or not end:  # readers disagree about the name then
            raise UnsafeArchiveError("a GNU long name in the tar is empty or not terminated")
        return {_GNU_LONG[type_]: _decode(name)}
    records = _pax_records(payload)
    if type_ == tarfile.XHDTYPE:
        return records
    # `git archive` writes a global header with a comment; names or sizes for all members make no sense.
    if not records.keys().isdisjoint({"path", "linkpath", "size"}):
        raise UnsafeArchiveError("a global PAX header sets a name or a size for all members")
    return {}


def _pax_records(payload: bytes) -> dict[str, str]:
    """Parse records of the form `LENGTH KEYWORD=VALUE` plus newline, LENGTH counting all of it (POSIX.1-2017, pax)."""
    records: dict[str, str] = {}
    position = 0
    while position < len(payload):
        length = _RECORD_LENGTH.match(payload, position)
        end = position + int(length[0]) if length else position
        record = payload[length.end() : end] if length else b""
        keyword, _, value = record.partition(b"=")
        if end > len(payload) or not keyword or not value.endswith(b"\n"):
            raise UnsafeArchiveError("a PAX header of the tar is malformed")
        records[_decode(keyword)] = _decode(value.removesuffix(b"\n"))
        position = end
    if any(keyword.startswith("GNU.sparse.") for keyword in records):
        raise UnsafeArchiveError("sparse members are not supported", member=records.get("GNU.sparse.name"))
    return records


def _decode(raw: bytes) -> str:
    return raw.decode(_ENCODING, "surrogateescape")


def parse_member(header: Header, records: Mapping[str, str], limits: Limits) -> Member:
    """Merge a member's header with the records before it, and check the result by the rules of `safety`."""
    # An empty value deletes a record (POSIX.1-2017, pax), hence `or`.
    name = records.get("path") or header.name
    target = records.get("linkpath") or header.linkname
    if header.type not in _TYPES:
        raise refused(name, f"its type {header.type!r} is not a file, a directory or a link")
    type_ = _TYPES[header.type]
    size = _size(records, header, name)
    if size and type_ != "file":
        raise refused(name, f"a {type_} has content")
    if type_ == "file" and name.endswith("/"):
        raise refused(name, "a file has the name of a directory")
    path = member_path(name, limits)
    if not path and type_ != "directory":
        raise refused(name, f"the root of the tar is a {type_}")
    if type_ == "symlink":
        check_target(name, target, limits)
    elif type_ == "hard link":
        target = hard_link_path(name, target, limits)
    return Member(name, path, type_, size, header.mode, _mtime_ns(records, header, name), target)


def _size(records: Mapping[str, str], header: Header, name: str) -> int:
    text = records.get("size")
    if not text:
        return header.size
    if not _SIZE.fullmatch(text):
        raise refused(name, f"its PAX size is {text[:40]!r}")
    size = int(text)
    if size >= MAX_SIZE:
        raise refused(name, f"its size is {size} bytes")
    return size


def _mtime_ns(records: Mapping[str, str], header: Header, name: str) -> int:
    # Not by float(): nanoseconds since 1970 need 61 bits, and a float has 53.
    text = records.get("mtime")
    if not text and header.mtime in _USTAR_TIMES:
        return header.mtime * _NS
    text = text or str(header.mtime)
    found = _TIME.fullmatch(text)
    if found is None:
        raise refused(name, f"its time is {quoted(text[:40])}")
    sign, seconds, fraction = found.groups()
    nanoseconds = int(seconds + (fraction or "")[:_NS_DIGITS].ljust(_NS_DIGITS, "0"))
    return -nanoseconds if sign else nanoseconds
