from __future__ import annotations

from hypothesis import given, strategies as st

from async_bento._core.s3 import MAX_PARTS, MIN_PART_SIZE
from async_bento.config import GiB, MiB
from async_bento.transfer.source import choose_part_size
from tests.properties import unhurried

TiB = 1024 * GiB

sizes = st.integers(1, 48 * TiB)  # the largest object of S3
wanted_sizes = st.integers(5 * MiB, 5 * GiB)


threads = st.integers(1, 100)


@unhurried
@given(sizes, wanted_sizes, threads)
def test_part_size_within_s3_limits(size: int, wanted: int, threads: int) -> None:
    part_size = choose_part_size(size, wanted, threads)

    assert 5 * MiB <= part_size <= 5 * GiB
    assert part_size % MiB == 0
    assert -(-size // part_size) <= 10_000


@unhurried
@given(sizes, wanted_sizes, threads)
def test_part_size_raised_at_max_parts(size: int, wanted: int, threads: int) -> None:
    part_size = choose_part_size(size, wanted, threads)

    assert part_size < wanted + MiB or -(-size // (part_size - MiB)) > MAX_PARTS


@unhurried
@given(sizes, wanted_sizes, threads)
def test_part_size_adds_no_rounds(size: int, wanted: int, threads: int) -> None:
    part_size = choose_part_size(size, wanted, threads)

    assert -(-size // (part_size * threads)) <= -(-size // (wanted * threads))


def test_part_size_fills_last_round() -> None:
    assert choose_part_size(60 * MiB, 16 * MiB, 10) == 6 * MiB  # ten parts instead of four
    assert choose_part_size(256 * MiB, 16 * MiB, 10) == 13 * MiB  # two rounds of ten instead of ten and six
    assert choose_part_size(1600 * MiB, 16 * MiB, 10) == 16 * MiB


@unhurried
@given(sizes, st.integers(1, 5 * MiB), threads)
def test_part_size_at_least_s3_minimum(size: int, wanted: int, threads: int) -> None:
    assert choose_part_size(size, wanted, threads) >= MIN_PART_SIZE


def test_part_size_kept_at_10_000_parts() -> None:
    assert choose_part_size(10_000 * 32 * MiB, 32 * MiB, 10) == 32 * MiB
    assert choose_part_size(10_000 * 32 * MiB + 1, 32 * MiB, 10) == 33 * MiB
