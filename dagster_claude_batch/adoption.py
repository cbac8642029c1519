"""Chunks whose materialization has ended: taken over by another one, or dissolved unsent."""

from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.warehouse import Connection, row, rows


def adopt_chunks(
    connection: Connection,
    registered: LedgerAsset,
    materialization: Materialization,
) -> None:
    """Take over what ended materializations of these partitions still have out."""
    connection.execute(
        f"""
        UPDATE claude_batch.chunks
        SET materialization_id = $materialization_id, adopted = true
        WHERE asset = $asset AND state IN ('sending', 'submitted')
            AND materialization_id IN (
                SELECT materialization_id FROM claude_batch.materializations
                WHERE state <> 'open')
            AND chunk_id IN (
                SELECT _chunk_id FROM {registered.requests.sql}
                WHERE $all_rows OR _partition IN (SELECT unnest($partitions::VARCHAR[])))
        """,
        {
            "materialization_id": materialization.materialization_id,
            "asset": registered.asset,
            "all_rows": materialization.partitions == (None,),
            "partitions": [key for key in materialization.partitions if key is not None],
        },
    )


def dissolve_cancelled(connection: Connection, registered: LedgerAsset) -> None:
    """Take the rows out of all chunks that nobody will send any more."""
    moved = rows(
        connection,
        "UPDATE claude_batch.chunks SET state = 'dissolved' "
        "WHERE state IN ('planned', 'held_back') AND asset = $asset AND materialization_id IN "
        "(SELECT materialization_id FROM claude_batch.materializations WHERE state <> 'open') "
        "RETURNING chunk_id",
        {"asset": registered.asset},
    )
    connection.execute(
        f"DELETE FROM {registered.requests.sql} WHERE _chunk_id IN (SELECT unnest($ids::BIGINT[]))",
        {"ids": [chunk_id for (chunk_id,) in moved]},
    )


def owner_of(connection: Connection, chunk: Chunk) -> str:
    """The id of the materialization that a chunk belongs to now: it may have been adopted."""
    (owner,) = row(
        connection,
        "SELECT materialization_id FROM claude_batch.chunks WHERE chunk_id = $chunk_id",
        {"chunk_id": chunk.chunk_id},
    )
    return str(owner)
