"""A dry run: all of the planning, and nothing of what follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from dagster_claude_batch import ledger
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.due import DUE, choose_first, choose_up_to
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.matching import selected_keys
from dagster_claude_batch.plan import CHOSEN, ROWS, Plan
from dagster_claude_batch.planning import sizes_of_chunks
from dagster_claude_batch.preparing import prepare_tables
from dagster_claude_batch.source import PartitionSlice, find_source, reading, select_rows
from dagster_claude_batch.warehouse import Connection, row, rows

if TYPE_CHECKING:
    from dagster_claude_batch.estimate import Estimate

_EXAMPLES: Final = 3


@dataclass(frozen=True)
class RehearsedPartition:
    """What a partition would send: rows, bytes of their own, a few requests of these with row keys.

    ``invalid`` rows cannot be asked.
    """

    partition: str | None
    rows: int
    invalid: int
    bytes: int
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Rehearsal:
    """What a run would send, in how many chunks.

    ``unchecked``: what kept the API from being asked whether the model will do, or None.
    ``estimates`` are of the partitions, in their order.
    """

    partitions: Sequence[RehearsedPartition]
    chunks: int
    unchecked: str | None = None
    estimates: "Sequence[Estimate]" = ()

    @property
    def rows(self) -> int:
        """Rows of all partitions."""
        return sum(part.rows for part in self.partitions)


def rehearse(
    connection: Connection,
    declaration: Declaration,
    slices: Sequence[PartitionSlice],
    config: MaterializationConfig,
    now: datetime,
) -> Rehearsal:
    """Plan what a run would send, for a transaction that is rolled back.

    Raises:
        What `joining.Asking.attach` raises, for the same reasons.
    """
    ledger.open_ledger(connection, now)
    source = find_source(connection, declaration)
    registered = prepare_tables(connection, declaration, source)
    keys = [part.key for part in slices]
    opened = ledger.open_materialization(connection, declaration.asset, keys, config, now)
    plan = Plan(connection, declaration, registered, opened, now)
    choose_first(plan, slices)
    if config.limit is not None:
        choose_up_to(plan, config.limit)
    chunks = len(sizes_of_chunks(plan, 1, declaration.max_tokens))
    partitions = [_rehearsed(plan, part) for part in slices]
    return Rehearsal(partitions, chunks)


def _rehearsed(plan: Plan, part: PartitionSlice) -> RehearsedPartition:
    due, size, invalid, chosen = _what_is_due(plan, part.key)
    query = select_rows(
        plan.connection,
        plan.declaration,
        find_source(plan.connection, plan.declaration),
        [part],
        only=chosen,
        writes=True,
    )
    with query.callable_on(plan.connection), reading(plan.declaration):
        found = rows(
            plan.connection,
            f"SELECT {selected_keys(plan.declaration)}, params FROM ({query.sql}) ORDER BY ALL",
            query.parameters,
        )
    examples = [(", ".join(map(str, values[:-1])), str(values[-1])) for values in found]
    return RehearsedPartition(part.key, due, invalid, size, examples)


def _what_is_due(plan: Plan, partition: str | None) -> tuple[int, int, int, str]:
    """Of one partition: rows to send and their bytes, rows that cannot be; and a few examples.

    These are a relation for the ``only`` of `select_rows`.
    """
    bound = {"partition": partition}
    (count, size) = row(
        plan.connection,
        f"SELECT count(*), coalesce(sum(bytes), 0) FROM {DUE} "
        "WHERE partition IS NOT DISTINCT FROM $partition",
        bound,
    )
    (invalid,) = row(
        plan.connection,
        f"SELECT count(*) FROM {ROWS} WHERE reason IS NOT NULL "
        "AND partition IS NOT DISTINCT FROM $partition",
        bound,
    )
    plan.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_chosen AS SELECT "
        f"{selected_keys(plan.declaration)}, partition FROM {DUE} "
        "WHERE partition IS NOT DISTINCT FROM $partition ORDER BY place LIMIT $examples",
        {**bound, "examples": _EXAMPLES},
    )
    return int(count), int(size), int(invalid), CHOSEN
