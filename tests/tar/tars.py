"""Builders of unusual tars, and a helper that extracts them."""

from __future__ import annotations

import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING

from async_bento.transfer.tar.extract import Extractor

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 512
END = bytes(1024)
BUILT = 1_600_000_000


def block(
    name: str, type_: bytes = tarfile.REGTYPE, content: bytes = b"", fmt: int = tarfile.PAX_FORMAT, **more
) -> bytes:
    """A member: its header as tarfile writes it, its content, its padding."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = type_, len(content), BUILT
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info.tobuf(fmt, "utf-8", "surrogateescape") + content + bytes(-len(content) % BLOCK)


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
    return _summed(data[:begin] + field + data[begin + len(field) :])


def _summed(data: bytes) -> bytes:
    total = sum(data[:148]) + 8 * 32 + sum(data[156:BLOCK])
    return data[:148] + b"%06o\0 " % total + data[156:]


def fix_checksums(data: bytes) -> bytes:
    """Correct the checksum of every header, as an attacker would."""
    fixed = bytearray(data)
    position = 0
    while position + BLOCK <= len(fixed):
        header = bytes(fixed[position : position + BLOCK])
        position += BLOCK
        if any(header):
            fixed[position - BLOCK : position] = _summed(header)
            with suppress(tarfile.HeaderError):
                size = max(0, tarfile.nti(header[124:136]))  # type: ignore[attr-defined]
                position += -(-size // BLOCK) * BLOCK
    return bytes(fixed)


def extract(data: bytes, there: Path, step: int | None = None, **limits) -> Extractor:
    """Extract a tar, fed in pieces of `step` bytes."""
    with Extractor(there, **limits) as extractor:
        step = step or len(data) or 1
        for begin in range(0, len(data), step):
            extractor.feed(data[begin : begin + step])
        extractor.close()
        return extractor
