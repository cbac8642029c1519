"""One answer for all rows that ask the same: what is known already is not asked again."""

from datetime import timedelta
from typing import Final

from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.departed import move_to_departed
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.matching import our_columns, selected_columns, selected_is_ours
from dagster_claude_batch.plan import ROWS, Plan
from dagster_claude_batch.tables import USAGE_COLUMNS
from dagster_claude_batch.warehouse import rows

_SHARED: Final = "temp.claude_batch_shared"

_CLOCKS: Final = timedelta(minutes=30)
"""How far the clocks of two runs, and a wait for the database, may be apart."""


def share_answers(plan: Plan) -> None:
    """Give rows the answer that another row of the asset has to the same question.

    They carry none of its tokens and cost, and no attempt.
    """
    _choose_shared(plan)
    if not rows(plan.connection, f"SELECT 1 FROM {_SHARED} LIMIT 1"):
        return
    declaration = plan.declaration
    same = selected_is_ours(declaration, "s", "here")
    this_row = f"EXISTS (SELECT 1 FROM {_SHARED} AS s WHERE {same})"
    move_to_departed(plan.connection, declaration, this_row, plan.now)
    plan.connection.execute(f"DELETE FROM {declaration.failures.sql} AS here WHERE {this_row}")
    usage, carried = ", ".join(USAGE_COLUMNS), _carried(plan)
    plan.connection.execute(
        f"INSERT INTO {declaration.answers.sql} ({our_columns(declaration)}, _partition, "
        f"{carried}, {usage}, _attempts, _answered_at) "
        f"SELECT {selected_columns(declaration)}, partition, {carried}, "
        f"{', '.join('0' for _ in USAGE_COLUMNS)}, 0, $now FROM {_SHARED}",
        {"now": plan.now},
    )


def _choose_shared(plan: Plan) -> None:
    """Choose the rows without an answer whose question has one, with the newest."""
    answers = plan.declaration.answers.sql
    own = selected_is_ours(plan.declaration, "r", "here")
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_shared AS
        WITH unanswered AS (
            SELECT * FROM {ROWS} AS r WHERE r.hash IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM {answers} AS here WHERE {own} AND here._request_hash = r.hash)
        ),
        newest AS (
            SELECT {_carried(plan)} FROM {answers}
            WHERE _request_hash IN (SELECT hash FROM unanswered)
            QUALIFY row_number() OVER (
                PARTITION BY _request_hash ORDER BY _answered_at DESC, _attempts DESC) = 1
        )
        SELECT r.* EXCLUDE (hash, reason, bytes), newest.*
        FROM unanswered AS r JOIN newest ON newest._request_hash = r.hash
        """
    )


def _carried(plan: Plan) -> str:
    """What one row's answer passes on to another's."""
    output = (quote_identifier(column.name) for column in plan.declaration.output.columns)
    return ", ".join(
        [*output, "_model", "_stop_reason", "_batch_id", "_custom_id", "_request_hash"]
    )


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
