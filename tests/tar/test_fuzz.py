"""Randomly damaged tars: each is refused or extracted like tarfile reads it, and nothing outside changes.

`tests/fuzz/extractor.py` checks the same properties with a coverage-guided fuzzer.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st

from tests.platforms import IS_WINDOWS
from tests.properties import unhurried
from tests.tar.corpus import COMPRESSED, CORPUS
from tests.tar.property import as_tarfile_reads_it
from tests.tar.tars import BLOCK, fix_checksums

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tar.property import Surroundings

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a tar that fails

steps = st.sampled_from([None, 1, 13, 511, 512, 1000])

FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
}
NASTY = {
    "name": [b"../x", b"/x", b".", b"", b"a/../../x", b"real/x", b"src/a.py/x", b"\xff", b"C:/x", b"a\nb"],
    "mode": [b"0007777", b"\x80" + b"\xff" * 7, b"zzzzzzz"],
    "size": [b"0", b"1", b"777", b"77777777777", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-1", b"1_0", b"zz"],
    "mtime": [b"0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"zz"],
    "type": [bytes([kind]) for kind in b"0123456\0gxLKSVX"],
    "link": [b"..", b"../x", b"/x", b".", b"", b"src/a.py", b"top/a.py", b"top/..", b"b/../.."],
}


def flip(draw: st.DrawFn, tar: bytes) -> bytes:
    where = draw(st.integers(0, len(tar) - 1))
    return tar[:where] + draw(st.binary(min_size=1, max_size=4)) + tar[where + 1 :]


def overwrite(draw: st.DrawFn, tar: bytes) -> bytes:
    where = draw(st.integers(0, len(tar) - 1))
    put = draw(st.binary(min_size=1, max_size=4))
    return tar[:where] + put + tar[where + len(put) :]


def cut(draw: st.DrawFn, tar: bytes) -> bytes:
    return tar[: draw(st.integers(1, len(tar)))]


def drop_blocks(draw: st.DrawFn, tar: bytes) -> bytes:
    begin = draw(st.integers(0, len(tar) // BLOCK)) * BLOCK
    return tar[:begin] + tar[begin + draw(st.integers(1, 3)) * BLOCK :] or b"\0"


def splice(draw: st.DrawFn, tar: bytes) -> bytes:
    other = draw(st.sampled_from(CORPUS))
    begin = draw(st.integers(0, len(other) // BLOCK)) * BLOCK
    where = draw(st.integers(0, len(tar) // BLOCK)) * BLOCK
    return tar[:where] + other[begin : begin + draw(st.integers(1, 4)) * BLOCK] + tar[where:]


def lie(draw: st.DrawFn, tar: bytes) -> bytes:
    field = draw(st.sampled_from(sorted(FIELDS)))
    begin, size = FIELDS[field]
    where = draw(st.integers(0, max(0, len(tar) // BLOCK - 1))) * BLOCK + begin
    return tar[:where] + draw(st.sampled_from(NASTY[field])).ljust(size, b"\0") + tar[where + size :]


@st.composite
def spoiled(draw: st.DrawFn, tars: tuple[bytes, ...], ways: tuple[Callable[[st.DrawFn, bytes], bytes], ...]) -> bytes:
    tar = draw(st.sampled_from(tars))
    for way in draw(st.lists(st.sampled_from(ways), max_size=4)):
        tar = way(draw, tar)
    return tar


def test_fuzz_mutated_tar(surroundings: Surroundings) -> None:
    @settings(unhurried, max_examples=250)
    @given(spoiled(CORPUS, (overwrite, cut, drop_blocks, splice, lie, lie)), steps, st.booleans())
    def check(tar: bytes, step: int | None, fixed: bool) -> None:
        if fixed:
            tar = fix_checksums(tar)
        if surroundings.feed(tar, step) is None:
            expected = as_tarfile_reads_it(tar)
            has_links = any(kind == tarfile.SYMTYPE for kind, _ in expected.values())
            # Without the privilege to make links, their targets are copied.
            assert surroundings.found == expected or (IS_WINDOWS and has_links)

    check()


def test_fuzz_noise_refused(surroundings: Surroundings) -> None:
    @settings(unhurried, max_examples=100)
    @given(st.binary(max_size=3000), steps)
    def check(noise: bytes, step: int | None) -> None:
        if any(noise) or len(noise) < 2 * BLOCK:
            assert surroundings.feed(noise, step) is not None

    check()


def test_fuzz_mutated_gzip(surroundings: Surroundings) -> None:
    assert surroundings.feed(COMPRESSED) is None
    whole = surroundings.found

    @settings(unhurried, max_examples=60)
    @given(spoiled((COMPRESSED,), (flip, overwrite, cut)), steps)
    def check(spoilt: bytes, step: int | None) -> None:
        if surroundings.feed(spoilt, step) is None:
            assert surroundings.found == whole

    check()


@pytest.mark.parametrize("tar", [*CORPUS, COMPRESSED])
def test_fuzz_corpus_is_valid(surroundings: Surroundings, tar: bytes) -> None:
    error = surroundings.feed(tar)
    if IS_WINDOWS and "no symbolic links can be made" in str(error):
        pytest.skip("links need a privilege")
    assert error is None
    assert surroundings.found
