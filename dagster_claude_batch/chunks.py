"""Chunks in the ledger: every change of their state, each guarded where it is stored."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from dagster_claude_batch.errors import LostChunkError
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.warehouse import Connection, row, rows

ChunkState: TypeAlias = Literal["planned", "sending", "submitted", "landed", "dissolved"]
"""``planned → sending → submitted → landed``; ``sending → planned`` if surely not created.

``sending`` is written before the POST: a chunk found in it may or may not exist as a batch.
``dissolved`` had its rows taken out of it before it was ever sent.
"""


@dataclass(frozen=True)
class Chunk:
    """A planned group of requests, sent as one batch. Sizes in requests and bytes."""

    chunk_id: int
    materialization_id: str
    state: ChunkState
    attempt: int
    max_tokens: int
    requests: int
    bytes: int
    nonce: str | None
    body_sha256: str | None
    batch_id: str | None
    sending_at: datetime | None
    submitted_at: datetime | None


_CHUNK: Final = (
    "chunk_id, materialization_id, state, attempt, max_tokens, requests, bytes, nonce, "
    "body_sha256, batch_id, sending_at, submitted_at"
)

OUT: Final[tuple[ChunkState, ...]] = ("planned", "sending", "submitted")
"""States of a chunk whose rows nobody else may plan."""


def insert_chunk(
    connection: Connection,
    chunk: Chunk,
    *,
    asset: str,
    workspace: str,
    now: datetime,
) -> None:
    """Write a planned chunk."""
    connection.execute(
        "INSERT INTO claude_batch.chunks (chunk_id, materialization_id, asset, workspace, state, "
        "adopted, attempt, max_tokens, requests, bytes, planned_at) VALUES ($chunk_id, "
        "$materialization_id, $asset, $workspace, 'planned', false, $attempt, $max_tokens, "
        "$requests, $bytes, $now)",
        {
            "chunk_id": chunk.chunk_id,
            "materialization_id": chunk.materialization_id,
            "asset": asset,
            "workspace": workspace,
            "attempt": chunk.attempt,
            "max_tokens": chunk.max_tokens,
            "requests": chunk.requests,
            "bytes": chunk.bytes,
            "now": now,
        },
    )


def planned_chunk(
    chunk_id: int,
    materialization_id: str,
    *,
    attempt: int,
    max_tokens: int,
    requests: int,
    size: int,
) -> Chunk:
    """A chunk as it is before anything was done with it."""
    return Chunk(
        chunk_id,
        materialization_id,
        "planned",
        attempt,
        max_tokens,
        requests,
        size,
        nonce=None,
        body_sha256=None,
        batch_id=None,
        sending_at=None,
        submitted_at=None,
    )


def chunks_of(
    connection: Connection, materialization_ids: Sequence[str], states: Sequence[ChunkState]
) -> list[Chunk]:
    """The materializations' chunks in these states, in the order of their planning."""
    found = rows(
        connection,
        f"SELECT {_CHUNK} FROM claude_batch.chunks "
        "WHERE materialization_id IN (SELECT unnest($ids::VARCHAR[])) "
        "AND state IN (SELECT unnest($states)) ORDER BY chunk_id",
        {"ids": list(materialization_ids), "states": list(states)},
    )
    return [Chunk(*values) for values in found]


