"""What is out: questions to the ledger about many chunks, which change none of them."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Final

from dagster_claude_batch.chunks import HELD, Chunk, ChunkState
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.warehouse import Connection, row, rows

_CHUNK: Final = ", ".join(field.name for field in fields(Chunk))


SENT: Final[tuple[ChunkState, ...]] = ("sending", "submitted")
"""States of a chunk that is, or may be, out."""


def chunks_of(
    connection: Connection, materialization_ids: Sequence[str], states: Sequence[ChunkState]
) -> list[Chunk]:
    """The materializations' chunks in these states, in the order of their planning."""
    found = rows(
        connection,
        f"SELECT {_CHUNK} FROM claude_batch.chunks "
        "WHERE list_contains($ids::VARCHAR[], materialization_id) "
        "AND list_contains($states, state) ORDER BY chunk_id",
        {"ids": list(materialization_ids), "states": list(states)},
    )
    return [Chunk(*values) for values in found]


def in_flight(connection: Connection, workspace: str, since: datetime) -> int:
    """Requests of the whole ledger that are, or may be, in the workspace's queue.

    What was sent before ``since`` has left it, even if nobody has collected it.
    """
    (requests,) = row(
        connection,
        "SELECT coalesce(sum(requests), 0) FROM claude_batch.chunks "
        "WHERE workspace = $workspace AND state IN ('sending', 'submitted') "
        "AND sending_at > $since",
        {"workspace": workspace, "since": since},
    )
    return int(requests)


def serialize_sending(connection: Connection, workspace: str) -> None:
    """Make two transactions that look at the window of one workspace conflict."""
    moved = rows(
        connection,
        "UPDATE claude_batch.workspaces SET sends = sends + 1 WHERE workspace = $workspace "
        "RETURNING sends",
        {"workspace": workspace},
    )
    if not moved:
        # Nothing keeps two transactions from inserting at once, so both change the ledger's row;
        # DuckDB takes an UPDATE that changes nothing for none.
        connection.execute(
            "UPDATE claude_batch.ledger SET migrated_at = migrated_at + INTERVAL 1 MICROSECOND"
        )
        connection.execute(
            "INSERT INTO claude_batch.workspaces VALUES ($workspace, 1)", {"workspace": workspace}
        )


def given_up(connection: Connection, asset: str, since: datetime) -> list[Chunk]:
    """Chunks whose batches may still appear, sent after ``since``, oldest first."""
    found = rows(
        connection,
        f"SELECT {_CHUNK} FROM claude_batch.chunks WHERE asset = $asset AND state = 'given_up' "
        "AND sending_at > $since ORDER BY chunk_id",
        {"asset": asset, "since": since},
    )
    return [Chunk(*values) for values in found]


def held_elsewhere(
    connection: Connection, registered: LedgerAsset, materialization: Materialization
) -> list[int]:
    """Ids of the chunks that others have, not landed, that may answer a materialization's rows.

    They hold rows of its partitions, or ask what it has left to others. Whether they have been
    sent is of no importance: that may come at any time.
    """
    identity = materialization.materialization_id
    held = held_by_others(connection, registered.asset, identity, HELD)
    if not held:
        return []
    requests = registered.requests.sql
    found = rows(
        connection,
        f"""
        SELECT DISTINCT q._chunk_id FROM {requests} AS q
        WHERE q._chunk_id IN (SELECT unnest($held::BIGINT[])) AND (
            $all_rows OR q._partition IN (SELECT unnest($partitions::VARCHAR[]))
            OR q._request_hash IN (
                SELECT r._request_hash FROM {requests} AS r JOIN claude_batch.chunks AS c
                ON c.chunk_id = r._chunk_id
                WHERE c.state = 'elsewhere' AND c.materialization_id = $identity))
        """,
        {
            "held": held,
            "identity": identity,
            "all_rows": materialization.partitions == (None,),
            "partitions": [key for key in materialization.partitions if key is not None],
        },
    )
    return [int(chunk_id) for (chunk_id,) in found]


