"""What is due: the rows that a materialization asks about, and asks again."""

from collections.abc import Sequence
from typing import Final, Literal

from dagster_claude_batch.chunks import HELD, Chunk
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.matching import (
    our_keys_as_selected,
    ours_is_ours,
    selected_is_ours,
    selected_is_selected,
)
from dagster_claude_batch.outcomes import RETRYABLE, next_max_tokens
from dagster_claude_batch.outstanding import held_by_others
from dagster_claude_batch.plan import CHOSEN, ROWS, Plan, in_scope
from dagster_claude_batch.settling import settle_all, settle_chosen
from dagster_claude_batch.source import PartitionSlice
from dagster_claude_batch.warehouse import row, rows

DUE: Final = "temp.claude_batch_due"
"""The relation that the functions here leave behind: a selected relation with ``hash``, ``bytes``
(of the row's own part of its request), ``attempt``, ``max_tokens``, ``alone`` (to be in a request
of its own) and ``held_back`` (not to be sent yet), in the order of sending."""


def choose_first(plan: Plan, slices: Sequence[PartitionSlice]) -> None:
    """Fix the materialization's set of rows, and settle all that needs no asking.

    Raises:
        NullRowKeyError, DuplicateRowKeyError: Nothing was planned.
    """
    settle_all(plan, slices)
    _choose(plan)


def choose_up_to(plan: Plan, limit: int) -> None:
    """Leave only so many of the rows that are due."""
    plan.connection.execute(f"DELETE FROM {DUE} WHERE NOT ({_is_among_first()})", {"first": limit})


def hold_back_after(plan: Plan, pilot: int) -> None:
    """Let only so many of the due rows be sent at first, and those that ask the same as they."""
    plan.connection.execute(
        f"UPDATE {DUE} SET held_back = true WHERE hash NOT IN "
        f"(SELECT hash FROM {DUE} WHERE {_is_among_first()})",
        {"first": pilot},
    )


def _is_among_first() -> str:
    return f"rowid IN (SELECT rowid FROM {DUE} ORDER BY rowid LIMIT $first)"


def choose_elsewhere(plan: Plan) -> int:
    """Choose, right after `choose_first`, rows that others have out; how many there are."""
    _choose(plan, elsewhere=True)
    return count_due(plan)


def count_due(plan: Plan) -> int:
    """How many rows are due."""
    (count,) = row(plan.connection, f"SELECT count(*) FROM {DUE}")
    return int(count)


def choose_retries(
    plan: Plan, slices: Sequence[PartitionSlice], *, only_unasked: bool = False
) -> bool:
    """Choose the failures that get another attempt; whether there may be any.

    With ``only_unasked``, only rows of the set that have never come to an outcome.
    Rows that have left the source are not asked again, rows that changed are asked as they are.
    """
    if not _choose_failed(plan, only_unasked=only_unasked):
        return False
    settle_chosen(plan, slices)
    choose_settled(plan, is_late=only_unasked)
    return True


def choose_again(plan: Plan, chunks: Sequence[Chunk], slices: Sequence[PartitionSlice]) -> None:
    """Choose what is still to be asked of some chunks' rows, which may have changed since."""
    keys = our_keys_as_selected(plan.declaration, "q")
    plan.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_chosen AS SELECT {keys}, "
        "q._partition AS partition, c.attempt, c.max_tokens "
        f"FROM {plan.registered.requests.sql} AS q "
        "JOIN (SELECT chunk_id, attempt, max_tokens FROM claude_batch.chunks) AS c "
        "ON c.chunk_id = q._chunk_id WHERE q._chunk_id IN (SELECT unnest($chunk_ids::BIGINT[]))",
        {"chunk_ids": [chunk.chunk_id for chunk in chunks]},
    )
    settle_chosen(plan, slices)
    choose_settled(plan)


