"""Results → answers and failures: one transaction, which may run twice and land once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import pyarrow as pa
from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks, ledger
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.cost import TOTAL_USD_TYPE, USD_TYPE, Prices, sum_if_known
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.departed import move_to_departed
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.matching import our_columns, ours_is_ours
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import MISSING, Absent, is_halt_of_row, is_retryable
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.preparing import restore_tables
from dagster_claude_batch.staging import STAGED
from dagster_claude_batch.tables import ANSWER_COLUMNS, FAILURE_COLUMNS, columns_of, grow_table
from dagster_claude_batch.warehouse import Connection, row, rows

_LANDED = "temp.claude_batch_landed"


@dataclass(frozen=True)
class Landing:
    """Everything about one chunk that has come back, or never will.

    ``absent`` is what requests without a result are. ``was_cancelled``: by whomever; where the time
    of its materialization is over, it was for that, and what was cancelled has expired.
    """

    chunk: Chunk
    batch_id: str | None = None
    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(_RESULT_TYPES, 0))
    ended_at: datetime | None = None
    staged: pa.Table = field(default_factory=STAGED.empty_table)
    absent: Absent = MISSING
    was_cancelled: bool = False


_RESULT_TYPES = ("succeeded", "errored", "canceled", "expired")


def counts_of(batch: MessageBatch) -> dict[str, int]:
    """The final counts by result type."""
    return batch.request_counts.model_dump(include=set(_RESULT_TYPES))


def land(plan: Plan, landing: Landing) -> None:
    """Write the outcomes of one chunk.

    Raises:
        LostChunkError: It has been landed before; nothing changes.
        ColumnTypeChangedError: `output` has changed meanwhile in a way that its table cannot
            follow; nothing changes.
    """
    connection, chunk = plan.connection, landing.chunk
    declaration = as_planned(plan)
    chunks.mark_landed(connection, chunk, landing.counts, ended_at=landing.ended_at, now=plan.now)
    plan = plan.of_owner(chunk)
    chunk = replace(chunk, materialization_id=plan.materialization.materialization_id)
    restore_tables(connection, declaration, plan.registered)
    _gather(connection, declaration, plan.registered, landing)
    _share_out(connection)
    if landing.was_cancelled and plan.is_overdue:
        _let_cancelled_expire(connection)
    _judge_retries(connection, chunk, plan.materialization)
    _uncount_halted(connection, plan.materialization)
    _note_usage(connection, declaration, plan.registered, chunk)
    _add_earlier_attempts(connection, declaration, plan.registered, chunk)
    if chunk.is_copy:
        _keep_only_what_helps(plan, declaration, chunk)
    _write_answers(connection, declaration, plan.now)
    _write_failures(connection, declaration, plan.now)


def as_planned(plan: Plan) -> Declaration:
    """The declaration without `include` columns that have been added since the last plan."""
    known = {name.casefold() for name in columns_of(plan.connection, plan.registered.requests.sql)}
    include = tuple(name for name in plan.declaration.include if name.casefold() in known)
    return replace(plan.declaration, include=include)


def _gather(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    landing: Landing,
) -> None:
    """Put each request beside its result; one without is absent."""
    model = declaration.shape.model
    keys = ", ".join(
        f"q.{quote_identifier(name)}" for name in (*declaration.row_key, *declaration.include)
    )
    connection.register("claude_batch_staged", landing.staged)
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_landed AS
        SELECT {keys}, q._ordinal, q._position, q._partition, q._request_hash,
            q._attempt - $not_attempted AS _attempts,
            s.answer AS _answer,
            CASE WHEN s.ordinal IS NULL THEN $absent ELSE s.outcome END AS _error_type,
            CASE WHEN s.ordinal IS NULL THEN $absent_message ELSE s.error_message END
                AS _error_message,
            false AS _retryable, s.stop_reason AS _stop_reason, s.response AS _response,
            coalesce(s.model, $model) AS _model,
            coalesce(s.input_tokens, 0) AS _input_tokens,
            coalesce(s.output_tokens, 0) AS _output_tokens,
            coalesce(s.cache_read_tokens, 0) AS _cache_read_tokens,
            coalesce(s.cache_write_tokens, 0) AS _cache_write_tokens,
            {_cost(declaration.batch_prices(), landing.absent)} AS _cost_usd,
            coalesce(s.web_searches, 0) AS _web_searches,
            $batch_id::VARCHAR AS _batch_id,
            coalesce(s.custom_id, $nonce::VARCHAR || '-' || q._ordinal) AS _custom_id,
            s.request_id AS _request_id
        FROM {registered.requests.sql} AS q
        LEFT JOIN claude_batch_staged AS s
            ON s.ordinal = q._ordinal AND s.position = q._position
        WHERE q._chunk_id = $chunk_id
        """,
        {
            "absent": landing.absent.error_type,
            "absent_message": landing.absent.message,
            "not_attempted": 0 if landing.absent.is_attempt else 1,
            "model": model,
            "batch_id": landing.batch_id,
            "nonce": landing.chunk.nonce if landing.batch_id else None,
            "chunk_id": landing.chunk.chunk_id,
        },
    )
    connection.unregister("claude_batch_staged")


