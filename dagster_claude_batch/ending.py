"""The end of a materialization: what failed, and is not asked again, stands as failed."""

from typing import Final

from dagster_claude_batch import ledger
from dagster_claude_batch.cost import sum_if_known
from dagster_claude_batch.departed import move_to_departed
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.landing import as_planned
from dagster_claude_batch.matching import our_columns, ours_is_ours
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.warehouse import row

_STANDING: Final = "temp.claude_batch_standing"


def end(plan: Plan) -> None:
    """Close a materialization that has nothing out and nothing left to send."""
    _let_failures_stand(plan)
    ledger.end_materialization(
        plan.connection, plan.materialization.materialization_id, "done", plan.now
    )


def _let_failures_stand(plan: Plan) -> None:
    """Let rows that changed and then failed be failures, for no other attempt follows.

    Until now they kept the answer to what they were before, which moves to `departed`.
    """
    if not _choose_standing(plan):
        return
    declaration = as_planned(plan)
    same = ours_is_ours(declaration, "here", "s")
    this_row = f"EXISTS (SELECT 1 FROM {_STANDING} AS s WHERE {same})"
    move_to_departed(plan.connection, declaration, this_row, plan.now)
    plan.connection.execute(f"DELETE FROM {declaration.failures.sql} AS here WHERE {this_row}")
    own = ["_partition", "_error_type", "_retryable", "_attempts", *ledger.USAGE_COLUMNS]
    own += ["_batch_id", "_custom_id", "_request_hash"]
    carried = f"{our_columns(declaration)}, {', '.join(own)}"
    plan.connection.execute(
        f"INSERT INTO {declaration.failures.sql} ({carried}, _error_message, _model, _failed_at) "
        f"SELECT {carried}, $message, $model, $now FROM {_STANDING}",
        {
            "message": "The row has changed, and its new request has failed. The answer to what "
            "it was before is in claude_batch.departed.",
            "model": declaration.shape.model,
            "now": plan.now,
        },
    )


def _choose_standing(plan: Plan) -> bool:
    """Choose last attempts that failed while an answer to another request still stands."""
    declaration = as_planned(plan)
    this_row = ours_is_ours(declaration, "here", "q")
    later = ours_is_ours(declaration, "q", "later")
    names = map(quote_identifier, (*declaration.row_key, *declaration.include))
    listed = ", ".join(f"q.{name}" for name in names)
    keys = ", ".join(f"q.{quote_identifier(name)}" for name in declaration.row_key)
    usage = ", ".join(f"e.{name}" for name in ledger.USAGE_COLUMNS)
    sums = ", ".join(f"{sum_if_known(f'q.{name}')} AS {name}" for name in ledger.USAGE_COLUMNS)
    plan.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_standing AS
        WITH sent AS (
            SELECT r.*, c.batch_id, c.nonce, c.landed_at FROM {plan.registered.requests.sql} AS r
            JOIN claude_batch.chunks AS c ON c.chunk_id = r._chunk_id
            WHERE c.materialization_id = $materialization_id AND c.state = 'landed'
                AND NOT c.is_copy
        )
        SELECT {listed}, q._partition, q._outcome AS _error_type, q._retryable,
            q._attempt AS _attempts, {usage}, q._request_hash, q.batch_id AS _batch_id,
            CASE WHEN q.batch_id IS NOT NULL THEN q.nonce || '-' || q._ordinal END AS _custom_id
        FROM sent AS q
        JOIN (SELECT {keys}, q._partition, {sums} FROM sent AS q GROUP BY ALL) AS e
            ON {ours_is_ours(declaration, "q", "e")}
        WHERE q._outcome <> 'answer'
            AND NOT EXISTS (
                SELECT 1 FROM sent AS later WHERE later._chunk_id > q._chunk_id AND {later})
            AND EXISTS (
                SELECT 1 FROM {declaration.answers.sql} AS here WHERE {this_row}
                    AND here._request_hash IS DISTINCT FROM q._request_hash
                    AND here._answered_at < q.landed_at)
        """,
        {"materialization_id": plan.materialization.materialization_id},
    )
    (count,) = row(plan.connection, f"SELECT count(*) FROM {_STANDING}")
    return count > 0
