"""Joining or beginning a materialization, and putting what is due into chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from dagster_claude_batch import ledger
from dagster_claude_batch.adoption import adopt_chunks, dissolve_cancelled
from dagster_claude_batch.chunking import SizeLimits, into_chunks
from dagster_claude_batch.chunks import (
    Chunk,
    insert_chunk,
    planned_chunk,
    resize_chunk,
)
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.due import (
    DUE,
    choose_again,
    choose_elsewhere,
    choose_first,
    choose_retries,
    choose_up_to,
)
from dagster_claude_batch.errors import (
    LedgerLostError,
    MaterializationDoneError,
    OversizedRequestError,
)
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.matching import our_columns, selected_columns
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.preparing import prepare_tables
from dagster_claude_batch.settling import row_examples
from dagster_claude_batch.source import PartitionSlice, find_source
from dagster_claude_batch.warehouse import Connection, read_arrow, rows, values_of

_REQUEST_OVERHEAD: Final = 100
"""Bytes of a request besides its parameters: the custom id and the JSON around it."""


@dataclass(frozen=True)
class RunIdentity:
    """The run that asks; ``retry_of`` is set only where Dagster itself launched it as a retry.

    ``collects_for``: an earlier run, known to the ledger, whose materializations it goes on with.
    """

    run_id: str
    retry_of: str | None = None
    collects_for: str | None = None


def attach(
    connection: Connection,
    declaration: Declaration,
    run: RunIdentity,
    slices: Sequence[PartitionSlice],
    config: MaterializationConfig,
    *,
    now: datetime,
    is_given_up: Callable[[Sequence[str]], bool] = lambda _: False,
) -> list[Materialization]:
    """Find what the run works on; join what is open for its partitions, and begin the rest.

    An open materialization whose runs, in the order in which they came to work on it,
    ``is_given_up`` says were cancelled is not joined but cancelled, and a limited one ends where
    there is no limit any more; what they have out is taken over.

    Raises:
        MaterializationDoneError: The run is an automatic retry, and there is nothing left to do.
        LedgerLostError: The run is to collect what this ledger does not know.
        SourceNotFoundError, SourceFailedError, MissingColumnError, NullRowKeyError,
        DuplicateRowKeyError, ColumnCollisionError, ColumnTypeChangedError,
        OversizedRequestError: Nothing was planned.
    """
    ledger.open_ledger(connection, now)
    asset = declaration.asset
    known, like = _known_to_the_ledger(connection, asset, run)
    if known:
        ledger.attach_run(connection, asset, run.run_id, known, now, like=like)
        return known
    found = _join_or_open(connection, declaration, slices, config, now=now, is_given_up=is_given_up)
    ledger.attach_run(connection, asset, run.run_id, found, now)
    _note_joined(connection, asset, run, found, config, since=now)
    return found


def catch_up(
    connection: Connection,
    declaration: Declaration,
    run: RunIdentity,
    slices: Sequence[PartitionSlice],
    config: MaterializationConfig,
    *,
    now: datetime,
    is_given_up: Callable[[Sequence[str]], bool] = lambda _: False,
) -> list[Materialization]:
    """Join or begin what a run's launch asks for beyond that which it has joined, now at its end.

    That had fixed its rows before: what has come or changed between, or was to be asked once more
    by a `refresh`, is due now. What failed in it is not, for it was asked after the launch.
    Empty if the run has joined nothing, has caught up, or was cancelled in any part.

    Raises:
        What `attach` raises of the source, for the same reasons.
    """
    asset = declaration.asset
    joined = ledger.joined_by(connection, asset, run.run_id)
    keys = {key for each in joined for key in each.partitions}
    behind = [part for part in slices if part.key in keys]
    all_ = ledger.materializations_of_run(connection, asset, run.run_id)
    if not behind or any(each.state == "cancelled" for each in all_):
        return []
    ledger.note_joined(connection, asset, run.run_id, joined, joined=False)
    left = _beyond(config, [each.config for each in joined])
    found = _join_or_open(connection, declaration, behind, left, now=now, is_given_up=is_given_up)
    ledger.attach_launch(connection, asset, run.run_id, found, now)
    since = ledger.launched_at(connection, asset, run.run_id)
    _note_joined(connection, asset, run, found, left, since=since)
    return found


def _note_joined(
    connection: Connection,
    asset: str,
    run: RunIdentity,
    found: Sequence[Materialization],
    config: MaterializationConfig,
    *,
    since: datetime,
) -> None:
    """Note which of these do not cover what was asked of a launch at ``since``."""
    if config.limit is not None:
        return
    behind = [
        each
        for each in found
        if each.started_at < since or (config.refresh and not each.config.refresh)
    ]
    ledger.note_joined(connection, asset, run.run_id, behind, joined=True)


def _beyond(
    config: MaterializationConfig, done: Sequence[MaterializationConfig]
) -> MaterializationConfig:
    """What was asked for, less what materializations with these configurations have done."""
    refresh = config.refresh and not any(each.refresh for each in done)
    strengths = ("none", "retryable", "all")
    most = max(strengths.index(each.retry_failed) for each in done)
    is_stronger = strengths.index(config.retry_failed) > most
    return replace(
        config, refresh=refresh, retry_failed=config.retry_failed if is_stronger else "none"
    )


def _known_to_the_ledger(
    connection: Connection, asset: str, run: RunIdentity
) -> tuple[list[Materialization], str | None]:
    """What the run goes on with, if anything, and the run whose launch it belongs to."""
    known = ledger.materializations_of_run(connection, asset, run.run_id)
    if known:
        return known, run.run_id
    if run.retry_of is not None:
        known = ledger.materializations_of_run(connection, asset, run.retry_of)
        if known and not any(each.state == "open" for each in known):
            raise MaterializationDoneError(asset, run.retry_of)
        if known:
            return known, run.retry_of
    if run.collects_for is not None:
        known = ledger.materializations_of_run(connection, asset, run.collects_for)
        if not known:
            raise LedgerLostError("of the run", f"it does not know run {run.collects_for}.")
    return known, run.collects_for


def _join_or_open(
    connection: Connection,
    declaration: Declaration,
    slices: Sequence[PartitionSlice],
    config: MaterializationConfig,
    *,
    now: datetime,
    is_given_up: Callable[[Sequence[str]], bool],
) -> list[Materialization]:
    source = find_source(connection, declaration)
    registered = prepare_tables(connection, declaration, source)
    ledger.claim_chunks(connection, registered, 0)
    wanted = {part.key for part in slices}
    joined: list[Materialization] = []
    for each in ledger.open_materializations(connection, declaration.asset):
        if not wanted.intersection(each.partitions):
            continue
        identity = each.materialization_id
        if is_given_up(ledger.runs_of(connection, identity)):
            ledger.end_materialization(connection, identity, "cancelled", now)
            dissolve_cancelled(connection, registered)
        elif each.config.limit is not None and config.limit is None:
            # Now all rows are asked: what the limited one has out is taken over below.
            ledger.end_materialization(connection, identity, "done", now)
            dissolve_cancelled(connection, registered)
        else:
            ledger.note_halt(connection, identity, None)
            joined.append(replace(each, halted_because=None))
    taken = {key for each in joined for key in each.partitions}
    left = [part for part in slices if part.key not in taken]
    if not left:
        return joined
    keys = [part.key for part in left]
    opened = ledger.open_materialization(connection, declaration.asset, keys, config, now)
    adopt_chunks(connection, registered, opened)
    plan = Plan(connection, declaration, registered, opened, now)
    choose_first(plan, left)
    if config.limit is not None:
        choose_up_to(plan, config.limit)
    _plan_chunks(plan)
    if config.limit is None:
        _note_elsewhere(plan)
    return [*joined, opened]


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
    around = plan.declaration.shape.around(max_tokens=max_tokens)
    fixed = sum(len(part.encode()) for part in around) + _REQUEST_OVERHEAD
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
