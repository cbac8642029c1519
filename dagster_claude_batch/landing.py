"""Results → answers and failures: one transaction, which may run twice and land once."""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks, ledger
from dagster_claude_batch.adoption import owner_of
from dagster_claude_batch.arrow import column_of
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.cost import TOTAL_USD_TYPE, USD_TYPE, Prices, sum_if_known
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.departed import move_to_departed
from dagster_claude_batch.errors import LostChunkError, TemporaryFileError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.matching import our_columns, ours_is_ours
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import MISSING, Absent, is_halt_of_row, is_retryable
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.preparing import restore_tables
from dagster_claude_batch.staged import Staged, answers_of
from dagster_claude_batch.tables import ANSWER_COLUMNS, FAILURE_COLUMNS, columns_of, grow_table
from dagster_claude_batch.warehouse import Connection, row, rows

_LANDED = "temp.claude_batch_landed"
_STAGED = "claude_batch_staged"


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
    staged: Staged = field(default_factory=Staged.nothing)
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
    _mark(plan, landing)
    _land(plan, [landing])


def land_all(plan: Plan, landings: Sequence[Landing]) -> list[Landing]:
    """Write the outcomes of several chunks, those of a kind together; which have landed now.

    Raises:
        ColumnTypeChangedError: As `land`.
    """
    alike: defaultdict[tuple[object, ...], list[Landing]] = defaultdict(list)
    for landing in landings:
        with suppress(LookupError):  # the ledger has never heard of it: somebody else's matter
            owner = owner_of(plan.connection, landing.chunk)
            alike[owner, *_kind_of(landing)].append(landing)
    landed: list[Landing] = []
    for of_a_kind in alike.values():
        # Not earlier: whatever is marked counts as written for those that land after it.
        ours = [landing for landing in of_a_kind if _is_marked(plan, landing)]
        if ours:
            _land(plan, ours)
        landed += ours
    return landed


def _is_marked(plan: Plan, landing: Landing) -> bool:
    """Mark a chunk as landed; False if somebody else has."""
    try:
        _mark(plan, landing)
    except LostChunkError:
        return False
    return True


def _mark(plan: Plan, landing: Landing) -> None:
    chunks.mark_landed(
        plan.connection, landing.chunk, landing.counts, ended_at=landing.ended_at, now=plan.now
    )


def _kind_of(landing: Landing) -> tuple[object, ...]:
    """What landings that are written together have in common, besides their materialization."""
    chunk = landing.chunk
    alone = chunk.is_copy or landing.was_cancelled or landing.absent is not MISSING
    return (
        chunk.attempt,
        chunk.max_tokens,
        chunk.is_packed,
        chunk.chunk_id if alone else 0,
    )


