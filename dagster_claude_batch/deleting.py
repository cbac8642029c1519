"""Deleting at Anthropic what has landed here, where that is declared."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final

import anthropic

from dagster_claude_batch import ledger
from dagster_claude_batch.errors import ClaudeBatchError, NoCredentialsError
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import UNREAD
from dagster_claude_batch.resource import RESULTS_LAST, UNANSWERED
from dagster_claude_batch.warehouse import Connection, rows
from dagster_claude_batch.workbench import Workbench, asset_of

_PATIENCE: Final = 30.0
_CALL_SECONDS: Final = 10.0
"""Seconds that a run spends on this at its end, and on one call."""


def delete_as_declared(bench: Workbench, *, is_alive: Callable[[str], bool]) -> None:
    """Do what `delete_remote_results` says, at the end of a run."""
    if bench.declaration.delete_remote_results:
        delete_landed(bench, is_alive=is_alive)


def delete_landed(
    bench: Workbench, *, is_alive: Callable[[str], bool], patience_seconds: float = _PATIENCE
) -> int:
    """Delete the asset's batches that have been read as a whole; how many were.

    Not while another run waits for one of them, which the sensor would not see end any more: the
    last of these runs deletes it. What cannot be deleted now, any later run of the asset deletes.
    """
    try:
        since = bench.claude.now() - RESULTS_LAST
        known = bench.warehouse.transact(lambda connection: _landed(connection, bench, since))
        waiting = {run_id for _, _, runs in known for run_id in runs if is_alive(run_id)}
        waiting.discard(bench.run.run_id)
        free = [(chunk, batch) for chunk, batch, runs in known if waiting.isdisjoint(runs)]
        deleted = _delete_all(bench, free, time.monotonic() + patience_seconds)
    except ClaudeBatchError as error:  # what has landed has landed, and is no failure of the run
        bench.log.warning("Landed batches are not deleted at Anthropic yet: %s", error)
        return 0
    if deleted:
        bench.log.info("Deleted %d landed batches at Anthropic.", deleted)
    return deleted


def _delete_all(bench: Workbench, free: Sequence[tuple[int, str]], until: float) -> int:
    """Delete until an error or the end of the time; how many were."""
    deleted = 0
    reason = "the time for it is over; the next run goes on."
    try:
        for chunk_id, batch_id in free:
            if time.monotonic() > until:
                break
            if _delete(bench, batch_id):
                # At once: of what is not shown any more, nobody could tell whether it was deleted.
                note = partial(_note, chunk_id=chunk_id, bench=bench)
                bench.warehouse.transact(note)
                deleted += 1
        else:
            return deleted
    except (*UNANSWERED, NoCredentialsError) as error:
        reason = one_line(str(error))
    left = len(free) - deleted
    bench.log.warning("%d landed batches are not deleted at Anthropic yet: %s", left, reason)
    return deleted


def _delete(bench: Workbench, batch_id: str) -> bool:
    """Delete a batch; False if the API does not show it, or not let it go yet."""
    try:
        bench.claude.delete(batch_id, timeout_seconds=_CALL_SECONDS)
    except (anthropic.NotFoundError, anthropic.BadRequestError, anthropic.ConflictError) as error:
        bench.log.warning("Batch %s was not deleted: %s", batch_id, one_line(str(error)))
        return False
    return True


_Landed = tuple[int, str, list[str]]
"""A chunk, its batch, and the runs that work, or have worked, on what waits for it."""


def _landed(connection: Connection, bench: Workbench, since: datetime) -> list[_Landed]:
    """What was read as a whole and may still be at Anthropic, oldest first."""
    asset = bench.declaration.asset
    if not ledger.is_ledger(connection):
        return []
    landed = "SELECT 1 FROM claude_batch.chunks WHERE asset = $asset AND state = 'landed' LIMIT 1"
    if not rows(connection, landed, {"asset": asset}):
        return []
    found = rows(
        connection,
        f"""
        SELECT c.chunk_id, c.batch_id, (
            SELECT coalesce(list(DISTINCT r.run_id), []) FROM claude_batch.runs AS r
            JOIN claude_batch.materializations AS m USING (materialization_id)
            WHERE m.materialization_id = c.materialization_id
                OR (m.state = 'open' AND list_contains(m.awaits, c.chunk_id)))
        FROM claude_batch.chunks AS c
        WHERE c.asset = $asset AND c.state = 'landed' AND c.batch_id IS NOT NULL
            AND c.deleted_at IS NULL AND c.submitted_at > $since
            AND c.succeeded + c.errored + c.canceled + c.expired > 0
            AND NOT EXISTS (
                SELECT 1 FROM {asset_of(connection, asset).requests.sql} AS q
                WHERE q._chunk_id = c.chunk_id AND list_contains($unread, q._outcome))
        ORDER BY c.submitted_at, c.chunk_id
        """,
        {"asset": asset, "since": since, "unread": list(UNREAD)},
    )
    return [(chunk_id, batch_id, runs) for chunk_id, batch_id, runs in found]


def _note(connection: Connection, *, chunk_id: int, bench: Workbench) -> None:
    connection.execute(
        "UPDATE claude_batch.chunks SET deleted_at = $now WHERE chunk_id = $chunk_id",
        {"now": bench.claude.now(), "chunk_id": chunk_id},
    )
