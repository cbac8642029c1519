"""Deleting at Anthropic what has landed here, where that is declared."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final

import anthropic

from dagster_claude_batch import ledger
from dagster_claude_batch.errors import ClaudeBatchError, NoCredentialsError
from dagster_claude_batch.held_run import counted
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import UNREAD
from dagster_claude_batch.resource import RESULTS_LAST, UNANSWERED
from dagster_claude_batch.warehouse import Connection, rows
from dagster_claude_batch.workbench import Workbench, asset_of

_PATIENCE: Final = 30.0
_CALL_SECONDS: Final = 10.0
"""Seconds that a run spends on this at its end, and on one call."""


@dataclass(frozen=True)
class Deleted:
    """How many batches were deleted, and which were not.

    ``waiting`` are left to the ``runs`` that wait for them; ``left`` could not be deleted now, for
    the ``reason``.
    """

    count: int
    waiting: int = 0
    runs: tuple[str, ...] = ()
    left: int = 0
    reason: str = ""


def delete_as_declared(bench: Workbench, *, is_alive: Callable[[str], bool]) -> None:
    """Do what `delete_remote_results` says, at the end of a run."""
    if not bench.declaration.delete_remote_results:
        return
    try:
        deleted = delete_landed(bench, is_alive=is_alive)
    except ClaudeBatchError as error:  # what has landed has landed, and is no failure of the run
        bench.log.warning("Landed batches are not deleted at Anthropic yet: %s", error)
        return
    if deleted.left:
        bench.log.warning(
            "%s not deleted at Anthropic yet: %s. The next run goes on.",
            counted(deleted.left, "landed batch is", "landed batches are"),
            deleted.reason.rstrip("."),
        )


def delete_landed(
    bench: Workbench, *, is_alive: Callable[[str], bool], patience_seconds: float = _PATIENCE
) -> Deleted:
    """Delete the asset's batches that have been read as a whole.

    Not while another run waits for one of them, which the sensor would not see end any more: the
    last of these runs deletes it. What cannot be deleted now, any later run of the asset deletes.
    """
    since = bench.claude.now() - RESULTS_LAST
    known = bench.warehouse.transact(lambda connection: _landed(connection, bench, since))
    waiting = {run_id for _, _, runs in known for run_id in runs if is_alive(run_id)}
    waiting.discard(bench.run.run_id)
    free = [(chunk, batch) for chunk, batch, runs in known if waiting.isdisjoint(runs)]
    deleted = _delete_all(bench, free, time.monotonic() + patience_seconds)
    if deleted.count:
        bench.log.info(
            "Deleted %s at Anthropic.", counted(deleted.count, "landed batch", "landed batches")
        )
    return replace(deleted, waiting=len(known) - len(free), runs=tuple(sorted(waiting)))


def _delete_all(bench: Workbench, free: Sequence[tuple[int, str]], until: float) -> Deleted:
    """Delete until an error that all others would meet too, or the end of the time."""
    deleted, reason = 0, ""
    try:
        for chunk_id, batch_id in free:
            if time.monotonic() > until:
                reason = "The time for it is over."
                break
            refused = _delete(bench, batch_id)
            if refused is None:
                # At once: of what is not shown any more, nobody could tell whether it was deleted.
                note = partial(_note, chunk_id=chunk_id, bench=bench)
                bench.warehouse.transact(note)
                deleted += 1
            else:
                reason = refused
    except (*UNANSWERED, NoCredentialsError) as error:
        reason = one_line(str(error))
    return Deleted(deleted, left=len(free) - deleted, reason=reason)


def _delete(bench: Workbench, batch_id: str) -> str | None:
    """Delete a batch; or why not, if the API does not show it, or not let it go yet."""
    try:
        bench.claude.delete(batch_id, timeout_seconds=_CALL_SECONDS)
    except (anthropic.NotFoundError, anthropic.BadRequestError, anthropic.ConflictError) as error:
        reason = one_line(str(error))
        bench.log.warning("Batch %s was not deleted: %s", batch_id, reason)
        return f"Batch {batch_id}: {reason}"
    return None


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
