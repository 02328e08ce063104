"""The headers of a tar, block by block: ustar, GNU and PAX.

`tarfile.TarInfo` reads the block itself. What stretches over blocks is read here, because `tarfile.TarFile` keeps every
member it has seen and believes any size.
"""

from __future__ import annotations

import re
import tarfile
from typing import TYPE_CHECKING, Literal, NamedTuple

from async_bento.errors import UnsafeArchiveError
from async_bento.transfer.tar.safety import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SIZE = 1 << 62
"""A size no file system has; beyond it, sums might not fit where they are handed to."""

Kind = Literal["file", "directory", "symlink", "hard link"]

_KINDS: Mapping[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard link",
}

EXTENSIONS = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})
"""The types of headers that describe the member after them."""

_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_SIZE_FIELD = slice(124, 136)
_OCTAL = re.compile(rb" *[0-7]* *(\0.*)?", re.DOTALL)
_BASE_256 = (b"\x80", b"\xff")
_NS_DIGITS = 9
_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_TIME = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]*))?", re.ASCII)


class Member(NamedTuple):
    """A member, with what its extended headers say of it.

    Attributes:
        name: The name as the tar has it.
        kind: What it is.
        size: The content's size, in bytes.
        mode: The mode as the tar has it.
        mtime_ns: The time of the last change, in nanoseconds.
        target: What a link points at; else empty.
    """

    name: str
    kind: Kind
    size: int
    mode: int
    mtime_ns: int
    target: str


def read_header(block: bytes) -> tarfile.TarInfo:
    """Read a block of a header.

    Args:
        block: 512 bytes, not all zero.

    Returns:
        What they say.

    Raises:
        UnsafeArchiveError: The checksum or a number is wrong, or a size negative or absurd.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise UnsafeArchiveError(f"not a tar, or a broken one: {error}") from error
    size = block[_SIZE_FIELD]
    if not size.startswith(_BASE_256) and not _OCTAL.fullmatch(size):  # int() takes signs and underscores, too
        raise UnsafeArchiveError(f"{quoted(header.name)} is refused: its size is no octal number", member=header.name)
    if not 0 <= header.size < MAX_SIZE:
        raise UnsafeArchiveError(f"{quoted(header.name)} is refused: a size of {header.size} bytes", member=header.name)
    return header


def read_extension(type_: bytes, payload: bytes) -> dict[str, str]:
    """Read what an extended header says of the next member.

    Args:
        type_: Which of `EXTENSIONS` it is.
        payload: Its content.

    Returns:
        PAX records; a GNU long name is `path`, a GNU long link `linkpath`. A global header, which may hold a comment,
        gives none.

    Raises:
        UnsafeArchiveError: It is malformed, makes the member sparse, or names all members at once.
    """
    if type_ in _LONG:
        name, end, _ = payload.partition(b"\0")
        if not name or not end:  # readers differ in what they make of that
            raise UnsafeArchiveError("a long name of the tar is empty, or has no end")
        return {_LONG[type_]: _text(name)}
    records = _pax_records(payload)
    if type_ == tarfile.XHDTYPE:
        return records
    if not records.keys().isdisjoint({"path", "linkpath", "size"}):
        raise UnsafeArchiveError("a global header with a name or a size for all members is refused")
    return {}


def _pax_records(payload: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    position = 0
    while position < len(payload):
        length = _LENGTH.match(payload, position)
        end = position + int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(payload) or payload[end - 1 : end] != b"\n":
            raise UnsafeArchiveError("a PAX header of the tar is malformed")
        keyword, equals, value = payload[length.end() : end - 1].partition(b"=")
        if not keyword or not equals:
            raise UnsafeArchiveError("a PAX header of the tar is malformed")
        records[_text(keyword)] = _text(value)
        position = end
    if any(keyword.startswith("GNU.sparse.") for keyword in records):
        raise UnsafeArchiveError("a sparse member is refused", member=records.get("GNU.sparse.name"))
    return records


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def merge(header: tarfile.TarInfo, records: Mapping[str, str]) -> Member:
    """Bring a header and its extended headers together.

    Args:
        header: The member's own header.
        records: The records before it; an empty value is as good as none (POSIX.1-2017, pax).

    Returns:
        The member.

    Raises:
        UnsafeArchiveError: The member is no file, directory or link, or has content where it must not; or a record is
            no number where there must be one.
    """
    name = records.get("path") or header.name
    if header.type not in _KINDS:
        raise UnsafeArchiveError(f"{quoted(name)} is refused: a member of type {header.type!r}", member=name)
    kind = _KINDS[header.type]
    size = _size(records, header, name)
    if size and kind != "file":
        raise UnsafeArchiveError(f"{quoted(name)} is refused: a {kind} with content", member=name)
    if kind == "file" and name.endswith("/"):
        raise UnsafeArchiveError(f"{quoted(name)} is refused: a file with a directory's name", member=name)
    target = records.get("linkpath") or header.linkname
    return Member(name, kind, size, header.mode, _mtime_ns(records, header, name), target)


def _size(records: Mapping[str, str], header: tarfile.TarInfo, name: str) -> int:
    text = records.get("size")
    if not text:
        return header.size
    if not _NUMBER.fullmatch(text):
        raise UnsafeArchiveError(f"the PAX header of {quoted(name)} has a size of {text[:40]!r}", member=name)
    size = int(text)
    if size >= MAX_SIZE:
        raise UnsafeArchiveError(f"{quoted(name)} is refused: a size of {size} bytes", member=name)
    return size


def _mtime_ns(records: Mapping[str, str], header: tarfile.TarInfo, name: str) -> int:
    text = records.get("mtime") or str(int(header.mtime))
    found = _TIME.fullmatch(text)
    if found is None:
        raise UnsafeArchiveError(f"{quoted(name)} has a time of {text[:40]!r}", member=name)
    sign, seconds, fraction = found.groups()
    nanoseconds = int(seconds + (fraction or "")[:_NS_DIGITS].ljust(_NS_DIGITS, "0"))
    return -nanoseconds if sign else nanoseconds
