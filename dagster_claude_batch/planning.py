"""Putting what is due into chunks: at first, for a retry, and anew."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from dagster_claude_batch import ledger
from dagster_claude_batch.arrow import values_of
from dagster_claude_batch.chunking import SizeLimits, into_chunks, into_chunks_by_count
from dagster_claude_batch.chunks import (
    Chunk,
    insert_chunk,
    planned_chunk,
    release,
    resize_chunk,
)
from dagster_claude_batch.due import (
    DUE,
    choose_again,
    choose_elsewhere,
    choose_first,
    choose_retries,
    choose_settled,
    choose_up_to,
    count_due,
    hold_back_after,
)
from dagster_claude_batch.errors import OversizedRequestError
from dagster_claude_batch.matching import our_columns, selected_columns
from dagster_claude_batch.numbering import (
    NUMBERED,
    Group,
    groups_of,
    number_requests,
    rows_per_request,
)
from dagster_claude_batch.outstanding import chunks_of, held_elsewhere
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.settling import row_examples
from dagster_claude_batch.source import PartitionSlice
from dagster_claude_batch.warehouse import read_arrow, row, rows

REQUEST_OVERHEAD: Final = 100
"""Bytes of a request besides its parameters: the custom id and the JSON around it."""


def plan_first(plan: Plan, slices: Sequence[PartitionSlice]) -> None:
    """Plan what is due of a materialization that has just begun, up to its limit.

    With a pilot, only that is planned to be sent; the rest is held back.
    """
    limit, pilot = plan.materialization.config.limit, plan.declaration.pilot
    choose_first(plan, slices)
    if limit is not None:
        choose_up_to(plan, limit)
    if pilot is not None:
        hold_back_after(plan, pilot)
    _plan_chunks(plan)
    if limit is None and choose_elsewhere(plan):
        _note_elsewhere(plan, attempt=1, max_tokens=plan.declaration.max_tokens)
    _note_awaited(plan)


def plan_retries(
    plan: Plan, slices: Sequence[PartitionSlice], *, only_unasked: bool = False
) -> int:
    """Plan another attempt for what failed and may end differently; how many rows.

    With ``only_unasked``, only for rows of the set that have never come to an outcome.
    """
    if not choose_retries(plan, slices, only_unasked=only_unasked):
        return 0
    planned = _plan_chunks(plan)
    return planned if only_unasked else planned + _leave_to_others(plan)


def replan(plan: Plan, chunk: Chunk, slices: Sequence[PartitionSlice]) -> None:
    """Plan a chunk anew whose rows have changed since; one without any left is dissolved.

    Raises:
        LostChunkError: It is not planned any more.
    """
    choose_again(plan, [chunk], slices)
    plan.connection.execute(
        f"DELETE FROM {plan.registered.requests.sql} WHERE _chunk_id = $chunk_id",
        {"chunk_id": chunk.chunk_id},
    )
    resize_chunk(plan.connection, chunk, requests=0, size=0)
    _plan_chunks(plan)
    _leave_to_others(plan)


def plan_next_pilot(plan: Plan, slices: Sequence[PartitionSlice]) -> int:
    """Plan another pilot of what is held back, for nothing came of the first; how many rows."""
    identity = plan.materialization.materialization_id
    held = chunks_of(plan.connection, [identity], ["held_back"])
    choose_again(plan, held, slices)
    plan.connection.execute(
        f"DELETE FROM {plan.registered.requests.sql} "
        "WHERE _chunk_id IN (SELECT unnest($chunk_ids::BIGINT[]))",
        {"chunk_ids": [chunk.chunk_id for chunk in held]},
    )
    release(plan.connection, identity, "dissolved")
    hold_back_after(plan, plan.declaration.pilot or 1)
    return _plan_chunks(plan) + _leave_to_others(plan)


# --- what others have out -------------------------------------------------------------------


def _leave_to_others(plan: Plan) -> int:
    """Await what others have been sent as a question instead of planning it; how many rows."""
    if not plan.declaration.deduplicate:
        return 0
    choose_settled(plan, elsewhere=True)
    count = count_due(plan)
    if count:
        attempt, max_tokens = row(
            plan.connection, f"SELECT max(attempt), max(max_tokens) FROM {DUE}"
        )
        _note_elsewhere(plan, attempt=attempt, max_tokens=max_tokens)
        _note_awaited(plan)
    return count


def _note_elsewhere(plan: Plan, *, attempt: int, max_tokens: int) -> None:
    """Remember which of the due rows others have out: nothing may come of that."""
    (chunk_id,) = ledger.claim_chunks(plan.connection, plan.registered, 1)
    planned = planned_chunk(
        chunk_id,
        plan.materialization.materialization_id,
        attempt=attempt,
        max_tokens=max_tokens,
        requests=count_due(plan),
        size=0,
    )
    _insert_chunks(plan, [replace(planned, state="elsewhere")])
    plan.connection.execute(
        f"INSERT INTO {plan.registered.requests.sql} ({our_columns(plan.declaration)}, _chunk_id, "
        f"_ordinal, _position, _partition, _request_hash, _attempt) "
        f"SELECT {selected_columns(plan.declaration)}, $chunk_id, row_number() OVER () - 1, 0, "
        f"partition, hash, attempt FROM {DUE}",
        {"chunk_id": chunk_id},
    )


def _note_awaited(plan: Plan) -> None:
    """Remember which chunks of others may answer rows of the materialization."""
    identity = plan.materialization.materialization_id
    now = ledger.get_materialization(plan.connection, identity)
    held = held_elsewhere(plan.connection, plan.registered, now)
    ledger.note_awaited(plan.connection, now, sorted({*now.awaits, *held}))


# --- chunks ---------------------------------------------------------------------------------


def _plan_chunks(plan: Plan) -> int:
    """Group the due rows into requests and these into chunks; how many rows."""
    planned = 0
    for group in groups_of(plan):
        planned += number_requests(plan, group)
        chunks = _chunks_of_group(plan, group)
        _insert_chunks(plan, chunks)
        _insert_requests(plan, chunks, group)
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


def _chunks_of_group(plan: Plan, group: Group) -> list[Chunk]:
    sizes = sizes_of_chunks(plan, group)
    chunk_ids = ledger.claim_chunks(plan.connection, plan.registered, len(sizes))
    planned = (
        planned_chunk(
            chunk_id,
            plan.materialization.materialization_id,
            attempt=group.attempt,
            max_tokens=group.max_tokens,
            requests=requests,
            size=size,
            is_packed=rows_per_request(plan, group) > 1,
        )
        for chunk_id, (requests, size) in zip(chunk_ids, sizes, strict=True)
    )
    return [replace(each, state="held_back") if group.held_back else each for each in planned]


def _limits_of_attempt(limits: SizeLimits, attempt: int) -> SizeLimits:
    """Each further attempt goes in chunks of half the size."""
    size = max(1, limits.chunk_size // 2 ** (attempt - 1))
    return SizeLimits(size, limits.max_bytes, limits.max_request_bytes)


def sizes_of_chunks(plan: Plan, group: Group) -> list[tuple[int, int]]:
    """Number of requests and bytes of each chunk that the rows make that were numbered last.

    Raises:
        OversizedRequestError: A row's request is too large, with the row's key.
    """
    together = rows_per_request(plan, group)
    fixed = _constant_size(plan, group, together) + REQUEST_OVERHEAD
    limits = _limits_of_attempt(plan.declaration.limits, group.attempt)
    own = f"SELECT request, sum(bytes)::BIGINT AS size FROM {NUMBERED} WHERE leads GROUP BY request"
    if together == 1:
        own = f"SELECT request, bytes AS size FROM {NUMBERED} WHERE leads"
    requests, largest = row(plan.connection, f"SELECT count(*), max(size) FROM ({own})")
    chunks = into_chunks_by_count(requests, (largest or 0) + fixed, limits)
    if chunks is not None:
        sizes = _sums_of(plan, own, chunks)
        return [(len(each), sizes[each.start] + len(each) * fixed) for each in chunks]
    numbered = read_arrow(plan.connection, f"SELECT size FROM ({own}) ORDER BY request")
    each_size = (int(size) + fixed for batch in numbered for size in values_of(batch, 0))
    try:
        return [(len(positions), size) for positions, size in into_chunks(each_size, limits)]
    except OversizedRequestError as error:
        numbered.close()  # a connection has one open result at a time
        largest = f"{NUMBERED} WHERE request = {error.position:d}"
        raise OversizedRequestError(
            error.position,
            size=error.size,
            limit=error.limit,
            row_key=row_examples(plan.connection, plan.declaration, largest),
        ) from None


def _sums_of(plan: Plan, own: str, chunks: Sequence[range]) -> dict[int, int]:
    """The bytes of chunks by their first request, without what all requests have."""
    found = rows(
        plan.connection,
        f"SELECT b.start, sum(n.size)::BIGINT FROM ({own}) AS n ASOF JOIN "
        "(SELECT unnest($starts::BIGINT[]) AS start) AS b ON n.request >= b.start GROUP BY ALL",
        {"starts": [each.start for each in chunks]},
    )
    return dict(found)


def _constant_size(plan: Plan, group: Group, together: int) -> int:
    packing = plan.declaration.packing
    if packing is None or together == 1:
        return plan.declaration.shape.constant_size(max_tokens=group.max_tokens)
    return packing.constant_size(max_tokens=group.max_tokens)


def _insert_requests(plan: Plan, chunks: Sequence[Chunk], group: Group) -> None:
    """Write the rows into their chunks, in the order in which their sizes were read."""
    starts: list[int] = []
    place = 0
    for chunk in chunks:
        starts.append(place)
        place += chunk.requests
    plan.connection.execute(
        f"""
        INSERT INTO {plan.registered.requests.sql} ({our_columns(plan.declaration)}, _chunk_id,
            _ordinal, _position, _partition, _request_hash, _attempt, _fingerprint)
        SELECT {selected_columns(plan.declaration)}, b.chunk_id, n.request - b.start, n.position,
            n.partition, n.hash, $attempt::INTEGER, n.fingerprint
        FROM {NUMBERED} AS n
        ASOF JOIN (
            SELECT unnest($chunk_ids::BIGINT[]) AS chunk_id, unnest($starts::BIGINT[]) AS start
        ) AS b ON n.request >= b.start
        """,
        {
            "attempt": group.attempt,
            "chunk_ids": [chunk.chunk_id for chunk in chunks],
            "starts": starts,
        },
    )
