"""Putting what is due into chunks: at first, for a retry, and anew."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from dagster_claude_batch import ledger
from dagster_claude_batch.chunking import SizeLimits, into_chunks
from dagster_claude_batch.chunks import (
    Chunk,
    insert_chunk,
    planned_chunk,
    resize_chunk,
)
from dagster_claude_batch.due import (
    DUE,
    choose_again,
    choose_elsewhere,
    choose_first,
    choose_retries,
    choose_up_to,
)
from dagster_claude_batch.errors import OversizedRequestError
from dagster_claude_batch.matching import our_columns, selected_columns
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.settling import row_examples
from dagster_claude_batch.source import PartitionSlice
from dagster_claude_batch.warehouse import read_arrow, rows, values_of

_REQUEST_OVERHEAD: Final = 100
"""Bytes of a request besides its parameters: the custom id and the JSON around it."""


def plan_first(plan: Plan, slices: Sequence[PartitionSlice]) -> None:
    """Plan what is due of a materialization that has just begun, up to its limit."""
    limit = plan.materialization.config.limit
    choose_first(plan, slices)
    if limit is not None:
        choose_up_to(plan, limit)
    _plan_chunks(plan)
    if limit is None:
        _note_elsewhere(plan)


def _note_elsewhere(plan: Plan) -> None:
    """Remember which rows of the set others have out: nothing may come of that."""
    count = choose_elsewhere(plan)
    if not count:
        return
    (chunk_id,) = ledger.claim_chunks(plan.connection, plan.registered, 1)
    max_tokens = plan.declaration.max_tokens
    planned = planned_chunk(
        chunk_id,
        plan.materialization.materialization_id,
        attempt=1,
        max_tokens=max_tokens,
        requests=count,
        size=0,
    )
    chunk = replace(planned, state="elsewhere")
    _insert_chunks(plan, [chunk])
    _insert_requests(plan, [chunk], 1, max_tokens)


def plan_retries(
    plan: Plan, slices: Sequence[PartitionSlice], *, only_unasked: bool = False
) -> int:
    """Plan another attempt for what failed and may end differently; how many rows.

    With ``only_unasked``, only for rows of the set that have never come to an outcome.
    """
    if not choose_retries(plan, slices, only_unasked=only_unasked):
        return 0
    return _plan_chunks(plan)


def replan(plan: Plan, chunk: Chunk, slices: Sequence[PartitionSlice]) -> None:
    """Plan a chunk anew whose rows have changed since; one without any left is dissolved.

    Raises:
        LostChunkError: It is not planned any more.
    """
    choose_again(plan, chunk, slices)
    plan.connection.execute(
        f"DELETE FROM {plan.registered.requests.sql} WHERE _chunk_id = $chunk_id",
        {"chunk_id": chunk.chunk_id},
    )
    resize_chunk(plan.connection, chunk, requests=0, size=0)
    _plan_chunks(plan)


def _plan_chunks(plan: Plan) -> int:
    """Group the due rows into chunks of one attempt and one `max_tokens` each; how many rows."""
    planned = 0
    groups = rows(
        plan.connection,
        f"SELECT attempt, max_tokens, count(*) FROM {DUE} GROUP BY ALL ORDER BY ALL",
    )
    for attempt, max_tokens, count in groups:
        chunks = _chunks_of_group(plan, attempt, max_tokens)
        _insert_chunks(plan, chunks)
        _insert_requests(plan, chunks, attempt, max_tokens)
        planned += int(count)
    return planned


def _insert_chunks(plan: Plan, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        insert_chunk(
            plan.connection,
            chunk,
            asset=plan.declaration.asset,
            workspace=plan.declaration.workspace,
            now=plan.now,
        )


def _chunks_of_group(plan: Plan, attempt: int, max_tokens: int) -> list[Chunk]:
    sizes = sizes_of_chunks(plan, attempt, max_tokens)
    chunk_ids = ledger.claim_chunks(plan.connection, plan.registered, len(sizes))
    return [
        planned_chunk(
            chunk_id,
            plan.materialization.materialization_id,
            attempt=attempt,
            max_tokens=max_tokens,
            requests=requests,
            size=size,
        )
        for chunk_id, (requests, size) in zip(chunk_ids, sizes, strict=True)
    ]


def _limits_of_attempt(limits: SizeLimits, attempt: int) -> SizeLimits:
    """Each further attempt goes in chunks of half the size."""
    size = max(1, limits.chunk_size // 2 ** (attempt - 1))
    return SizeLimits(size, limits.max_bytes, limits.max_request_bytes)


def sizes_of_chunks(plan: Plan, attempt: int, max_tokens: int) -> list[tuple[int, int]]:
    """Number of requests and bytes of each chunk that the due rows of one attempt make.

    Raises:
        OversizedRequestError: A row's request is too large, with the row's key.
    """
    constant = plan.declaration.shape.constant_size(max_tokens=max_tokens)
    fixed = constant + _REQUEST_OVERHEAD
    due = read_arrow(
        plan.connection,
        f"SELECT bytes FROM {DUE} WHERE attempt = $attempt AND max_tokens = $max_tokens "
        "ORDER BY place",
        {"attempt": attempt, "max_tokens": max_tokens},
    )
    sizes = (int(size) + fixed for batch in due for size in values_of(batch, 0))
    try:
        chunks = into_chunks(sizes, _limits_of_attempt(plan.declaration.limits, attempt))
        return [(len(positions), size) for positions, size in chunks]
    except OversizedRequestError as error:
        due.close()  # a connection has one open result at a time
        largest = f"{DUE} WHERE bytes = {error.size - fixed:d}"
        raise OversizedRequestError(
            error.position,
            size=error.size,
            limit=error.limit,
            row_key=row_examples(plan.connection, plan.declaration, largest),
        ) from None


def _insert_requests(plan: Plan, chunks: Sequence[Chunk], attempt: int, max_tokens: int) -> None:
    """Write the rows into their chunks, in the order in which their sizes were read."""
    starts: list[int] = []
    place = 0
    for chunk in chunks:
        starts.append(place)
        place += chunk.requests
    plan.connection.execute(
        f"""
        INSERT INTO {plan.registered.requests.sql} ({our_columns(plan.declaration)}, _chunk_id,
            _ordinal, _position, _partition, _request_hash, _attempt)
        SELECT {selected_columns(plan.declaration)}, b.chunk_id, due.place - b.start, 0,
            due.partition, due.hash, due.attempt
        FROM {DUE} AS due
        ASOF JOIN (
            SELECT unnest($chunk_ids::BIGINT[]) AS chunk_id, unnest($starts::BIGINT[]) AS start
        ) AS b ON due.place >= b.start
        WHERE due.attempt = $attempt AND due.max_tokens = $max_tokens
        """,
        {
            "attempt": attempt,
            "max_tokens": max_tokens,
            "chunk_ids": [chunk.chunk_id for chunk in chunks],
            "starts": starts,
        },
    )
