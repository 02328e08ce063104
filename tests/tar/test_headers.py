"""Header blocks: the fast parser for plain headers reads and refuses the same blocks as `tarfile`."""

from __future__ import annotations

import tarfile
from random import Random

import pytest

from async_bento.errors import UnsafeArchiveError
from async_bento.transfer.tar import headers
from async_bento.transfer.tar.headers import Header, parse_block

NAMES = ("./a", "a", "./src/", "dir//", "./" + "x" * 98, "y" * 99, "z" * 100, "./é", "./\udcff", "a\nb", " ", "/abs")
TYPES = (
    tarfile.REGTYPE,
    tarfile.XHDTYPE,
    tarfile.AREGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
)


def blocks(random: Random) -> list[bytes]:
    made: list[bytes] = []
    for name in NAMES:
        for type_ in TYPES:
            info = tarfile.TarInfo(name)
            info.type = type_
            info.size = random.choice([0, 1, 511, 8**11 - 1])
            info.mtime = random.choice([0, 1, 1_700_000_000, 8**11 - 1])
            info.mode = random.choice([0o644, 0o755, 0, 0o7777])
            info.linkname = "./a" if type_ in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
            made += [
                info.tobuf(form, "utf-8", "surrogateescape")[-tarfile.BLOCKSIZE :]
                for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)
            ]
    return made


def with_checksum(block: bytes) -> bytes:
    total = sum(block) - sum(block[148:156]) + 256
    return block[:148] + b"%06o\0 " % total + block[156:]


def parsed(block: bytes) -> Header | str:
    try:
        return parse_block(block)
    except UnsafeArchiveError:
        return "refused"


@pytest.mark.parametrize("seed", range(6))
def test_plain_header_matches_tarfile(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)
    made = blocks(random)
    for block in [*made]:
        for _ in range(20):
            changed = bytearray(block)
            for _ in range(random.choice([1, 2])):
                changed[random.choice([random.randrange(512), *range(95, 165)])] = random.choice([0, 32, 47, 55, 255])
            made += [bytes(changed), with_checksum(bytes(changed))]

    short_way = [parsed(block) for block in made]
    assert sum(headers._parse_plain(block) is not None for block in made) > 100
    monkeypatch.setattr(headers, "_parse_plain", lambda block: None)

    assert short_way == [parsed(block) for block in made]


def test_plain_header_bypasses_tarfile(monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("./src/a")
    info.size, info.mtime = 20_000, 1_700_000_000
    block = info.tobuf(tarfile.PAX_FORMAT)
    monkeypatch.setattr(tarfile.TarInfo, "frombuf", None)

    assert parse_block(block) == Header("./src/a", tarfile.REGTYPE, 20_000, 0o644, 1_700_000_000)
