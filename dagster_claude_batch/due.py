"""What is due: the rows that a materialization asks about, and asks again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from dagster_claude_batch import ledger
from dagster_claude_batch.adoption import owner_of
from dagster_claude_batch.chunks import OUT, Chunk
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.departed import move_to_departed, welcome_back
from dagster_claude_batch.errors import DuplicateRowKeyError, NullRowKeyError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.matching import (
    our_columns,
    our_keys_as_selected,
    ours_is_ours,
    selected_columns,
    selected_is_ours,
    selected_is_selected,
    selected_keys,
)
from dagster_claude_batch.outcomes import RETRYABLE, next_max_tokens
from dagster_claude_batch.preparing import prepare_tables
from dagster_claude_batch.source import (
    PartitionSlice,
    find_source,
    select_rows,
)
from dagster_claude_batch.warehouse import Connection, row, rows

DUE: Final = "temp.claude_batch_due"
"""The relation that the functions here leave behind: a selected relation with ``hash``, ``bytes``
(of the prompt as JSON), ``attempt``, ``max_tokens`` and ``place`` (among the rows of one attempt
and one `max_tokens`)."""

_ROWS: Final = "temp.claude_batch_rows"
_CHOSEN: Final = "temp.claude_batch_chosen"

_EXAMPLES: Final = 3


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

    def of_owner(self, chunk: Chunk) -> "Plan":
        """The same for the materialization that a chunk belongs to now, and as it is now."""
        owner = owner_of(self.connection, chunk)
        return replace(self, materialization=ledger.get_materialization(self.connection, owner))

    def read_rows(self, slices: Sequence[PartitionSlice], *, only: str | None = None) -> None:
        """Render the source's rows into ``claude_batch_rows``, without keeping the prompts.

        Raises:
            SourceNotFoundError, MissingColumnError, ColumnTypeChangedError,
            ColumnCollisionError: The source, or what is declared, has changed.
        """
        source = find_source(self.connection, self.declaration)
        prepare_tables(self.connection, self.declaration, source)
        query = select_rows(self.connection, self.declaration, source, slices, only=only)
        self.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE claude_batch_rows AS "
            f"SELECT * EXCLUDE (prompt), strlen(to_json(prompt)) AS bytes FROM ({query.sql})",
            dict(query.parameters),
        )


def in_scope(ours: str) -> str:
    """A condition on one of our tables: the row belongs to the materialization's partitions."""
    return f"($all_rows OR {ours}._partition IN (SELECT unnest($partitions::VARCHAR[])))"


def choose_first(plan: Plan, slices: Sequence[PartitionSlice]) -> None:
    """Fix the materialization's set of rows, and settle all that needs no asking.

    Raises:
        NullRowKeyError, DuplicateRowKeyError: Nothing was planned.
    """
    plan.read_rows(slices)
    _check_keys(plan)
    _let_rows_depart(plan)
    if not plan.materialization.config.refresh:
        welcome_back(plan.connection, plan.declaration, _ROWS, plan.now)
    _refresh_include(plan)
    _fail_invalid_rows(plan)
    _choose(plan)


def choose_up_to(plan: Plan, limit: int) -> None:
    """Leave only so many of the rows that are due."""
    plan.connection.execute(f"DELETE FROM {DUE} WHERE place >= $limit", {"limit": limit})


def choose_elsewhere(plan: Plan) -> int:
    """Choose, right after `choose_first`, rows that others have out; how many there are."""
    _choose(plan, elsewhere=True)
    (count,) = row(plan.connection, f"SELECT count(*) FROM {DUE}")
    return int(count)


