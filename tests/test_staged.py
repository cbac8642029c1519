"""What is staged waits on the disk, and is read from there as often as it has to be."""

from typing import Any

import pyarrow as pa
import pytest

from dagster_claude_batch import staged
from dagster_claude_batch.arrow import rows_as
from dagster_claude_batch.staged import STAGED, Staged, answers_of


def _staged(*answers: str | None) -> Staged:
    """A row for each: an answer, or None for an error."""
    rows = [
        {"ordinal": ordinal, "position": 0, "answer": answer, "outcome": None if answer else "no"}
        for ordinal, answer in enumerate(answers)
    ]
    batches = [rows_as(STAGED, [[row.get(name) for name in STAGED.names] for row in rows])]
    return Staged.of(pa.Table.from_batches(batches if rows else [], STAGED))


def _read(*chunks: tuple[int, Staged]) -> list[list[tuple[Any, ...]]]:
    return [[tuple(row.values()) for row in table.to_pylist()] for table in answers_of(chunks)]


def test_answers_are_read_with_their_chunk_and_outcomes_without_them() -> None:
    first, second = _staged("a", None, "c"), _staged(None, "é")

    assert _read((5, first), (6, second)) == [[(5, 0, 0, "a"), (5, 2, 0, "c"), (6, 1, 0, "é")]]
    assert [row["outcome"] for row in first.outcomes.to_pylist()] == [None, "no", None]
    assert "answer" not in first.outcomes.column_names
    first.close()
    second.close()


def test_a_transaction_that_is_tried_again_reads_them_again() -> None:
    chunk = _staged("a", "b")

    assert _read((1, chunk)) == _read((1, chunk)) != []
    assert next(chunk.batches()).num_rows == 2  # as if it had been stopped here
    assert _read((1, chunk)) == [[(1, 0, 0, "a"), (1, 1, 0, "b")]]
    chunk.close()


def test_what_is_large_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "_BYTES_AT_A_TIME", 1_000)
    chunks = [(number, _staged("x" * 400, "y" * 400)) for number in range(5)]

    parts = _read(*chunks)

    assert [len(part) for part in parts] == [4, 4, 2]
    assert [row[:2] for part in parts for row in part] == [(n, o) for n in range(5) for o in (0, 1)]
    for _, chunk in chunks:
        chunk.close()


def test_where_nothing_was_answered_nothing_is_read() -> None:
    refused = _staged(None, None)

    assert _read((1, refused), (2, Staged.nothing())) == []
    assert len(refused.outcomes) == 2
    assert len(Staged.nothing().outcomes) == 0
    refused.close()
    Staged.nothing().close()
