from __future__ import annotations

from hypothesis import given, strategies as st

from async_bento.config import GiB, MiB
from async_bento.transfer.upload import MOST_PARTS, SMALLEST_PART, choose_part_size

TiB = 1024 * GiB

sizes = st.integers(1, 48 * TiB)  # S3 takes no object above
wanted_sizes = st.integers(5 * MiB, 5 * GiB)


@given(sizes, wanted_sizes)
def test_s3_takes_every_cut(size: int, wanted: int) -> None:
    part_size = choose_part_size(size, wanted)

    assert 5 * MiB <= part_size <= 5 * GiB
    assert -(-size // part_size) <= 10_000


@given(st.integers(1, 48 * GiB), wanted_sizes)
def test_a_part_is_as_large_as_was_asked_for_where_10_000_of_them_will_do(size: int, wanted: int) -> None:
    assert choose_part_size(size, wanted) == wanted


@given(sizes, wanted_sizes)
def test_a_part_is_no_larger_than_10_000_parts_need(size: int, wanted: int) -> None:
    part_size = choose_part_size(size, wanted)

    assert part_size == wanted or -(-size // (part_size - MiB)) > MOST_PARTS


@given(sizes, st.integers(1, 5 * MiB))
def test_no_part_is_smaller_than_s3_allows_whatever_was_asked_for(size: int, wanted: int) -> None:
    assert choose_part_size(size, wanted) >= SMALLEST_PART


def test_a_tar_of_exactly_10_000_parts_keeps_its_part_size() -> None:
    assert choose_part_size(10_000 * 32 * MiB, 32 * MiB) == 32 * MiB
    assert choose_part_size(10_000 * 32 * MiB + 1, 32 * MiB) == 33 * MiB