def choose_retries(
    plan: Plan, slices: Sequence[PartitionSlice], *, only_unasked: bool = False
) -> int:
    """Choose the failures that get another attempt; how many there are.

    With ``only_unasked``, only rows of the set that have never come to an outcome.
    Rows that have left the source are not asked again, rows that changed are asked as they are.
    """
    if not _choose_failed(plan, only_unasked=only_unasked):
        return 0
    _read_chosen(plan, slices)
    same = selected_is_selected(plan.declaration, "r", "chosen")
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_due AS
        SELECT r.*, chosen.attempt, chosen.max_tokens, row_number() OVER (
            PARTITION BY chosen.attempt, chosen.max_tokens) - 1 AS place
        FROM {_ROWS} AS r JOIN {_CHOSEN} AS chosen ON {same}
        WHERE r.hash IS NOT NULL AND {_is_unanswered(plan)}
        """,
        _this(plan),
    )
    (count,) = row(plan.connection, f"SELECT count(*) FROM {DUE}")
    return int(count)


def choose_again(plan: Plan, chunk: Chunk, slices: Sequence[PartitionSlice]) -> None:
    """Choose what is still to be asked of a planned chunk's rows, which have changed since."""
    keys = our_keys_as_selected(plan.declaration, "q")
    plan.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_chosen AS SELECT {keys}, "
        f"_partition AS partition FROM {plan.registered.requests.sql} AS q "
        "WHERE _chunk_id = $chunk_id",
        {"chunk_id": chunk.chunk_id},
    )
    _read_chosen(plan, slices)
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_due AS
        SELECT r.*, $attempt::INTEGER AS attempt, $max_tokens::BIGINT AS max_tokens,
            row_number() OVER () - 1 AS place
        FROM {_ROWS} AS r WHERE r.hash IS NOT NULL AND {_is_unanswered(plan)}
        """,
        {"attempt": chunk.attempt, "max_tokens": chunk.max_tokens, **_this(plan)},
    )


def _read_chosen(plan: Plan, slices: Sequence[PartitionSlice]) -> None:
    """Read the chosen rows as they are now, and settle all that needs no asking."""
    plan.read_rows(slices, only=_CHOSEN)
    _fold_duplicates(plan)
    if not plan.materialization.config.refresh:
        welcome_back(plan.connection, plan.declaration, _ROWS, plan.now)
    _fail_invalid_rows(plan)


def _is_unanswered(plan: Plan) -> str:
    """A condition on a row ``r`` that was to be asked: no answer that counts has come meanwhile.

    In a refresh, only answers of the refresh itself count. Its parameters are `_this`.
    """
    known = selected_is_ours(plan.declaration, "r", "a")
    return (
        f"NOT EXISTS (SELECT 1 FROM {plan.declaration.answers.sql} AS a "
        f"WHERE {known} AND a._request_hash = r.hash AND (NOT $refresh OR a._batch_id IN ("
        "SELECT batch_id FROM claude_batch.chunks WHERE materialization_id = $this)))"
    )


def _this(plan: Plan) -> dict[str, object]:
    refresh = plan.materialization.config.refresh
    return {"refresh": refresh, "this": plan.materialization.materialization_id}


def _check_keys(plan: Plan) -> None:
    """Refuse rows without an identity of their own."""
    declaration, connection = plan.declaration, plan.connection
    keys = selected_keys(declaration).split(", ")
    null = f"{_ROWS} WHERE {' OR '.join(f'{key} IS NULL' for key in keys)}"
    (nulls,) = row(connection, f"SELECT count(*) FROM {null}")
    if nulls:
        shown = row_examples(connection, declaration, null)
        raise NullRowKeyError(declaration.asset, declaration.row_key, nulls, shown)
    several = f"(SELECT {', '.join(keys)}, partition FROM {_ROWS} GROUP BY ALL HAVING count(*) > 1)"
    (duplicates,) = row(connection, f"SELECT count(*) FROM {several}")
    if duplicates:
        shown = row_examples(connection, declaration, several)
        raise DuplicateRowKeyError(declaration.asset, declaration.row_key, duplicates, shown)


def _fold_duplicates(plan: Plan) -> None:
    """Make one row, which cannot be asked, of rows that have come to share a key meanwhile."""
    keys = selected_keys(plan.declaration)
    alike = f"SELECT 1 FROM {_ROWS} GROUP BY {keys}, partition HAVING count(*) > 1 LIMIT 1"
    if not rows(plan.connection, alike):
        return
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_rows AS
        SELECT * REPLACE (
            CASE WHEN count(*) OVER alike > 1 THEN $reason ELSE reason END AS reason,
            CASE WHEN count(*) OVER alike = 1 THEN hash END AS hash)
        FROM {_ROWS}
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
    stays = f"SELECT 1 FROM {_ROWS} AS r WHERE {selected_is_ours(plan.declaration, 'r', 'here')}"
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
            f"UPDATE {table} AS here SET {assigned} FROM {_ROWS} AS r WHERE {same} AND ({differs})"
        )


def _fail_invalid_rows(plan: Plan) -> None:
    """Let rows that cannot be asked be failures, where they are not already."""
    failures = plan.declaration.failures.sql
    invalid = f"(SELECT * FROM {_ROWS} WHERE reason IS NOT NULL)"
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


def _choose(plan: Plan, *, elsewhere: bool = False) -> None:
    """Choose the rows to ask: new, changed, failed as configured; with `refresh`, all of them.

    Of these either what nobody has out, or, ``elsewhere``, what another materialization has.
    """
    declaration, config = plan.declaration, plan.materialization.config
    failed_again: dict[Literal["retryable", "all", "none"], str] = {
        "retryable": "f._retryable",
        "all": "true",
        "none": "false",
    }
    asked = (
        "a._request_hash IS DISTINCT FROM r.hash AND (f._request_hash IS DISTINCT FROM r.hash "
        f"OR {failed_again[config.retry_failed]})"
    )
    out = f"""
        SELECT q.* FROM {plan.registered.requests.sql} AS q WHERE q._chunk_id IN (
            SELECT chunk_id FROM claude_batch.chunks WHERE asset = $asset
                AND list_contains($out, state) AND NOT is_copy
                AND (NOT $elsewhere OR materialization_id <> $this))
    """
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_due AS
        SELECT r.*, 1 AS attempt, $max_tokens::BIGINT AS max_tokens,
            row_number() OVER () - 1 AS place
        FROM {_ROWS} AS r
        LEFT JOIN {declaration.answers.sql} AS a ON {selected_is_ours(declaration, "r", "a")}
        LEFT JOIN {declaration.failures.sql} AS f ON {selected_is_ours(declaration, "r", "f")}
        WHERE r.hash IS NOT NULL AND ({"true" if config.refresh else asked})
            AND $elsewhere = EXISTS (
                SELECT 1 FROM ({out}) AS o WHERE {selected_is_ours(declaration, "r", "o")})
        """,
        {
            "elsewhere": elsewhere,
            "this": plan.materialization.materialization_id,
            "asset": declaration.asset,
            "out": list(OUT),
            "max_tokens": declaration.max_tokens,
        },
    )


