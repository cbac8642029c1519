"""Whether the source is the same each time it is read: what is planned of another is never sent."""

from collections.abc import Sequence

from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import UnstableSourceError
from dagster_claude_batch.matching import selected_keys
from dagster_claude_batch.source import PartitionSlice, find_source, reading, select_rows
from dagster_claude_batch.warehouse import Connection, row


def refuse_unsteady(
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
    with reading(declaration):
        (count, total) = row(
            connection,
            f"SELECT count(*), coalesce(sum(hash({selected_keys(declaration)}, partition, hash)), "
            f"0) FROM ({query.sql})",
            query.parameters,
        )
    return int(count), int(total)
