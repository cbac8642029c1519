"""Whether the source is the same each time it is read: what is planned of another is never sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dagster_claude_batch.bodies import Spooled
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import UnstableSourceError
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.matching import selected_keys
from dagster_claude_batch.source import PartitionSlice, find_source, reading, select_rows
from dagster_claude_batch.warehouse import Connection, row
from dagster_claude_batch.workbench import Outstanding, Workbench

STALE_ROUNDS: Final = 3
"""How often one run finds the chunks stale that it has just planned, with none sent in between."""


@dataclass
class Steadiness:
    """What one run has seen of how long its planned chunks outlast."""

    rounds: int = 0
    newest: int = -1

    def check(
        self,
        bench: Workbench,
        materialization: Materialization,
        spooled: Spooled,
        work: Sequence[Outstanding],
    ) -> None:
        """Count what was found stale, and look closer where rows were missing.

        Raises:
            UnstableSourceError: The source gives other rows or texts at each reading.
        """
        self._count(spooled, work)
        if self.rounds >= STALE_ROUNDS:
            raise UnstableSourceError(bench.declaration.asset)
        if spooled.lacks_rows:
            slices = bench.slices_of(materialization.partitions)
            bench.warehouse.transact(
                lambda connection: _refuse_unsteady(connection, bench.declaration, slices)
            )

    def _count(self, spooled: Spooled, work: Sequence[Outstanding]) -> None:
        """Count how often what was planned of a reading did not outlast the next one.

        Chunks that were there when the last round was counted were planned before it.
        """
        if spooled.bodies:
            self.rounds = 0
        if max(chunk.chunk_id for chunk in spooled.stale) > self.newest:
            self.rounds += 1
            self.newest = max(chunk.chunk_id for each in work for chunk in each.chunks)


def _refuse_unsteady(
    connection: Connection, declaration: Declaration, slices: Sequence[PartitionSlice]
) -> None:
    """Read all rows of the partitions twice within one transaction, and compare.

    A transaction sees its tables as they were at one moment: what differs within it has not
    been changed by anybody.

    Raises:
        UnstableSourceError: The source gives other rows or texts at each reading.
    """
    if _digest(connection, declaration, slices) != _digest(connection, declaration, slices):
        raise UnstableSourceError(declaration.asset)


def _digest(
    connection: Connection, declaration: Declaration, slices: Sequence[PartitionSlice]
) -> tuple[int, int]:
    """The number of rows, and a sum over what they ask, in whatever order they come."""
    source = find_source(connection, declaration)
    query = select_rows(connection, declaration, source, slices)
    with query.callable_on(connection), reading(declaration):
        (count, total) = row(
            connection,
            f"SELECT count(*), coalesce(sum(hash({selected_keys(declaration)}, partition, hash)), "
            f"0) FROM ({query.sql})",
            query.parameters,
        )
    return int(count), int(total)