def _share_out(connection: Connection) -> None:
    """Give each row its share of the tokens and the cost of a request that it has not alone.

    To a token, and to the last digit of the cost, shares come to what was billed.
    """
    (shares,) = row(connection, f"SELECT count(*) > count(DISTINCT _ordinal) FROM {_LANDED}")
    if not shares:
        return
    tokens = [name for name in ledger.USAGE_COLUMNS if name != "_cost_usd"]
    of_rows = [f"{name} * (_nth + 1) // _n - {name} * _nth // _n AS {name}" for name in tokens]
    up_to = "(_cost_usd * {} / _n)::" + USD_TYPE
    of_rows.append(f"{up_to.format('(_nth + 1)')} - {up_to.format('_nth')} AS _cost_usd")
    of_rows.append("CASE WHEN _nth = 0 THEN _web_searches ELSE 0 END AS _web_searches")
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_landed AS "
        f"SELECT * EXCLUDE (_n, _nth) REPLACE ({', '.join(of_rows)}) FROM (SELECT *, "
        f"count(*) OVER request AS _n, row_number() OVER request - 1 AS _nth FROM {_LANDED} "
        "WINDOW request AS (PARTITION BY _ordinal))"
    )


def _cost(prices: Prices | None, absent: Absent) -> str:
    """What a request cost by its result ``s``; NULL where nobody can tell.

    An error, a cancellation and an expiry cost nothing. What has no line, or one that we do not
    understand, may have cost anything.
    """
    absent_cost = "NULL" if absent.may_be_billed else "0"
    unbilled = "s.input_tokens IS NULL AND s.outcome <> 'unrecognized_result'"
    return (
        f"CASE WHEN s.ordinal IS NULL THEN {absent_cost} WHEN {unbilled} THEN 0 "
        f"WHEN s.input_tokens IS NOT NULL THEN {_cost_of_tokens(prices)} END"
    )


def _cost_of_tokens(prices: Prices | None) -> str:
    if prices is None:
        return "NULL"
    return prices.sql(
        input_tokens="s.input_tokens",
        output_tokens="s.output_tokens",
        cache_read_tokens="s.cache_read_tokens",
        cache_write_5m_tokens="s.cache_write_tokens - coalesce(s.cache_write_1h_tokens, 0)",
        cache_write_1h_tokens="s.cache_write_1h_tokens",
        web_searches="s.web_searches",
    )


def _let_cancelled_expire(connection: Connection) -> None:
    """What was cancelled because its time was over has expired: nobody wanted it cancelled."""
    connection.execute(
        f"UPDATE {_LANDED} SET _error_type = 'expired', _error_message = $message "
        "WHERE _error_type = 'canceled'",
        {"message": "It was not answered before `max_wait_hours` had passed."},
    )


