"""Pruning the ledger: the requests of what ended long ago go, what was spent for them stays."""

from datetime import datetime

from dagster_claude_batch import ledger
from dagster_claude_batch.ledger_tables import PRUNED
from dagster_claude_batch.outcomes import UNREAD
from dagster_claude_batch.resource import RESULTS_LAST
from dagster_claude_batch.warehouse import Connection, row, rows


def prune(connection: Connection, asset: str, before: datetime, *, now: datetime) -> int:
    """Forget an asset's requests that landed before then; how many rows of the ledger that were.

    Only those of materializations that have ended, and that none waits for which is open. Answers,
    failures, chunks and `claude_batch.spending` stay as they are. So do the requests of a batch of
    which a result was not read, as long as the API keeps it: they keep it from being deleted.
    """
    if not ledger.is_ledger(connection):
        return 0
    registered = ledger.find_asset(connection, asset)
    if registered is None:
        return 0
    requests = registered.requests.sql
    ended = {"asset": asset, "before": before, "kept": now - RESULTS_LAST, "unread": list(UNREAD)}
    found = rows(connection, _ENDED.format(requests=requests), ended)
    chosen = {"chunk_ids": [chunk_id for (chunk_id,) in found]}
    of_chosen = "_chunk_id IN (SELECT unnest($chunk_ids::BIGINT[]))"
    (count,) = row(connection, f"SELECT count(*) FROM {requests} WHERE {of_chosen}", chosen)
    if count:
        connection.execute(f"INSERT INTO claude_batch.pruned BY NAME {PRUNED}", chosen)
        connection.execute(f"DELETE FROM {requests} WHERE {of_chosen}", chosen)
    return int(count)


_ENDED = """
    SELECT c.chunk_id FROM claude_batch.chunks AS c
    JOIN claude_batch.materializations AS m ON m.materialization_id = c.materialization_id
    WHERE c.asset = $asset AND m.state <> 'open' AND m.ended_at < $before
        AND (c.state = 'elsewhere' OR (c.state = 'landed' AND c.landed_at < $before))
        AND NOT EXISTS (SELECT 1 FROM claude_batch.materializations AS o
            WHERE o.state = 'open' AND list_contains(o.awaits, c.chunk_id))
        AND (c.landed_at < $kept OR NOT EXISTS (SELECT 1 FROM {requests} AS q
            WHERE q._chunk_id = c.chunk_id AND list_contains($unread, q._outcome)))
"""
