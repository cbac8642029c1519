"""What the planning of one materialization knows, and the relations that it works with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from dagster_claude_batch import ledger
from dagster_claude_batch.adoption import owner_of
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.preparing import prepare_tables
from dagster_claude_batch.source import PartitionSlice, find_source, reading, select_rows
from dagster_claude_batch.warehouse import Connection

ROWS: Final = "temp.claude_batch_rows"
"""The source's rows as they were read last: a selected relation with ``hash``, ``reason`` (why it
cannot be asked) and ``bytes`` (of the row's own part of its request)."""

CHOSEN: Final = "temp.claude_batch_chosen"
"""The rows to be read again, by their keys and partition."""


@dataclass(frozen=True)
class Plan:
    """Where the planning of one materialization takes place."""

    connection: Connection
    declaration: Declaration
    registered: LedgerAsset
    materialization: Materialization
    now: datetime

    @property
    def scope(self) -> dict[str, object]:
        """Parameters of `in_scope`."""
        keys = [key for key in self.materialization.partitions if key is not None]
        return {"all_rows": self.materialization.partitions == (None,), "partitions": keys}

    @property
    def is_overdue(self) -> bool:
        """Whether the materialization is to end with what it has."""
        longest = self.declaration.max_wait
        if longest is None or self.materialization.state != "open":
            return False
        return self.now >= self.materialization.started_at + longest

    def of_owner(self, chunk: Chunk) -> "Plan":
        """The same for the materialization that a chunk belongs to now, and as it is now."""
        owner = owner_of(self.connection, chunk)
        return replace(self, materialization=ledger.get_materialization(self.connection, owner))

    def read_rows(self, slices: Sequence[PartitionSlice], *, only: str | None = None) -> None:
        """Render the source's rows into `ROWS`, without keeping the prompts.

        Raises:
            SourceNotFoundError, SourceFailedError, MissingColumnError, ColumnTypeChangedError,
            ColumnCollisionError: The source, or what is declared, has changed.
        """
        source = find_source(self.connection, self.declaration)
        prepare_tables(self.connection, self.declaration, source)
        query = select_rows(self.connection, self.declaration, source, slices, only=only)
        with query.callable_on(self.connection), reading(self.declaration):
            self.connection.execute(
                f"CREATE OR REPLACE TEMP TABLE claude_batch_rows AS "
                f"SELECT * EXCLUDE (params) FROM ({query.sql})",
                dict(query.parameters),
            )


def in_scope(ours: str) -> str:
    """A condition on one of our tables: the row belongs to the materialization's partitions."""
    return f"($all_rows OR {ours}._partition IN (SELECT unnest($partitions::VARCHAR[])))"
