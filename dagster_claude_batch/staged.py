"""Staged rows between their download and their landing: outcomes in memory, answers on disk."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final

import pyarrow as pa

from dagster_claude_batch.arrow import read_stream, with_number, without_null, write_stream

STAGED: Final = pa.schema(
    [
        ("ordinal", pa.int32()),
        ("position", pa.int32()),
        ("custom_id", pa.string()),
        ("answer", pa.string()),
        ("outcome", pa.string()),
        ("error_message", pa.string()),
        ("stop_reason", pa.string()),
        ("response", pa.string()),
        ("model", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cache_read_tokens", pa.int64()),
        ("cache_write_tokens", pa.int64()),
        ("cache_write_1h_tokens", pa.int64()),
        ("web_searches", pa.int64()),
        ("request_id", pa.string()),
    ]
)
"""One row a question: ``position`` tells those of one request apart. ``outcome`` is NULL for an
answer, whose columns ``answer`` then is as JSON;
``cache_write_tokens`` includes those of one hour."""

_ANSWERS: Final = ["ordinal", "position", "answer"]
_BYTES_AT_A_TIME: Final = 16_000_000


@dataclass(frozen=True)
class Staged:
    """What a batch came to: its `STAGED` rows, of which the ``outcomes`` lack the answers.

    ``nbytes`` is the size of all of it.
    """

    outcomes: pa.Table
    answers: IO[bytes] | None = None
    nbytes: int = 0

    @classmethod
    def nothing(cls) -> "Staged":
        """No rows."""
        return cls(STAGED.empty_table().drop_columns(["answer"]))

    @classmethod
    def of(cls, table: pa.Table) -> "Staged":
        """Put the answers of `STAGED` rows on the disk.

        Raises:
            OSError: There is no room for them.
        """
        outcomes = table.drop_columns(["answer"])
        answered = without_null(table.select(_ANSWERS), "answer")
        file = tempfile.TemporaryFile()  # noqa: SIM115  # it is open until it has landed
        write_stream(file, answered)
        return cls(outcomes, file, table.nbytes)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The answers, with their ``ordinal`` and ``position``, as often as one likes."""
        return iter(()) if self.answers is None else read_stream(self.answers)

    def close(self) -> None:
        """Let the answers go."""
        if self.answers is not None:
            self.answers.close()


def answers_of(staged: Sequence[tuple[int, Staged]]) -> Iterator[pa.Table]:
    """The answers of several batches with the ``chunk_id`` of each, a few megabytes at a time."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for chunk_id, each in staged:
        for batch in each.batches():
            pending.append(with_number(batch, "chunk_id", chunk_id))
            size += batch.nbytes
            if size > _BYTES_AT_A_TIME:
                yield pa.Table.from_batches(pending)
                pending, size = [], 0
    if pending:
        yield pa.Table.from_batches(pending)