def held_by_others(
    connection: Connection, asset: str, materialization_id: str, states: Sequence[ChunkState]
) -> list[int]:
    """Ids of the chunks in these states, second copies apart, of an asset's others."""
    found = rows(
        connection,
        "SELECT chunk_id FROM claude_batch.chunks WHERE asset = $asset AND NOT is_copy "
        "AND list_contains($states, state) AND materialization_id <> $materialization_id",
        {"asset": asset, "states": list(states), "materialization_id": materialization_id},
    )
    return [int(chunk_id) for (chunk_id,) in found]


def out_elsewhere(connection: Connection, materialization: Materialization) -> list[Chunk]:
    """What a materialization awaits of others, and what of that is, or may be, out."""
    found = rows(
        connection,
        f"SELECT {_CHUNK} FROM claude_batch.chunks WHERE list_contains($awaits::BIGINT[], chunk_id)"
        " AND NOT is_copy AND state IN ('sending', 'submitted') "
        "AND materialization_id <> $materialization_id ORDER BY chunk_id",
        {
            "awaits": list(materialization.awaits),
            "materialization_id": materialization.materialization_id,
        },
    )
    return [Chunk(*values) for values in found]


def answered_by_copy(
    connection: Connection, registered: LedgerAsset, copy: Chunk, same_row: str
) -> list[Chunk]:
    """Chunks that a landed copy makes needless: out, with an answer to each of their rows.

    And planned ones with an answer to any. ``same_row`` is SQL that matches a request ``theirs``
    with one of the copy, ``ours``.
    """
    requests = registered.requests.sql
    answered = (
        f"SELECT 1 FROM {requests} AS ours WHERE ours._chunk_id = $copy "
        f"AND ours._outcome = 'answer' AND ours._request_hash = theirs._request_hash AND {same_row}"
    )
    rows_of = f"EXISTS (SELECT 1 FROM {requests} AS theirs WHERE theirs._chunk_id = c.chunk_id AND"
    found = rows(
        connection,
        f"SELECT {_CHUNK} FROM claude_batch.chunks AS c "
        "WHERE c.materialization_id = (SELECT materialization_id FROM claude_batch.chunks "
        "WHERE chunk_id = $copy) AND ("
        f"(c.state = 'submitted' AND NOT {rows_of} NOT EXISTS ({answered})))"
        f" OR (c.state = 'planned' AND {rows_of} EXISTS ({answered}))))",
        {"copy": copy.chunk_id},
    )
    return [Chunk(*values) for values in found]


def batches_before(connection: Connection, chunk: Chunk, since: datetime) -> set[str]:
    """Ids of batches that the same resource sent after ``since`` and before a chunk."""
    found = rows(
        connection,
        "SELECT c.batch_id FROM claude_batch.chunks AS c, claude_batch.chunks AS mine "
        "WHERE mine.chunk_id = $chunk_id AND c.chunk_id <> $chunk_id AND c.batch_id IS NOT NULL "
        "AND c.workspace = mine.workspace AND c.submitted_at > $since "
        "AND c.submitted_at <= mine.submitted_at",
        {"chunk_id": chunk.chunk_id, "since": since},
    )
    return {str(batch_id) for (batch_id,) in found}


def known_batches(connection: Connection) -> set[str]:
    """Ids of all batches that the ledger has an owner for."""
    found = rows(connection, "SELECT batch_id FROM claude_batch.chunks WHERE batch_id IS NOT NULL")
    return {str(batch_id) for (batch_id,) in found}


def questions_of(connection: Connection, registered: LedgerAsset, chunk: Chunk) -> dict[int, int]:
    """How many different questions each request of a chunk asks, of those that ask several."""
    found = rows(
        connection,
        f"SELECT _ordinal, max(_position) + 1 FROM {registered.requests.sql} "
        "WHERE _chunk_id = $chunk_id GROUP BY ALL HAVING max(_position) > 0",
        {"chunk_id": chunk.chunk_id},
    )
    return {int(ordinal): int(questions) for ordinal, questions in found}
