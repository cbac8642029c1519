"""A chunk in the ledger: each move from state to state, guarded where it is stored."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from dagster_claude_batch.errors import LostChunkError
from dagster_claude_batch.warehouse import Connection, rows

ChunkState: TypeAlias = Literal[
    "planned", "sending", "submitted", "landed", "dissolved", "given_up", "elsewhere", "held_back"
]
"""``planned → sending → submitted → landed``; ``sending → planned`` if surely not created.

``sending`` is written before the POST: a chunk found in it may or may not exist as a batch.
``dissolved`` had its rows taken out of it before it was ever sent. ``given_up`` was looked for in
vain, and its rows stand in a new chunk; should its batch appear after all, it is a second copy.
``elsewhere`` is never sent: its rows are those that other materializations have out, to be planned
if nothing comes of that. ``held_back`` waits for what becomes of a pilot.
"""


@dataclass(frozen=True)
class Chunk:
    """A planned group of requests, sent as one batch. Sizes in requests and bytes.

    ``is_copy``: its rows were, or are to be, answered by another chunk too. ``doubted_at`` is when
    the call that sends it was over, and nobody knew what had come of it. ``is_packed``: a request
    may ask several questions.
    """

    chunk_id: int
    materialization_id: str
    state: ChunkState
    attempt: int
    max_tokens: int
    requests: int
    bytes: int
    nonce: str | None
    batch_id: str | None
    sending_at: datetime | None
    submitted_at: datetime | None
    is_copy: bool = False
    doubted_at: datetime | None = None
    is_packed: bool = False


OUT: Final[tuple[ChunkState, ...]] = ("planned", "sending", "submitted")
"""States of a chunk that something is to be done for, or that may be out."""

HELD: Final[tuple[ChunkState, ...]] = (*OUT, "held_back")
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
        "adopted, is_copy, is_packed, attempt, max_tokens, requests, bytes, planned_at) VALUES "
        "($chunk_id, $materialization_id, $asset, $workspace, $state, false, false, $is_packed, "
        "$attempt, $max_tokens, $requests, $bytes, $now)",
        {
            "chunk_id": chunk.chunk_id,
            "materialization_id": chunk.materialization_id,
            "asset": asset,
            "workspace": workspace,
            "state": chunk.state,
            "is_packed": chunk.is_packed,
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
    is_packed: bool = False,
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
        batch_id=None,
        sending_at=None,
        submitted_at=None,
        is_packed=is_packed,
    )


def new_nonce() -> str:
    """Something that begins the custom ids of one sending of one chunk, and of no other."""
    return secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class Sending:
    """What is written down of a chunk before its POST; ``most_usd`` is None without a price.

    It costs no more than that.
    """

    nonce: str
    body_sha256: str
    size: int
    run_id: str
    now: datetime
    model: str
    most_usd: Decimal | None


def mark_sending(connection: Connection, chunk: Chunk, sending: Sending) -> None:
    """``planned → sending``, before the POST.

    Raises:
        LostChunkError: The chunk is not planned any more, or has been split since.
    """
    _move(
        connection,
        chunk.chunk_id,
        "planned",
        "UPDATE claude_batch.chunks SET state = 'sending', nonce = $nonce, "
        "body_sha256 = $body_sha256, bytes = $size, run_id = $run_id, sending_at = $now, "
        "model = $model, most_usd = $most_usd::DECIMAL(38, 12), doubted_at = NULL "
        "WHERE chunk_id = $chunk_id AND state = 'planned' AND requests = $requests "
        "RETURNING chunk_id",
        requests=chunk.requests,
        **sending.__dict__,
    )


def mark_sending_again(connection: Connection, chunk: Chunk, now: datetime) -> None:
    """Note that a chunk which surely did not arrive is sent once more, as it is.

    Raises:
        LostChunkError: The chunk is not being sent any more, or its materialization has ended.
    """
    _move(
        connection,
        chunk.chunk_id,
        "sending",
        "UPDATE claude_batch.chunks SET sending_at = $now WHERE chunk_id = $chunk_id "
        "AND state = 'sending' AND nonce = $nonce AND materialization_id IN (SELECT "
        "materialization_id FROM claude_batch.materializations WHERE state = 'open') "
        "RETURNING chunk_id",
        nonce=chunk.nonce,
        now=now,
    )


def mark_doubted(connection: Connection, chunk: Chunk, now: datetime) -> None:
    """Note that the call is over, and that nobody knows what has come of it.

    Raises:
        LostChunkError: The chunk is not being sent any more.
    """
    _move(
        connection,
        chunk.chunk_id,
        "sending",
        "UPDATE claude_batch.chunks SET doubted_at = $now WHERE chunk_id = $chunk_id "
        "AND state = 'sending' AND nonce = $nonce RETURNING chunk_id",
        nonce=chunk.nonce,
        now=now,
    )


def mark_submitted(connection: Connection, chunk: Chunk, batch_id: str, now: datetime) -> None:
    """``sending → submitted``: the batch exists.

    Also from ``planned``, which it can only be again if another program has written the database
    over what was noted before the call.

    Raises:
        LostChunkError: The chunk is not being sent any more.
    """
    _move(
        connection,
        chunk.chunk_id,
        "sending",
        "UPDATE claude_batch.chunks SET state = 'submitted', batch_id = $batch_id, "
        "nonce = $nonce, sending_at = $sending_at, submitted_at = $now "
        "WHERE chunk_id = $chunk_id AND (state = 'sending' AND nonce = $nonce "
        "OR state = 'planned' AND requests = $requests "
        "AND materialization_id = $materialization_id) RETURNING chunk_id",
        nonce=chunk.nonce,
        sending_at=chunk.sending_at,
        requests=chunk.requests,
        materialization_id=chunk.materialization_id,
        batch_id=batch_id,
        now=now,
    )


def is_known(connection: Connection, chunk: Chunk) -> bool:
    """Whether the ledger has a chunk, in whatever state."""
    sql = "SELECT chunk_id FROM claude_batch.chunks WHERE chunk_id = $chunk_id"
    return bool(rows(connection, sql, {"chunk_id": chunk.chunk_id}))


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
        "sending_at = NULL, doubted_at = NULL WHERE chunk_id = $chunk_id AND state = 'sending' "
        "AND nonce = $nonce RETURNING chunk_id",
        nonce=chunk.nonce,
    )


def mark_given_up(connection: Connection, chunk: Chunk, now: datetime) -> None:
    """``sending → given_up``: nobody has found its batch, and its rows are to be sent again.

    It must be the same sending that was looked for: not one that has been repeated since.

    Raises:
        LostChunkError: The chunk is not being sent any more.
    """
    _move(
        connection,
        chunk.chunk_id,
        "sending",
        "UPDATE claude_batch.chunks SET state = 'given_up', is_copy = true, landed_at = $now "
        "WHERE chunk_id = $chunk_id AND state = 'sending' AND nonce = $nonce "
        "AND sending_at = $sending_at RETURNING chunk_id",
        nonce=chunk.nonce,
        sending_at=chunk.sending_at,
        now=now,
    )


def mark_copy(connection: Connection, chunk: Chunk, batch_id: str, now: datetime) -> None:
    """``given_up → submitted``: its batch exists after all, besides the one sent instead.

    Raises:
        LostChunkError: Somebody else has found it.
    """
    _move(
        connection,
        chunk.chunk_id,
        "given_up",
        "UPDATE claude_batch.chunks SET state = 'submitted', batch_id = $batch_id, "
        "submitted_at = $now WHERE chunk_id = $chunk_id AND state = 'given_up' RETURNING chunk_id",
        batch_id=batch_id,
        now=now,
    )


def mark_twin_submitted(
    connection: Connection, twin: int, of: Chunk, batch_id: str, now: datetime
) -> None:
    """``planned → submitted`` for a copy that one call made besides the batch of ``of``.

    Raises:
        LostChunkError: The twin is not planned any more.
    """
    _move(
        connection,
        twin,
        "planned",
        "UPDATE claude_batch.chunks SET state = 'submitted', is_copy = true, nonce = $nonce, "
        "batch_id = $batch_id, sending_at = $sending_at, submitted_at = $now, model = o.model, "
        "most_usd = o.most_usd FROM (SELECT model, most_usd FROM claude_batch.chunks "
        "WHERE chunk_id = $of) AS o WHERE chunk_id = $chunk_id AND state = 'planned' "
        "RETURNING chunk_id",
        of=of.chunk_id,
        nonce=of.nonce,
        batch_id=batch_id,
        sending_at=of.sending_at,
        now=now,
    )


def mark_not_ours(connection: Connection, chunk: Chunk) -> None:
    """``submitted → given_up`` for a copy whose results turned out to be somebody else's.

    Raises:
        LostChunkError: Somebody else has found out.
    """
    _move(
        connection,
        chunk.chunk_id,
        "submitted",
        "UPDATE claude_batch.chunks SET state = 'given_up', batch_id = NULL, submitted_at = NULL "
        "WHERE chunk_id = $chunk_id AND state = 'submitted' AND is_copy RETURNING chunk_id",
    )


def mark_landed(
    connection: Connection,
    chunk: Chunk,
    counts: Mapping[str, int],
    *,
    ended_at: datetime | None,
    now: datetime,
) -> None:
    """To ``landed`` from where it is; belongs into the transaction that writes the outcomes.

    That is ``submitted``, but for chunks that end without a batch: refused, or never sent.

    Raises:
        LostChunkError: Somebody else has landed it.
    """
    _move(
        connection,
        chunk.chunk_id,
        chunk.state,
        "UPDATE claude_batch.chunks SET state = 'landed', succeeded = $succeeded, "
        "errored = $errored, canceled = $canceled, expired = $expired, ended_at = $ended_at, "
        "landed_at = $now WHERE chunk_id = $chunk_id AND state = $state RETURNING chunk_id",
        state=chunk.state,
        succeeded=counts["succeeded"],
        errored=counts["errored"],
        canceled=counts["canceled"],
        expired=counts["expired"],
        ended_at=ended_at,
        now=now,
    )


def note_costs(connection: Connection, costs: Mapping[int, Decimal | None]) -> None:
    """Keep what landed chunks cost, by id; None if nobody knows all of it."""
    connection.execute(
        "UPDATE claude_batch.chunks AS c SET cost_usd = known.cost_usd FROM (SELECT "
        "unnest($chunk_ids::BIGINT[]) AS chunk_id, "
        "unnest($costs::DECIMAL(38, 12)[]) AS cost_usd) AS known "
        "WHERE c.chunk_id = known.chunk_id",
        {"chunk_ids": list(costs), "costs": list(costs.values())},
    )


def release(
    connection: Connection, materialization_id: str, state: Literal["planned", "dissolved"]
) -> int:
    """``held_back → planned``, or ``dissolved``: what a pilot has shown; how many requests."""
    moved = rows(
        connection,
        "UPDATE claude_batch.chunks SET state = $state WHERE state = 'held_back' "
        "AND materialization_id = $materialization_id RETURNING requests",
        {"state": state, "materialization_id": materialization_id},
    )
    return sum(int(requests) for (requests,) in moved)


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