def _judge_retries(connection: Connection, chunk: Chunk, materialization: Materialization) -> None:
    """Say for each kind of failure whether another attempt may end differently."""
    types = rows(
        connection, f"SELECT DISTINCT _error_type FROM {_LANDED} WHERE _error_type NOT NULL"
    )
    retryable = [
        error_type
        for (error_type,) in types
        if is_retryable(
            error_type,
            max_tokens=chunk.max_tokens,
            model_max_tokens=materialization.model_max_tokens,
        )
    ]
    connection.execute(
        f"UPDATE {_LANDED} SET _retryable = true "
        "WHERE list_contains($types::VARCHAR[], _error_type)",
        {"types": retryable},
    )
    # A request of several rows may have failed for any one of them: each is asked alone.
    connection.execute(
        f"UPDATE {_LANDED} SET _retryable = true WHERE _error_type NOT NULL AND _ordinal IN "
        f"(SELECT _ordinal FROM {_LANDED} WHERE _position > 0)"
    )


def _uncount_halted(connection: Connection, materialization: Materialization) -> None:
    """Take back the attempts of rows that were refused because of the account, and note why."""
    kinds = rows(
        connection,
        f"SELECT DISTINCT _error_type, _error_message FROM {_LANDED} WHERE _stop_reason IS NULL "
        "AND _error_type NOT NULL AND _error_message NOT NULL",
    )
    halts = [(kind, message) for kind, message in kinds if is_halt_of_row(kind, message)]
    for kind, message in halts:
        connection.execute(
            f"UPDATE {_LANDED} SET _retryable = true, _attempts = _attempts - 1 "
            "WHERE _error_type = $kind AND _error_message = $message",
            {"kind": kind, "message": message},
        )
    if halts:
        ledger.note_halt(connection, materialization.materialization_id, one_line(halts[0][1]))


def _keep_only_what_helps(plan: Plan, declaration: Declaration, chunk: Chunk) -> None:
    """Of a second copy, only answers matter, and only to rows that have none as good.

    As good is any answer given since the copy was sent, and, but for a refresh, an earlier one to
    the same request.
    """
    same = ours_is_ours(declaration, "here", "l")
    plan.connection.execute(
        f"""
        DELETE FROM {_LANDED} AS l WHERE _error_type IS NOT NULL OR EXISTS (
            SELECT 1 FROM {declaration.answers.sql} AS here WHERE {same} AND (
                here._answered_at > $sending_at
                OR (here._request_hash IS NOT DISTINCT FROM l._request_hash AND NOT $refresh)))
        """,
        {"sending_at": chunk.sending_at, "refresh": plan.materialization.config.refresh},
    )


def _note_usage(
    connection: Connection, declaration: Declaration, registered: LedgerAsset, chunk: Chunk
) -> None:
    """Keep in the ledger what this attempt came to.

    The rows are written anew: an UPDATE of many columns took 40 times as long.
    """
    requests, carried = registered.requests.sql, our_columns(declaration)
    usage = ", ".join(ledger.USAGE_COLUMNS)
    connection.execute(
        f"DELETE FROM {requests} WHERE _chunk_id = $chunk_id", {"chunk_id": chunk.chunk_id}
    )
    connection.execute(
        f"""
        INSERT INTO {requests} ({carried}, _chunk_id, _ordinal, _position, _partition,
            _request_hash, _attempt, _outcome, _retryable, _web_searches, {usage})
        SELECT {carried}, $chunk_id, _ordinal, _position, _partition, _request_hash, _attempts,
            coalesce(_error_type, 'answer'), _retryable, _web_searches, {usage}
        FROM {_LANDED} ORDER BY _ordinal, _position
        """,
        {"chunk_id": chunk.chunk_id},
    )
    (cost,) = row(
        connection,
        f"SELECT (CASE WHEN count(*) = count(_cost_usd) THEN coalesce(sum(_cost_usd), 0) END)"
        f"::{TOTAL_USD_TYPE} FROM {_LANDED}",
    )
    chunks.note_cost(connection, chunk, cost)