def _choose_failed(plan: Plan, *, only_unasked: bool) -> int:
    """Choose the last attempts that failed and may end differently; how many there are.

    And rows that others had out, of which nothing has come, as if it were their first attempt.
    What a person cancelled is not sent again by itself, unless an earlier materialization, which
    the cancelling was meant for, has sent it.
    """
    later = ours_is_ours(plan.declaration, "f", "later")
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_chosen AS
        WITH sent AS (
            SELECT q.*, c.max_tokens, c.is_copy,
                c.adopted OR c.materialization_id <> $materialization_id AS adopted,
                c.state = 'given_up' AS given_up, c.state = 'elsewhere' AS elsewhere
            FROM {plan.registered.requests.sql} AS q
            JOIN claude_batch.chunks AS c ON c.chunk_id = q._chunk_id
            WHERE (c.materialization_id = $materialization_id AND c.state <> 'given_up')
                OR (c.materialization_id <> $materialization_id AND c.asset = $asset
                    AND c.sending_at < $started_at AND c.landed_at >= $started_at)
        )
        SELECT {our_keys_as_selected(plan.declaration, "f")}, f._partition AS partition,
            f._attempt + CASE WHEN f.given_up OR f.elsewhere THEN 0 ELSE 1 END AS attempt,
            f._outcome AS outcome, f.max_tokens
        FROM sent AS f
        WHERE (f.given_up OR f.elsewhere OR (NOT $only_unasked AND f._retryable
                AND f._attempt < $max_attempts AND NOT f.is_copy
                AND (f._outcome <> 'canceled' OR f.adopted)))
            AND {in_scope("f")}
            AND NOT EXISTS (
                SELECT 1 FROM sent AS later WHERE {later} AND (
                    ((later._chunk_id > f._chunk_id OR f.elsewhere) AND NOT later.elsewhere
                        AND (later.given_up OR NOT later.is_copy))
                    OR (later.is_copy AND later._outcome = 'answer'
                        AND later._request_hash = f._request_hash)))
        """,
        {
            **plan.scope,
            "only_unasked": only_unasked,
            "max_attempts": plan.declaration.max_attempts,
            "materialization_id": plan.materialization.materialization_id,
            "asset": plan.declaration.asset,
            "started_at": plan.materialization.started_at,
        },
    )
    _raise_max_tokens(plan)
    (count,) = row(plan.connection, f"SELECT count(*) FROM {_CHOSEN}")
    return int(count)


def _raise_max_tokens(plan: Plan) -> None:
    """Give truncated rows twice the room."""
    limit = plan.materialization.model_max_tokens
    for outcome, max_tokens in rows(
        plan.connection, f"SELECT DISTINCT outcome, max_tokens FROM {_CHOSEN}"
    ):
        allowed = next_max_tokens(outcome, max_tokens=max_tokens, model_max_tokens=limit)
        plan.connection.execute(
            f"UPDATE {_CHOSEN} SET max_tokens = $allowed, outcome = NULL "
            "WHERE outcome = $outcome AND max_tokens = $max_tokens",
            {"allowed": allowed, "outcome": outcome, "max_tokens": max_tokens},
        )


def what_is_due(plan: Plan, partition: str | None) -> tuple[int, int, int, str]:
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
        f"SELECT count(*) FROM {_ROWS} WHERE reason IS NOT NULL "
        "AND partition IS NOT DISTINCT FROM $partition",
        bound,
    )
    plan.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_chosen AS SELECT "
        f"{selected_keys(plan.declaration)}, partition FROM {DUE} "
        "WHERE partition IS NOT DISTINCT FROM $partition ORDER BY place LIMIT $examples",
        {**bound, "examples": _EXAMPLES},
    )
    return int(count), int(size), int(invalid), _CHOSEN


def count_unanswered(plan: Plan) -> int:
    """Count the rows that a halted account kept from being asked, sent in vain or not at all."""
    names = ", ".join(f"q.{quote_identifier(name)}" for name in plan.declaration.row_key)
    (count,) = row(
        plan.connection,
        f"""
        SELECT count(*) FROM (
            SELECT DISTINCT {names}, q._partition FROM {plan.registered.requests.sql} AS q
            JOIN claude_batch.chunks AS c ON c.chunk_id = q._chunk_id
            WHERE c.materialization_id = $materialization_id AND (c.state = 'planned' OR (
                c.state = 'landed' AND q._retryable
                AND NOT list_contains($retried::VARCHAR[], q._outcome))))
        """,
        {
            "materialization_id": plan.materialization.materialization_id,
            "retried": sorted(RETRYABLE),
        },
    )
    return int(count)
