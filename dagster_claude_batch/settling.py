"""Reading the source's rows, and settling for them all that needs no asking."""

from collections.abc import Sequence

from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.departed import move_to_departed, welcome_back
from dagster_claude_batch.errors import DuplicateRowKeyError, NullRowKeyError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.matching import (
    our_columns,
    selected_columns,
    selected_is_ours,
    selected_keys,
)
from dagster_claude_batch.plan import CHOSEN, ROWS, Plan, in_scope
from dagster_claude_batch.sharing import share_answers
from dagster_claude_batch.source import PartitionSlice
from dagster_claude_batch.warehouse import Connection, row, rows


def settle_all(plan: Plan, slices: Sequence[PartitionSlice]) -> None:
    """Read all rows of the partitions, and settle all that needs no asking.

    Raises:
        NullRowKeyError, DuplicateRowKeyError: Nothing was planned.
    """
    plan.read_rows(slices)
    _check_keys(plan)
    _let_rows_depart(plan)
    if not plan.materialization.config.refresh:
        _use_what_is_known(plan)
    _refresh_include(plan)
    _fail_invalid_rows(plan)


def settle_chosen(plan: Plan, slices: Sequence[PartitionSlice]) -> None:
    """Read the chosen rows as they are now, and settle all that needs no asking."""
    plan.read_rows(slices, only=CHOSEN)
    _fold_duplicates(plan)
    if not plan.materialization.config.refresh:
        _use_what_is_known(plan)
    _fail_invalid_rows(plan)


def _use_what_is_known(plan: Plan) -> None:
    """Answer rows with what they left behind, or with what others have that ask the same."""
    welcome_back(plan.connection, plan.declaration, ROWS, plan.now)
    if plan.declaration.deduplicate:
        share_answers(plan)


def _check_keys(plan: Plan) -> None:
    """Refuse rows without an identity of their own."""
    declaration, connection = plan.declaration, plan.connection
    keys = selected_keys(declaration).split(", ")
    null = f"{ROWS} WHERE {' OR '.join(f'{key} IS NULL' for key in keys)}"
    (nulls,) = row(connection, f"SELECT count(*) FROM {null}")
    if nulls:
        shown = row_examples(connection, declaration, null)
        raise NullRowKeyError(declaration.asset, declaration.row_key, nulls, shown)
    several = f"(SELECT {', '.join(keys)}, partition FROM {ROWS} GROUP BY ALL HAVING count(*) > 1)"
    (duplicates,) = row(connection, f"SELECT count(*) FROM {several}")
    if duplicates:
        shown = row_examples(connection, declaration, several)
        raise DuplicateRowKeyError(declaration.asset, declaration.row_key, duplicates, shown)


def _fold_duplicates(plan: Plan) -> None:
    """Make one row, which cannot be asked, of rows that have come to share a key meanwhile."""
    keys = selected_keys(plan.declaration)
    alike = f"SELECT 1 FROM {ROWS} GROUP BY {keys}, partition HAVING count(*) > 1 LIMIT 1"
    if not rows(plan.connection, alike):
        return
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_rows AS
        SELECT * REPLACE (
            CASE WHEN count(*) OVER alike > 1 THEN $reason ELSE reason END AS reason,
            CASE WHEN count(*) OVER alike = 1 THEN hash END AS hash)
        FROM {ROWS}
        WINDOW alike AS (PARTITION BY {keys}, partition)
        QUALIFY row_number() OVER alike = 1
        """,
        {"reason": "Several rows of the partition have come to share this row_key."},
    )


def row_examples(connection: Connection, declaration: Declaration, relation: str) -> str:
    """A few row keys with their partition, to be read by a person."""
    keys = selected_keys(declaration)
    shown: list[str] = []
    for partition, *values in rows(connection, f"SELECT partition, {keys} FROM {relation} LIMIT 5"):
        pairs = zip(declaration.row_key, values, strict=True)
        key = ", ".join(f"{name}={value!r}" for name, value in pairs)
        shown.append(f"({key})" + (f" in partition {partition!r}" if partition else ""))
    return "; ".join(shown)


def _let_rows_depart(plan: Plan) -> None:
    """Move answers of rows that left the source aside, and forget such rows' failures."""
    stays = f"SELECT 1 FROM {ROWS} AS r WHERE {selected_is_ours(plan.declaration, 'r', 'here')}"
    gone = f"{in_scope('here')} AND NOT EXISTS ({stays})"
    move_to_departed(plan.connection, plan.declaration, gone, plan.now, bound=plan.scope)
    plan.connection.execute(
        f"DELETE FROM {plan.declaration.failures.sql} AS here WHERE {gone}", plan.scope
    )


def _refresh_include(plan: Plan) -> None:
    """Let `include` columns follow the source, for they are no part of the question."""
    include = plan.declaration.include
    if not include:
        return
    pairs = [(quote_identifier(name), f"r.i{number}") for number, name in enumerate(include)]
    assigned = ", ".join(f"{name} = {value}" for name, value in pairs)
    differs = " OR ".join(f"here.{name} IS DISTINCT FROM {value}" for name, value in pairs)
    same = selected_is_ours(plan.declaration, "r", "here")
    for table in (plan.declaration.answers.sql, plan.declaration.failures.sql):
        plan.connection.execute(
            f"UPDATE {table} AS here SET {assigned} FROM {ROWS} AS r WHERE {same} AND ({differs})"
        )


def _fail_invalid_rows(plan: Plan) -> None:
    """Let rows that cannot be asked be failures, where they are not already."""
    failures = plan.declaration.failures.sql
    invalid = f"(SELECT * FROM {ROWS} WHERE reason IS NOT NULL)"
    same = selected_is_ours(plan.declaration, "r", "here")
    this_row = f"SELECT 1 FROM {invalid} AS r WHERE {same}"
    move_to_departed(plan.connection, plan.declaration, f"EXISTS ({this_row})", plan.now)
    plan.connection.execute(
        f"DELETE FROM {failures} AS here WHERE EXISTS ({this_row} "
        "AND (here._error_type <> 'invalid_row' OR here._error_message <> r.reason))"
    )
    plan.connection.execute(
        f"""
        INSERT INTO {failures} ({our_columns(plan.declaration)}, _partition, _error_type,
            _error_message, _retryable, _attempts, _input_tokens, _output_tokens,
            _cache_read_tokens, _cache_write_tokens, _cost_usd, _failed_at)
        SELECT {selected_columns(plan.declaration)}, partition, 'invalid_row', reason, false,
            0, 0, 0, 0, 0, 0, $now
        FROM {invalid} AS r WHERE NOT EXISTS (SELECT 1 FROM {failures} AS here WHERE {same})
        """,
        {"now": plan.now},
    )