def _land(plan: Plan, landings: Sequence[Landing]) -> None:
    """Write the outcomes of chunks that are of a kind, and have been marked as landed."""
    connection = plan.connection
    declaration = as_planned(plan)
    landing, *_ = landings
    plan = plan.of_owner(landing.chunk)
    chunk = replace(landing.chunk, materialization_id=plan.materialization.materialization_id)
    restore_tables(connection, declaration, plan.registered)
    _gather(connection, declaration, plan.registered, landings)
    _share_out(connection, sum(each.chunk.requests for each in landings))
    if landing.was_cancelled and plan.is_overdue:
        _let_cancelled_expire(connection)
    _judge_retries(connection, chunk, plan.materialization)
    _uncount_halted(connection, plan.materialization)
    chunk_ids = [each.chunk.chunk_id for each in landings]
    _note_usage(connection, declaration, plan.registered, chunk_ids)
    if chunk.attempt > 1 or chunk.is_copy:
        _add_earlier_attempts(plan, declaration, chunk_ids)
    if chunk.is_copy:
        _keep_only_what_helps(plan, declaration, chunk)
    _write_answers(connection, declaration, landings, plan.now)
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
    landings: Sequence[Landing],
) -> None:
    """Put each request beside its result, but for its answer; one without is absent."""
    model = declaration.shape.model
    absent = landings[0].absent
    keys = ", ".join(
        f"q.{quote_identifier(name)}" for name in (*declaration.row_key, *declaration.include)
    )
    connection.register(_STAGED, _outcomes(landings))
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_landed AS
        SELECT {keys}, q._chunk_id, q._ordinal, q._position, q._partition, q._request_hash,
            q._attempt - $not_attempted AS _attempts,
            CASE WHEN s.ordinal IS NULL THEN $absent ELSE s.outcome END AS _error_type,
            CASE WHEN s.ordinal IS NULL THEN $absent_message ELSE s.error_message END
                AS _error_message,
            false AS _retryable, s.stop_reason AS _stop_reason, s.response AS _response,
            coalesce(s.model, $model) AS _model,
            coalesce(s.input_tokens, 0) AS _input_tokens,
            coalesce(s.output_tokens, 0) AS _output_tokens,
            coalesce(s.cache_read_tokens, 0) AS _cache_read_tokens,
            coalesce(s.cache_write_tokens, 0) AS _cache_write_tokens,
            {_cost(declaration.batch_prices(), absent)} AS _cost_usd,
            coalesce(s.web_searches, 0) AS _web_searches,
            l.batch_id AS _batch_id,
            coalesce(s.custom_id, l.nonce || '-' || q._ordinal) AS _custom_id,
            s.request_id AS _request_id
        FROM {registered.requests.sql} AS q
        JOIN (SELECT unnest($chunk_ids::BIGINT[]) AS chunk_id,
            unnest($batch_ids::VARCHAR[]) AS batch_id, unnest($nonces::VARCHAR[]) AS nonce) AS l
            ON l.chunk_id = q._chunk_id
        LEFT JOIN {_STAGED} AS s
            ON s.chunk_id = q._chunk_id AND s.ordinal = q._ordinal AND s.position = q._position
        """,
        {
            "absent": absent.error_type,
            "absent_message": absent.message,
            "not_attempted": 0 if absent.is_attempt else 1,
            "model": model,
            "chunk_ids": [each.chunk.chunk_id for each in landings],
            "batch_ids": [each.batch_id for each in landings],
            "nonces": [each.chunk.nonce if each.batch_id else None for each in landings],
        },
    )
    connection.unregister(_STAGED)


def _outcomes(landings: Sequence[Landing]) -> pa.Table:
    """What was staged of several chunks, with the chunk's id in front."""
    return pa.concat_tables(
        outcomes.add_column(0, "chunk_id", column_of([chunk_id] * len(outcomes), pa.int64()))
        for chunk_id, outcomes in ((each.chunk.chunk_id, each.staged.outcomes) for each in landings)
    )


