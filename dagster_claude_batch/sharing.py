"""One answer for all rows that ask the same: what is known already is not asked again."""

from datetime import timedelta
from typing import Final

from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.cost import sum_if_known
from dagster_claude_batch.departed import departed_answers, move_to_departed
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.matching import (
    our_columns,
    ours_is_ours,
    selected_columns,
    selected_is_ours,
)
from dagster_claude_batch.plan import ROWS, Plan
from dagster_claude_batch.tables import USAGE_COLUMNS
from dagster_claude_batch.warehouse import rows

_SHARED: Final = "temp.claude_batch_shared"

_CLOCKS: Final = timedelta(minutes=30)
"""How far the clocks of two runs, and a wait for the database, may be apart."""


def share_answers(plan: Plan) -> None:
    """Give rows the answer that another row of the asset has, or has had, to the same question.

    They carry none of its tokens and cost, only those of their own attempts before.
    """
    _choose_shared(plan)
    if not rows(plan.connection, f"SELECT 1 FROM {_SHARED} LIMIT 1"):
        return
    declaration = plan.declaration
    same = selected_is_ours(declaration, "s", "here")
    this_row = f"EXISTS (SELECT 1 FROM {_SHARED} AS s WHERE {same})"
    move_to_departed(plan.connection, declaration, this_row, plan.now)
    plan.connection.execute(f"DELETE FROM {declaration.failures.sql} AS here WHERE {this_row}")
    usage, carried = ", ".join(USAGE_COLUMNS), ", ".join(_carried(plan))
    aliases = ", ".join(f"a{number}" for number in range(len(_carried(plan))))
    plan.connection.execute(
        f"INSERT INTO {declaration.answers.sql} ({our_columns(declaration)}, _partition, "
        f"{carried}, {usage}, _attempts, _answered_at) "
        f"SELECT {selected_columns(declaration)}, partition, {aliases}, "
        f"{', '.join('0' for _ in USAGE_COLUMNS)}, 0, $now FROM {_SHARED}",
        {"now": plan.now},
    )
    _add_own_attempts(plan)


def _add_own_attempts(plan: Plan) -> None:
    """Let rows that were asked before they were served carry what that came to."""
    declaration = plan.declaration
    identity = {"identity": plan.materialization.materialization_id}
    landed = (
        "SELECT chunk_id FROM claude_batch.chunks WHERE materialization_id = $identity "
        "AND state = 'landed' AND NOT is_copy"
    )
    if not rows(plan.connection, f"{landed} LIMIT 1", identity):
        return
    keys = ", ".join(f"q.{quote_identifier(name)}" for name in declaration.row_key)
    sums = ", ".join(f"{sum_if_known(f'q.{name}')} AS {name}" for name in USAGE_COLUMNS)
    added = ", ".join(f"{name} = e.{name}" for name in USAGE_COLUMNS)
    plan.connection.execute(
        f"UPDATE {declaration.answers.sql} AS here SET {added}, _attempts = e._asked FROM ("
        f"SELECT {keys}, q._partition, max(q._attempt) AS _asked, {sums} "
        f"FROM {plan.registered.requests.sql} AS q WHERE q._chunk_id IN ({landed}) GROUP BY ALL"
        f") AS e WHERE {ours_is_ours(declaration, 'here', 'e')} AND EXISTS (SELECT 1 "
        f"FROM {_SHARED} AS s WHERE {selected_is_ours(declaration, 's', 'here')})",
        identity,
    )


