"""Requests → chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_claude_batch.chunking import SizeLimits, into_chunks, into_chunks_by_count
from dagster_claude_batch.errors import OversizedRequestError


def _lengths(sizes: list[int], limits: SizeLimits) -> list[int]:
    return [len(positions) for positions, _ in into_chunks(sizes, limits)]


@pytest.mark.parametrize(
    ("sizes", "limits", "expected"),
    [
        ([], SizeLimits(5), []),
        ([1] * 5, SizeLimits(5), [5]),
        ([1] * 6, SizeLimits(5), [5, 1]),
        ([40, 40, 40], SizeLimits(5, max_bytes=100), [2, 1]),
        ([100, 1], SizeLimits(5, max_bytes=100), [1, 1]),
        ([1] * 300, SizeLimits(100), [100, 99, 100, 1]),
    ],
    ids=["nothing", "one full", "one more", "by bytes", "a large one alone", "distinct sizes"],
)
def test_chunks_are_filled_greedily(
    sizes: list[int], limits: SizeLimits, expected: list[int]
) -> None:
    assert _lengths(sizes, limits) == expected


@given(
    sizes=st.lists(st.integers(1, 50), max_size=300),
    chunk_size=st.integers(1, 120),
    max_bytes=st.integers(50, 400),
)
def test_every_request_is_in_one_chunk_and_no_chunk_is_too_large(
    sizes: list[int], chunk_size: int, max_bytes: int
) -> None:
    limits = SizeLimits(chunk_size, max_bytes)

    chunks = list(into_chunks(sizes, limits))

    assert [position for positions, _ in chunks for position in positions] == list(
        range(len(sizes))
    )
    for positions, size in chunks:
        assert 1 <= len(positions) <= chunk_size
        assert size == sum(sizes[p] for p in positions) <= max_bytes


def test_neighbouring_large_chunks_have_different_numbers_of_requests() -> None:
    lengths = _lengths([1] * 500_000, SizeLimits(5_000))[:-1]

    assert len(set(lengths[:97])) == 97


def test_a_request_that_fits_in_no_batch_is_an_error_with_its_position() -> None:
    with pytest.raises(OversizedRequestError) as raised:
        list(into_chunks([1, 2, 33_000_000], SizeLimits(5)))

    assert raised.value.position == 2


@given(
    st.lists(st.integers(1, 50), max_size=400),
    st.integers(1, 300),
    st.integers(100, 3_000),
    st.integers(10, 60),
)
def test_where_bytes_do_not_matter_counting_gives_the_same_chunks(
    sizes: list[int], chunk_size: int, max_bytes: int, max_request_bytes: int
) -> None:
    limits = SizeLimits(chunk_size, max_bytes, max_request_bytes)

    counted = into_chunks_by_count(len(sizes), max(sizes, default=0), limits)

    if counted is not None:
        assert counted == [positions for positions, _ in into_chunks(sizes, limits)]


def test_bytes_matter_where_the_largest_requests_could_fill_a_batch() -> None:
    assert into_chunks_by_count(10, 100, SizeLimits(5, max_bytes=500)) is not None
    assert into_chunks_by_count(10, 101, SizeLimits(5, max_bytes=500)) is None
    assert into_chunks_by_count(10, 33_000_000, SizeLimits(1)) is None
