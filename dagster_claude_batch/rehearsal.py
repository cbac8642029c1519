"""A dry run: all of the planning, and nothing of what follows."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dagster_claude_batch import ledger
from dagster_claude_batch.bodies import read_requests
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import RequestsFileError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.plan import ROWS, Plan
from dagster_claude_batch.planning import plan_first
from dagster_claude_batch.preparing import prepare_tables
from dagster_claude_batch.source import PartitionSlice, find_source
from dagster_claude_batch.warehouse import Connection, row, rows

if TYPE_CHECKING:
    from dagster_claude_batch.estimate import Estimate

_EXAMPLES: Final = 3
_KEYS_SHOWN: Final = 3


@dataclass(frozen=True)
class RehearsedPartition:
    """What a partition would send: rows in requests, and a few of these with row keys.

    ``bytes`` are of all requests, which ask so many ``questions``. A request that several
    partitions share counts for one of them. ``invalid`` rows cannot be asked.
    """

    partition: str | None
    rows: int
    invalid: int
    requests: int
    bytes: int
    questions: int
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


def rehearse(  # what `Asking` is made of, and a file
    connection: Connection,
    declaration: Declaration,
    slices: Sequence[PartitionSlice],
    config: MaterializationConfig,
    now: datetime,
    *,
    requests_path: str | None = None,
) -> Rehearsal:
    """Plan what a run would send, for a transaction that is rolled back.

    With ``requests_path``, write all requests there, one a line, as a batch would have them.

    Raises:
        What `joining.Asking.attach` raises, for the same reasons; RequestsFileError.
    """
    ledger.open_ledger(connection, now)
    source = find_source(connection, declaration)
    registered = prepare_tables(connection, declaration, source)
    keys = [part.key for part in slices]
    opened = ledger.open_materialization(connection, declaration.asset, keys, config, now)
    plan = Plan(connection, declaration, registered, opened, now)
    plan_first(plan, slices)
    (chunks,) = row(
        connection,
        f"SELECT count(*) FROM ({_PLANNED})",
        {"identity": opened.materialization_id},
    )
    partitions = [_rehearsed(plan, slices, part) for part in slices]
    if requests_path is not None:
        _write(plan, slices, requests_path)
    return Rehearsal(partitions, int(chunks))


_PLANNED: Final = (
    "SELECT chunk_id, bytes / requests AS bytes FROM claude_batch.chunks "
    "WHERE materialization_id = $identity AND state IN ('planned', 'held_back')"
)


def _rehearsed(
    plan: Plan, slices: Sequence[PartitionSlice], part: PartitionSlice
) -> RehearsedPartition:
    requests = plan.registered.requests.sql
    bound: dict[str, object] = {"partition": part.key}
    identity = {"identity": plan.materialization.materialization_id}
    here = "q._partition IS NOT DISTINCT FROM $partition"
    of_partition = (
        f"SELECT q._chunk_id, q._ordinal, count(*) FILTER ({here}) AS here, "
        "max(q._position) + 1 AS questions, "
        "min(q._partition) IS NOT DISTINCT FROM $partition AS is_ours "
        f"FROM {requests} AS q WHERE q._chunk_id IN (SELECT chunk_id FROM ({_PLANNED})) "
        "GROUP BY ALL"
    )
    due, count, size, questions = row(
        plan.connection,
        "SELECT coalesce(sum(r.here), 0), count(*) FILTER (r.is_ours), "
        "coalesce(sum(p.bytes) FILTER (r.is_ours), 0), "
        "coalesce(sum(r.questions) FILTER (r.is_ours), 0) "
        f"FROM ({of_partition}) AS r JOIN ({_PLANNED}) AS p ON p.chunk_id = r._chunk_id",
        {**bound, **identity},
    )
    (invalid,) = row(
        plan.connection,
        f"SELECT count(*) FROM {ROWS} WHERE reason IS NOT NULL "
        "AND partition IS NOT DISTINCT FROM $partition",
        bound,
    )
    examples = _examples(plan, slices, of_partition, {**bound, **identity})
    return RehearsedPartition(
        part.key, int(due), int(invalid), int(count), round(size), int(questions), examples
    )


def _examples(
    plan: Plan,
    slices: Sequence[PartitionSlice],
    of_partition: str,
    parameters: dict[str, object],
) -> list[tuple[str, str]]:
    """The first requests that have rows of a partition, with the keys of these rows."""
    keys = ", ".join(f"q.{quote_identifier(name)}" for name in plan.declaration.row_key)
    table = plan.registered.requests.sql
    found = rows(
        plan.connection,
        f"SELECT q._chunk_id, q._ordinal, list(concat_ws(', ', {keys}) ORDER BY q._position) "
        f"FROM {table} AS q JOIN (SELECT * FROM ({of_partition}) WHERE here > 0 "
        "ORDER BY _chunk_id, _ordinal LIMIT $examples) AS chosen "
        "ON q._chunk_id = chosen._chunk_id AND q._ordinal = chosen._ordinal "
        "GROUP BY ALL ORDER BY ALL",
        {**parameters, "examples": _EXAMPLES},
    )
    shown = {(chunk_id, ordinal): _listed(listed) for chunk_id, ordinal, listed in found}
    requests = read_requests(
        plan.connection,
        plan.declaration,
        plan.registered,
        slices,
        "list_contains($chosen::STRUCT(c BIGINT, o INTEGER)[], {'c': _chunk_id, 'o': _ordinal})",
        {"chosen": [{"c": chunk_id, "o": ordinal} for chunk_id, ordinal in shown]},
    )
    return [(shown[chunk_id, ordinal], params) for chunk_id, ordinal, params in requests]


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return "; ".join(keys[:_KEYS_SHOWN]) + more


def _write(plan: Plan, slices: Sequence[PartitionSlice], path: str) -> None:
    """Write all planned requests into a new file that only its owner can read."""
    try:
        descriptor = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise RequestsFileError(plan.declaration.asset, path, type(error).__name__) from error
    requests = read_requests(
        plan.connection,
        plan.declaration,
        plan.registered,
        slices,
        f"_chunk_id IN (SELECT chunk_id FROM ({_PLANNED}))",
        {"identity": plan.materialization.materialization_id},
    )
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for chunk_id, ordinal, params in requests:
            custom_id = json.dumps(f"dry-run-{chunk_id}-{ordinal}")
            file.write(f'{{"custom_id":{custom_id},"params":{params}}}\n')