def in_flight(connection: Connection, workspace: str) -> int:
    """Requests of the whole ledger that are, or may be, in the workspace's queue."""
    (requests,) = row(
        connection,
        "SELECT coalesce(sum(requests), 0) FROM claude_batch.chunks "
        "WHERE workspace = $workspace AND state IN ('sending', 'submitted')",
        {"workspace": workspace},
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
        connection.execute(
            "INSERT INTO claude_batch.workspaces VALUES ($workspace, 1)", {"workspace": workspace}
        )


def new_nonce() -> str:
    """Something that begins the custom ids of one sending of one chunk, and of no other."""
    return secrets.token_hex(8)


def mark_sending(
    connection: Connection,
    chunk: Chunk,
    *,
    nonce: str,
    body_sha256: str,
    size: int,
    run_id: str,
    now: datetime,
) -> None:
    """``planned → sending``, before the POST.

    Raises:
        LostChunkError: The chunk is not planned any more.
    """
    _move(
        connection,
        chunk.chunk_id,
        "planned",
        "UPDATE claude_batch.chunks SET state = 'sending', nonce = $nonce, "
        "body_sha256 = $body_sha256, bytes = $size, run_id = $run_id, sending_at = $now "
        "WHERE chunk_id = $chunk_id AND state = 'planned' RETURNING chunk_id",
        nonce=nonce,
        body_sha256=body_sha256,
        size=size,
        run_id=run_id,
        now=now,
    )


def mark_submitted(connection: Connection, chunk: Chunk, batch_id: str, now: datetime) -> None:
    """``sending → submitted``: the batch exists.

    Raises:
        LostChunkError: The chunk is not being sent any more.
    """
    _move(
        connection,
        chunk.chunk_id,
        "sending",
        "UPDATE claude_batch.chunks SET state = 'submitted', batch_id = $batch_id, "
        "submitted_at = $now WHERE chunk_id = $chunk_id AND state = 'sending' RETURNING chunk_id",
        batch_id=batch_id,
        now=now,
    )


def mark_unsent(connection: Connection, chunk: Chunk) -> None:
    """``sending → planned``: the batch surely does not exist.

    Raises:
        LostChunkError: The chunk is not being sent any more.
    """
    _move(
        connection,
        chunk.chunk_id,
        "sending",
        "UPDATE claude_batch.chunks SET state = 'planned', nonce = NULL, body_sha256 = NULL, "
        "sending_at = NULL WHERE chunk_id = $chunk_id AND state = 'sending' RETURNING chunk_id",
    )


def mark_landed(
    connection: Connection,
    chunk: Chunk,
    counts: Mapping[str, int],
    *,
    ended_at: datetime | None,
    now: datetime,
) -> None:
    """``submitted → landed``; belongs into the transaction that writes the outcomes.

    Raises:
        LostChunkError: Somebody else has landed it.
    """
    _move(
        connection,
        chunk.chunk_id,
        "submitted",
        "UPDATE claude_batch.chunks SET state = 'landed', succeeded = $succeeded, "
        "errored = $errored, canceled = $canceled, expired = $expired, ended_at = $ended_at, "
        "landed_at = $now WHERE chunk_id = $chunk_id AND state = 'submitted' RETURNING chunk_id",
        succeeded=counts["succeeded"],
        errored=counts["errored"],
        canceled=counts["canceled"],
        expired=counts["expired"],
        ended_at=ended_at,
        now=now,
    )


def resize_chunk(connection: Connection, chunk: Chunk, *, requests: int, size: int) -> None:
    """Note that a planned chunk lost or changed rows; one without any is dissolved.

    Raises:
        LostChunkError: The chunk is not planned any more.
    """
    _move(
        connection,
        chunk.chunk_id,
        "planned",
        "UPDATE claude_batch.chunks SET requests = $requests, bytes = $size, "
        "state = CASE WHEN $requests = 0 THEN 'dissolved' ELSE 'planned' END "
        "WHERE chunk_id = $chunk_id AND state = 'planned' RETURNING chunk_id",
        requests=requests,
        size=size,
    )


def _move(
    connection: Connection, chunk_id: int, expected: ChunkState, sql: str, **values: object
) -> None:
    if not rows(connection, sql, {"chunk_id": chunk_id, **values}):
        raise LostChunkError(chunk_id, expected=expected)


def dissolve_planned(
    connection: Connection, registered: LedgerAsset, materialization_id: str
) -> int:
    """Take the rows out of all chunks that were never sent; how many rows that were."""
    moved = rows(
        connection,
        "UPDATE claude_batch.chunks SET state = 'dissolved' WHERE state = 'planned' "
        "AND materialization_id = $materialization_id RETURNING chunk_id, requests",
        {"materialization_id": materialization_id},
    )
    connection.execute(
        f"DELETE FROM {registered.requests.sql} WHERE _chunk_id IN (SELECT unnest($ids::BIGINT[]))",
        {"ids": [chunk_id for chunk_id, _ in moved]},
    )
    return sum(int(requests) for _, requests in moved)


def adopt_chunks(
    connection: Connection,
    registered: LedgerAsset,
    materialization: Materialization,
) -> None:
    """Take over what cancelled materializations of these partitions still have out."""
    connection.execute(
        f"""
        UPDATE claude_batch.chunks
        SET materialization_id = $materialization_id, adopted = true
        WHERE asset = $asset AND state IN ('sending', 'submitted')
            AND materialization_id IN (
                SELECT materialization_id FROM claude_batch.materializations
                WHERE state = 'cancelled')
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


def known_batches(connection: Connection) -> set[str]:
    """Ids of all batches that the ledger has an owner for."""
    found = rows(connection, "SELECT batch_id FROM claude_batch.chunks WHERE batch_id IS NOT NULL")
    return {str(batch_id) for (batch_id,) in found}
