"""Chunks that did not go as planned: too large, looked for in vain, or made twice."""

from dagster_claude_batch import ledger
from dagster_claude_batch.chunks import (
    Chunk,
    insert_chunk,
    mark_given_up,
    mark_twin_submitted,
    mark_unsent,
    planned_chunk,
    resize_chunk,
)
from dagster_claude_batch.matching import ours_is_ours
from dagster_claude_batch.plan import Plan


def send_anew(plan: Plan, chunk: Chunk) -> None:
    """Give a chunk up whose batch nobody has found, and plan its rows once more.

    It keeps its own requests: should its batch appear after all, its answers have an owner.

    Raises:
        LostChunkError: It is not being sent any more.
    """
    mark_given_up(plan.connection, chunk, plan.now)
    plan = plan.of_owner(chunk)
    if plan.materialization.state == "open":
        twin = _insert_twin(plan, chunk, "_chunk_id = $chunk_id", requests=chunk.requests)
        if not plan.materialization.config.refresh:
            _take_out_answered(plan, twin)


def _take_out_answered(plan: Plan, chunk_id: int) -> None:
    """Take out rows that have their answer: a refresh, cancelled since, had asked them.

    The chunk then has changed, and what is left of it is planned anew before it is sent.
    """
    same = ours_is_ours(plan.declaration, "here", "a")
    plan.connection.execute(
        f"DELETE FROM {plan.registered.requests.sql} AS here WHERE _chunk_id = $chunk_id "
        f"AND EXISTS (SELECT 1 FROM {plan.declaration.answers.sql} AS a "
        f"WHERE {same} AND a._request_hash = here._request_hash)",
        {"chunk_id": chunk_id},
    )


def split(plan: Plan, chunk: Chunk) -> None:
    """Make two planned chunks of one that was too large to be accepted.

    Raises:
        LostChunkError: It is not being sent any more.
    """
    mark_unsent(plan.connection, chunk)
    split_after(plan.of_owner(chunk), chunk, chunk.requests // 2)


def split_after(plan: Plan, chunk: Chunk, kept: int) -> None:
    """Leave only the first requests in a planned chunk, and plan another one of the others.

    Raises:
        LostChunkError: It is not planned any more.
    """
    size = chunk.bytes * kept // chunk.requests
    half = f"_chunk_id = $chunk_id AND _ordinal >= {kept:d}"
    _insert_twin(plan, chunk, half, requests=chunk.requests - kept, after=kept)
    plan.connection.execute(
        f"DELETE FROM {plan.registered.requests.sql} WHERE {half}", {"chunk_id": chunk.chunk_id}
    )
    resize_chunk(plan.connection, chunk, requests=kept, size=size)


def _insert_twin(plan: Plan, chunk: Chunk, condition: str, *, requests: int, after: int = 0) -> int:
    """Plan a chunk of some of another one's requests, those from the ordinal ``after`` on."""
    (twin,) = ledger.claim_chunks(plan.connection, plan.registered, 1)
    insert_chunk(
        plan.connection,
        planned_chunk(
            twin,
            plan.materialization.materialization_id,
            attempt=chunk.attempt,
            max_tokens=chunk.max_tokens,
            requests=requests,
            size=chunk.bytes * requests // chunk.requests,
            is_packed=chunk.is_packed,
        ),
        asset=plan.declaration.asset,
        workspace=plan.declaration.workspace,
        now=plan.now,
    )
    table = plan.registered.requests.sql
    plan.connection.execute(
        f"INSERT INTO {table} BY NAME SELECT * REPLACE ($twin::BIGINT AS _chunk_id, "
        f"_ordinal - $after::INTEGER AS _ordinal) FROM {table} WHERE {condition}",
        {"chunk_id": chunk.chunk_id, "twin": twin, "after": after},
    )
    return twin


def record_copy(plan: Plan, chunk: Chunk, batch_id: str) -> None:
    """Note a second batch that one call of ours has made of a chunk."""
    plan = plan.of_owner(chunk)
    twin = _insert_twin(plan, chunk, "_chunk_id = $chunk_id", requests=chunk.requests)
    mark_twin_submitted(plan.connection, twin, chunk, batch_id, plan.now)