def _choose_shared(plan: Plan) -> None:
    """Choose the rows without an answer whose question has one, with the newest."""
    answers = plan.declaration.answers.sql
    carried = ", ".join(f"{name} AS a{number}" for number, name in enumerate(_carried(plan)))
    departed = ", ".join(f"answer.{name}" for name in _carried(plan))
    own = selected_is_ours(plan.declaration, "r", "here")
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_shared AS
        WITH unanswered AS (
            SELECT * FROM {ROWS} AS r WHERE r.hash IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM {answers} AS here WHERE {own} AND here._request_hash = r.hash)
        ),
        here AS (
            SELECT {carried}, _request_hash, _answered_at, _attempts FROM {answers}
            WHERE _request_hash IN (SELECT hash FROM unanswered)
        ),
        departed AS (
            SELECT {departed}, request_hash AS _request_hash, answer._answered_at, answer._attempts
            FROM ({departed_answers(plan.declaration)}
                AND request_hash IN (SELECT hash FROM unanswered))
        ),
        newest AS (
            SELECT * EXCLUDE (_answered_at, _attempts)
            FROM (SELECT * FROM here UNION ALL SELECT * FROM departed)
            QUALIFY row_number() OVER (
                PARTITION BY _request_hash ORDER BY _answered_at DESC, _attempts DESC) = 1
        )
        SELECT r.* EXCLUDE (hash, fingerprint, reason, bytes), newest.* EXCLUDE (_request_hash)
        FROM unanswered AS r JOIN newest ON newest._request_hash = r.hash
        """,
        {"asset": plan.declaration.asset},
    )


def _carried(plan: Plan) -> list[str]:
    """What one row's answer passes on to another's."""
    output = (quote_identifier(column.name) for column in plan.declaration.output.columns)
    return [*output, "_model", "_stop_reason", "_batch_id", "_custom_id", "_request_hash"]


def asked_by_others(plan: Plan, chunk: Chunk) -> bool:
    """Whether others have asked, since a chunk was planned, what it is about to ask.

    That is out, or has been answered by then; a refresh asks all the same.
    """
    if not plan.declaration.deduplicate or plan.materialization.config.refresh:
        return False
    others = rows(
        plan.connection,
        "SELECT c.chunk_id, c.state FROM claude_batch.chunks AS c, claude_batch.chunks AS mine "
        "WHERE mine.chunk_id = $chunk_id AND c.asset = mine.asset AND NOT c.is_copy "
        "AND c.materialization_id <> mine.materialization_id AND (c.state IN ('sending', "
        "'submitted') OR (c.state = 'landed' AND c.landed_at > mine.planned_at - $clocks))",
        {"chunk_id": chunk.chunk_id, "clocks": _CLOCKS},
    )
    if not others:
        return False
    requests = plan.registered.requests.sql
    out = [chunk_id for chunk_id, state in others if state != "landed"]
    found = rows(
        plan.connection,
        f"""
        SELECT 1 FROM {requests} AS mine WHERE mine._chunk_id = $chunk_id AND (
            mine._request_hash IN (SELECT _request_hash FROM {requests}
                WHERE _chunk_id IN (SELECT unnest($out::BIGINT[])))
            OR ($landed AND mine._request_hash IN (
                SELECT _request_hash FROM {plan.declaration.answers.sql})))
        LIMIT 1
        """,
        {"chunk_id": chunk.chunk_id, "out": out, "landed": len(out) < len(others)},
    )
    return bool(found)


def answered_by_copy(plan: Plan, chunk: Chunk) -> bool:
    """Whether a second copy of an earlier batch has answered what a chunk is about to ask.

    Whoever lands a copy plans such chunks anew, but may end before that.
    """
    plan = plan.of_owner(chunk)
    owner = plan.materialization
    parameters = {"owner": owner.materialization_id, "chunk_id": chunk.chunk_id}
    copies = (
        "SELECT batch_id FROM claude_batch.chunks WHERE materialization_id = $owner AND is_copy "
        "AND state = 'landed'"
    )
    if not rows(plan.connection, copies, {"owner": owner.materialization_id}):
        return False
    same_row = ours_is_ours(plan.declaration, "a", "mine")
    found = rows(
        plan.connection,
        f"""
        SELECT 1 FROM {plan.registered.requests.sql} AS mine
        JOIN {plan.declaration.answers.sql} AS a
            ON a._request_hash = mine._request_hash AND {same_row}
        WHERE mine._chunk_id = $chunk_id AND a._batch_id IN ({copies})
        LIMIT 1
        """,
        parameters,
    )
    return bool(found)