def _add_earlier_attempts(
    connection: Connection, declaration: Declaration, registered: LedgerAsset, chunk: Chunk
) -> None:
    """Let each row carry the usage of all its attempts in the materialization.

    Its cost is unknown (NULL) if that of any of them is.
    """
    if chunk.attempt == 1 and not chunk.is_copy:
        return
    names = [quote_identifier(name) for name in declaration.row_key]
    keys = ", ".join(f"q.{name}" for name in names)
    sums = ", ".join(f"{sum_if_known(f'q.{name}')} AS {name}" for name in ledger.USAGE_COLUMNS)
    added = ", ".join(f"{name} = l.{name} + e.{name}" for name in ledger.USAGE_COLUMNS)
    connection.execute(
        f"""
        UPDATE {_LANDED} AS l SET {added}
        FROM (
            SELECT {keys}, q._partition, {sums} FROM {registered.requests.sql} AS q
            JOIN claude_batch.chunks AS c ON c.chunk_id = q._chunk_id
            WHERE c.materialization_id = $materialization_id AND c.state = 'landed'
                AND c.chunk_id <> $chunk_id
            GROUP BY ALL
        ) AS e
        WHERE {ours_is_ours(declaration, "l", "e")}
        """,
        {"materialization_id": chunk.materialization_id, "chunk_id": chunk.chunk_id},
    )


def _write_answers(connection: Connection, declaration: Declaration, now: datetime) -> None:
    """Replace what was known of the answered rows by their answers."""
    grow_table(
        connection,
        declaration.answers,
        {column.name: column.type for column in declaration.output.columns},
    )
    same = ours_is_ours(declaration, "here", "l")
    for table in (declaration.answers.sql, declaration.failures.sql):
        connection.execute(
            f"DELETE FROM {table} AS here WHERE EXISTS "
            f"(SELECT 1 FROM {_LANDED} AS l WHERE l._error_type IS NULL AND {same})"
        )
    output = [quote_identifier(column.name) for column in declaration.output.columns]
    own = [name for name in ANSWER_COLUMNS if name != "_answered_at"]
    carried = [quote_identifier(name) for name in (*declaration.row_key, *declaration.include)]
    connection.execute(
        f"""
        INSERT INTO {declaration.answers.sql} ({", ".join([*carried, *output, *own])}, _answered_at)
        SELECT {", ".join([*carried, *(f"_answer.{name}" for name in output), *own])}, $now
        FROM (SELECT * REPLACE (json_transform_strict(_answer, $structure) AS _answer)
              FROM {_LANDED} WHERE _error_type IS NULL) AS l
        """,
        {"now": now, "structure": declaration.output.transform_structure},
    )


def _write_failures(connection: Connection, declaration: Declaration, now: datetime) -> None:
    """Let failures take the place of what was known, unless an earlier answer still holds.

    It holds if the row has not changed (a refresh), or as long as another attempt will follow.
    """
    same = ours_is_ours(declaration, "here", "l")
    follows = f"(l._retryable AND l._attempts < {int(declaration.max_attempts)})"
    outdated = (
        f"EXISTS (SELECT 1 FROM {_LANDED} AS l WHERE l._error_type IS NOT NULL AND NOT {follows} "
        f"AND here._request_hash IS DISTINCT FROM l._request_hash AND {same})"
    )
    move_to_departed(connection, declaration, outdated, now)
    connection.execute(
        f"DELETE FROM {declaration.failures.sql} AS here WHERE EXISTS "
        f"(SELECT 1 FROM {_LANDED} AS l WHERE l._error_type IS NOT NULL AND {same})"
    )
    own = ", ".join(name for name in FAILURE_COLUMNS if name != "_failed_at")
    carried = our_columns(declaration)
    connection.execute(
        f"""
        INSERT INTO {declaration.failures.sql} ({carried}, {own}, _failed_at)
        SELECT {carried}, {own}, $now FROM {_LANDED} AS l
        WHERE _error_type IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM {declaration.answers.sql} AS here WHERE {same})
        """,
        {"now": now},
    )
