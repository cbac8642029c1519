"""A pilot: a few rows are sent first, and the rest only if these come back well."""

from typing import Final

from dagster_claude_batch import ledger
from dagster_claude_batch.chunks import release
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.outstanding import chunks_of
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.warehouse import row, rows

_KINDS_SHOWN: Final = 3


def is_flying(plan: Plan) -> bool:
    """Whether anything is held back until the pilot is back."""
    return bool(
        chunks_of(plan.connection, [plan.materialization.materialization_id], ["held_back"])
    )


def has_flown(plan: Plan) -> bool:
    """Whether anything was sent: its rows may have left, or others may have asked the same."""
    sent, _ = _counts(plan)
    return sent > 0


def has_come_back_well(plan: Plan) -> bool:
    """Whether no larger share of the rows sent so far has failed than is tolerated."""
    sent, answered = _counts(plan)
    return sent > 0 and sent - answered <= plan.declaration.max_failure_rate * sent


def send_the_rest(plan: Plan) -> int:
    """Let all that was held back be sent; how many requests."""
    return release(plan.connection, plan.materialization.materialization_id, "planned")


def drop_the_rest(plan: Plan) -> None:
    """Send nothing of what was held back, and note why."""
    sent, answered = _counts(plan)
    identity = plan.materialization.materialization_id
    kinds = rows(
        plan.connection,
        f"SELECT q._outcome FROM {_sent(plan)} AND q._outcome <> 'answer' GROUP BY ALL "
        f"ORDER BY count(*) DESC, q._outcome LIMIT {_KINDS_SHOWN}",
        {"identity": identity},
    )
    table = plan.registered.requests.sql
    held = "SELECT chunk_id FROM claude_batch.chunks WHERE materialization_id = $identity"
    held_rows = f"_chunk_id IN ({held} AND state = 'held_back')"
    (left,) = row(
        plan.connection,
        f"SELECT count(*) FROM {table} WHERE {held_rows}",
        {"identity": identity},
    )
    plan.connection.execute(f"DELETE FROM {table} WHERE {held_rows}", {"identity": identity})
    release(plan.connection, identity, "dissolved")
    said = (
        f"{sent - answered:,} of its {sent:,} rows failed "
        f"({', '.join(str(kind) for (kind,) in kinds)}); {left:,} rows were not sent"
    )
    ledger.note_pilot(plan.connection, identity, said)


def _counts(plan: Plan) -> tuple[int, int]:
    """Rows that the materialization has sent, and those of them that have been answered."""
    keys = ", ".join(f"q.{quote_identifier(name)}" for name in plan.declaration.row_key)
    sent, answered = row(
        plan.connection,
        f"SELECT count(*), count(*) FILTER (is_answered) FROM (SELECT {keys}, q._partition, "
        f"bool_or(q._outcome = 'answer') AS is_answered FROM {_sent(plan)} GROUP BY ALL)",
        {"identity": plan.materialization.materialization_id},
    )
    return int(sent), int(answered)


def _sent(plan: Plan) -> str:
    return (
        f"{plan.registered.requests.sql} AS q JOIN claude_batch.chunks AS c "
        "ON c.chunk_id = q._chunk_id WHERE c.materialization_id = $identity "
        "AND c.state = 'landed' AND NOT c.is_copy AND NOT c.adopted"
    )