def _share_out(connection: Connection, requests: int) -> None:
    """Give each row its share of the tokens and the cost of a request that it has not alone.

    To a token, and to the last digit of the cost, shares come to what was billed.
    """
    (count,) = row(connection, f"SELECT count(*) FROM {_LANDED}")
    if count <= requests:
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
        "WINDOW request AS (PARTITION BY _chunk_id, _ordinal))"
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
    if chunk.is_packed:
        # A request of several rows may have failed for any one of them: each is asked alone.
        connection.execute(
            f"UPDATE {_LANDED} SET _retryable = true WHERE _error_type NOT NULL AND "
            "(_chunk_id, _ordinal) IN "
            f"(SELECT (_chunk_id, _ordinal) FROM {_LANDED} WHERE _position > 0)"
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
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    chunk_ids: Sequence[int],
) -> None:
    """Keep in the ledger what this attempt came to.

    The rows are written anew: an UPDATE of many columns took 40 times as long.
    """
    requests, carried = registered.requests.sql, our_columns(declaration)
    usage = ", ".join(ledger.USAGE_COLUMNS)
    connection.execute(
        f"DELETE FROM {requests} WHERE _chunk_id IN (SELECT unnest($chunk_ids::BIGINT[]))",
        {"chunk_ids": chunk_ids},
    )
    connection.execute(
        f"""
        INSERT INTO {requests} ({carried}, _chunk_id, _ordinal, _position, _partition,
            _request_hash, _attempt, _outcome, _retryable, _web_searches, {usage})
        SELECT {carried}, _chunk_id, _ordinal, _position, _partition, _request_hash, _attempts,
            coalesce(_error_type, 'answer'), _retryable, _web_searches, {usage}
        FROM {_LANDED} ORDER BY _chunk_id, _ordinal, _position
        """
    )
    costs = rows(
        connection,
        f"SELECT _chunk_id, (CASE WHEN count(*) = count(_cost_usd) THEN coalesce(sum(_cost_usd), 0)"
        f" END)::{TOTAL_USD_TYPE} FROM {_LANDED} GROUP BY _chunk_id",
    )
    chunks.note_costs(connection, dict.fromkeys(chunk_ids, Decimal(0)) | dict(costs))


def _add_earlier_attempts(plan: Plan, declaration: Declaration, chunk_ids: Sequence[int]) -> None:
    """Let each row carry the usage of all its attempts in the materialization.

    Its cost is unknown (NULL) if that of any of them is.
    """
    names = [quote_identifier(name) for name in declaration.row_key]
    keys = ", ".join(f"q.{name}" for name in names)
    sums = ", ".join(f"{sum_if_known(f'q.{name}')} AS {name}" for name in ledger.USAGE_COLUMNS)
    added = ", ".join(f"{name} = l.{name} + e.{name}" for name in ledger.USAGE_COLUMNS)
    plan.connection.execute(
        f"""
        UPDATE {_LANDED} AS l SET {added}
        FROM (
            SELECT {keys}, q._partition, {sums} FROM {plan.registered.requests.sql} AS q
            JOIN claude_batch.chunks AS c ON c.chunk_id = q._chunk_id
            WHERE c.materialization_id = $materialization_id AND c.state = 'landed'
                AND NOT list_contains($chunk_ids::BIGINT[], c.chunk_id)
            GROUP BY ALL
        ) AS e
        WHERE {ours_is_ours(declaration, "l", "e")}
        """,
        {
            "materialization_id": plan.materialization.materialization_id,
            "chunk_ids": list(chunk_ids),
        },
    )


def _write_answers(
    connection: Connection, declaration: Declaration, landings: Sequence[Landing], now: datetime
) -> None:
    """Replace what was known of the answered rows by their answers.

    These go straight from the disk into their table: a copy in between took twice as long.

    Raises:
        TemporaryFileError: Not all of them are on the disk any more; nothing changes.
    """
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
    (left,) = row(connection, f"SELECT count(*) FROM {_LANDED} WHERE _error_type IS NULL")
    for answers in answers_of([(each.chunk.chunk_id, each.staged) for each in landings]):
        connection.register(_STAGED, answers)
        (written,) = row(
            connection,
            f"""
            INSERT INTO {declaration.answers.sql}
                ({", ".join([*carried, *output, *own])}, _answered_at)
            SELECT {", ".join([*carried, *(f"_answer.{name}" for name in output), *own])}, $now
            FROM (SELECT l.*, json_transform_strict(s.answer, $structure) AS _answer
                  FROM {_STAGED} AS s JOIN {_LANDED} AS l ON l._chunk_id = s.chunk_id
                    AND l._ordinal = s.ordinal AND l._position = s.position
                  WHERE l._error_type IS NULL) AS l
            """,
            {"now": now, "structure": declaration.output.transform_structure},
        )
        connection.unregister(_STAGED)
        left -= written
    if left:
        raise TemporaryFileError(declaration.asset, tempfile.gettempdir(), left)


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