def choose_settled(plan: Plan, *, elsewhere: bool = False, is_late: bool = False) -> None:
    """Choose, of the rows that have been settled, those that have no answer yet.

    Of these either what nobody else has been sent as a question, or, ``elsewhere``, the others. If
    it is late, nobody waits for others any more.
    """
    same = selected_is_selected(plan.declaration, "r", "chosen")
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_due AS
        SELECT r.*, chosen.attempt, chosen.max_tokens, {_alone(plan, "chosen.attempt")} AS alone,
            false AS held_back
        FROM {ROWS} AS r JOIN {CHOSEN} AS chosen ON {same}
        WHERE r.hash IS NOT NULL AND {_is_unanswered(plan)}
            AND $elsewhere = {_is_asked_elsewhere(plan)}
        """,
        {
            **_this(plan),
            "elsewhere": elsewhere,
            "asked_elsewhere": [] if is_late else _asked_elsewhere(plan),
        },
    )


def _alone(plan: Plan, attempt: str) -> str:
    """Whether a row ``r`` is asked alone: it is large, or has failed, perhaps for its request."""
    packing = plan.declaration.packing
    if packing is None:
        return "false"
    known = selected_is_ours(plan.declaration, "r", "f")
    most = packing.most_bytes_of_row(plan.declaration.limits.max_request_bytes)
    return (
        f"({attempt} > 1 OR r.bytes > {most:d} OR EXISTS (SELECT 1 FROM "
        f"{plan.declaration.failures.sql} AS f WHERE {known} AND f._request_hash = r.hash))"
    )


def _is_asked_elsewhere(plan: Plan) -> str:
    """A condition: what a row ``r`` asks is out, sent by another materialization for any row.

    Its parameter is ``asked_elsewhere``.
    """
    return (
        f"EXISTS (SELECT 1 FROM {plan.registered.requests.sql} AS s WHERE s._request_hash = r.hash "
        "AND s._chunk_id IN (SELECT unnest($asked_elsewhere::BIGINT[])))"
    )


def _asked_elsewhere(plan: Plan) -> list[int]:
    """The chunks that others have sent, if their answers are to serve ours: not for a refresh."""
    if not plan.declaration.deduplicate or plan.materialization.config.refresh:
        return []
    return held_by_others(
        plan.connection,
        plan.declaration.asset,
        plan.materialization.materialization_id,
        ("sending", "submitted"),
    )


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
        SELECT r.*, 1 AS attempt, $max_tokens::BIGINT AS max_tokens, {_alone(plan, "1")} AS alone,
            false AS held_back
        FROM {ROWS} AS r
        LEFT JOIN {declaration.answers.sql} AS a ON {selected_is_ours(declaration, "r", "a")}
        LEFT JOIN {declaration.failures.sql} AS f ON {selected_is_ours(declaration, "r", "f")}
        WHERE r.hash IS NOT NULL AND ({"true" if config.refresh else asked})
            AND $elsewhere = (EXISTS (
                SELECT 1 FROM ({out}) AS o WHERE {selected_is_ours(declaration, "r", "o")})
                OR {_is_asked_elsewhere(plan)})
        """,
        {
            "elsewhere": elsewhere,
            "this": plan.materialization.materialization_id,
            "asset": declaration.asset,
            "out": list(HELD),
            "asked_elsewhere": _asked_elsewhere(plan),
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
            SELECT q.*, c.max_tokens AS _max_tokens, c.is_copy AS _is_copy,
                {_is_packed(plan)} AS _packed,
                c.adopted OR c.materialization_id <> $materialization_id AS _adopted,
                c.state = 'given_up' AS _given_up, c.state = 'elsewhere' AS _elsewhere
            FROM {plan.registered.requests.sql} AS q
            JOIN claude_batch.chunks AS c ON c.chunk_id = q._chunk_id
            WHERE (c.materialization_id = $materialization_id AND c.state <> 'given_up')
                OR (c.materialization_id <> $materialization_id
                    AND list_contains($awaits::BIGINT[], c.chunk_id)
                    AND c.state IN ('landed', 'given_up'))
        )
        SELECT {our_keys_as_selected(plan.declaration, "f")}, f._partition AS partition,
            f._attempt + CASE WHEN f._given_up OR f._elsewhere THEN 0 ELSE 1 END AS attempt,
            CASE WHEN NOT f._packed THEN f._outcome END AS outcome, f._max_tokens AS max_tokens
        FROM sent AS f
        WHERE (f._given_up OR f._elsewhere OR (NOT $only_unasked AND f._retryable
                AND f._attempt < $max_attempts AND NOT f._is_copy
                AND (f._outcome <> 'canceled' OR f._adopted)))
            AND {in_scope("f")}
            AND NOT EXISTS (
                SELECT 1 FROM sent AS later WHERE {later} AND (
                    ((later._chunk_id > f._chunk_id OR f._elsewhere) AND NOT later._elsewhere
                        AND (later._given_up OR NOT later._is_copy))
                    OR (later._is_copy AND later._outcome = 'answer'
                        AND later._request_hash = f._request_hash)
                    OR (f._elsewhere AND later._elsewhere AND later._chunk_id > f._chunk_id)))
        """,
        {
            **plan.scope,
            "only_unasked": only_unasked,
            "max_attempts": plan.declaration.max_attempts,
            "materialization_id": plan.materialization.materialization_id,
            "awaits": list(plan.materialization.awaits),
        },
    )
    _raise_max_tokens(plan)
    (count,) = row(plan.connection, f"SELECT count(*) FROM {CHOSEN}")
    return int(count)


def _is_packed(plan: Plan) -> str:
    """Whether a request ``q`` asked several questions: then its length is nobody's own."""
    if plan.declaration.packing is None:
        return "false"
    return "max(q._position) OVER (PARTITION BY q._chunk_id, q._ordinal) > 0"


def _raise_max_tokens(plan: Plan) -> None:
    """Give truncated rows twice the room."""
    limit = plan.materialization.model_max_tokens
    for outcome, max_tokens in rows(
        plan.connection, f"SELECT DISTINCT outcome, max_tokens FROM {CHOSEN}"
    ):
        allowed = next_max_tokens(outcome, max_tokens=max_tokens, model_max_tokens=limit)
        plan.connection.execute(
            f"UPDATE {CHOSEN} SET max_tokens = $allowed, outcome = NULL "
            "WHERE outcome = $outcome AND max_tokens = $max_tokens",
            {"allowed": allowed, "outcome": outcome, "max_tokens": max_tokens},
        )


def count_unanswered(plan: Plan) -> int:
    """Count the rows that a halted account kept from being asked, sent in vain or not at all."""
    names = ", ".join(f"q.{quote_identifier(name)}" for name in plan.declaration.row_key)
    (count,) = row(
        plan.connection,
        f"""
        SELECT count(*) FROM (
            SELECT DISTINCT {names}, q._partition FROM {plan.registered.requests.sql} AS q
            JOIN claude_batch.chunks AS c ON c.chunk_id = q._chunk_id
            WHERE c.materialization_id = $materialization_id
                AND (c.state IN ('planned', 'held_back') OR (
                c.state = 'landed' AND q._retryable
                AND NOT list_contains($retried::VARCHAR[], q._outcome))))
        """,
        {
            "materialization_id": plan.materialization.materialization_id,
            "retried": sorted(RETRYABLE),
        },
    )
    return int(count)
