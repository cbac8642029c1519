"""What was planned, sent and landed: schema ``claude_batch``, and every change of state in it."""

import json
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from dagster_claude_batch.errors import LedgerVersionError, LostChunkError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.tables import USAGE_COLUMNS, TableName, exists, grow_table
from dagster_claude_batch.warehouse import Connection, row, rows

SCHEMA: Final = "claude_batch"

MaterializationState: TypeAlias = Literal["open", "done", "cancelled"]

ChunkState: TypeAlias = Literal["planned", "sending", "submitted", "landed", "dissolved"]
"""``planned → sending → submitted → landed``; ``sending → planned`` if surely not created.

``sending`` is written before the POST: a chunk found in it may or may not exist as a batch.
``dissolved`` had its rows taken out of it before it was ever sent.
"""

_REQUEST_COLUMNS: Final = {
    "_chunk_id": "BIGINT",
    "_ordinal": "INTEGER",
    "_position": "INTEGER",
    "_partition": "VARCHAR",
    "_request_hash": "VARCHAR",
    "_attempt": "INTEGER",
    "_outcome": "VARCHAR",
    "_retryable": "BOOLEAN",
    **USAGE_COLUMNS,
}

_CHUNKS_PER_ASSET: Final = 2**32

# Each entry leads from the version before it to its own; the first one creates the ledger.
_MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE claude_batch.assets (
            asset_id INTEGER, asset VARCHAR, row_key VARCHAR[], chunks BIGINT)""",
        "CREATE TABLE claude_batch.workspaces (workspace VARCHAR, sends BIGINT)",
        """CREATE TABLE claude_batch.materializations (
            materialization_id VARCHAR, asset VARCHAR, partitions VARCHAR[], state VARCHAR,
            config VARCHAR, model_max_tokens BIGINT,
            started_at TIMESTAMP WITH TIME ZONE, ended_at TIMESTAMP WITH TIME ZONE)""",
        """CREATE TABLE claude_batch.runs (
            run_id VARCHAR, asset VARCHAR, materialization_id VARCHAR,
            attached_at TIMESTAMP WITH TIME ZONE)""",
        """CREATE TABLE claude_batch.chunks (
            chunk_id BIGINT, materialization_id VARCHAR, asset VARCHAR, workspace VARCHAR,
            state VARCHAR, adopted BOOLEAN, attempt INTEGER, max_tokens BIGINT, requests BIGINT,
            bytes BIGINT,
            nonce VARCHAR, body_sha256 VARCHAR, batch_id VARCHAR, run_id VARCHAR,
            planned_at TIMESTAMP WITH TIME ZONE, sending_at TIMESTAMP WITH TIME ZONE,
            submitted_at TIMESTAMP WITH TIME ZONE, ended_at TIMESTAMP WITH TIME ZONE,
            landed_at TIMESTAMP WITH TIME ZONE, succeeded BIGINT, errored BIGINT,
            canceled BIGINT, expired BIGINT)""",
        """CREATE TABLE claude_batch.departed (
            asset VARCHAR, partition VARCHAR, row_key VARCHAR, request_hash VARCHAR,
            answer VARCHAR, departed_at TIMESTAMP WITH TIME ZONE)""",
    ),
)

VERSION: Final = len(_MIGRATIONS)
"""The newest ledger this code can read and write."""


@dataclass(frozen=True)
class LedgerAsset:
    """An asset's place in the ledger: its requests have a table of their own, with typed keys."""

    asset_id: int
    asset: str

    @property
    def requests(self) -> TableName:
        """The table of all requests of the asset."""
        return TableName(f"requests_{self.asset_id}", SCHEMA)


@dataclass(frozen=True)
class MaterializationConfig:
    """What a run asked of the materialization that it opened."""

    refresh: bool = False
    retry_failed: Literal["retryable", "all", "none"] = "retryable"


@dataclass(frozen=True)
class Materialization:
    """One asking for a set of partitions; ``(None,)`` for an asset without partitions."""

    materialization_id: str
    partitions: tuple[str | None, ...]
    state: MaterializationState
    config: MaterializationConfig
    model_max_tokens: int | None
    started_at: datetime


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


def open_ledger(connection: Connection, now: datetime) -> None:
    """Create the ledger or bring it up to this version.

    Raises:
        LedgerVersionError: It is newer than this code.
    """
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS claude_batch.ledger "
        "(version INTEGER, assets INTEGER, migrated_at TIMESTAMP WITH TIME ZONE)"
    )
    found = rows(connection, "SELECT version FROM claude_batch.ledger")
    version = int(found[0][0]) if found else 0
    if version > VERSION:
        raise LedgerVersionError(version, known=VERSION)
    if version == VERSION:
        return
    for statements in _MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    if found:
        connection.execute(
            "UPDATE claude_batch.ledger SET version = $version, migrated_at = $now",
            {"version": VERSION, "now": now},
        )
    else:
        connection.execute(
            "INSERT INTO claude_batch.ledger VALUES ($version, 0, $now)",
            {"version": VERSION, "now": now},
        )


def is_ledger(connection: Connection) -> bool:
    """Whether this database has a ledger at all."""
    return exists(connection, TableName("ledger", SCHEMA))


def find_asset(connection: Connection, asset: str) -> LedgerAsset | None:
    """An asset that has been planned before."""
    found = rows(
        connection,
        "SELECT asset_id, asset FROM claude_batch.assets WHERE asset = $asset",
        {"asset": asset},
    )
    return LedgerAsset(*found[0]) if found else None


def register_asset(
    connection: Connection,
    asset: str,
    *,
    row_key: Mapping[str, str],
    include: Mapping[str, str],
) -> LedgerAsset:
    """Find or make the asset's place; its table grows with new `include` columns.

    Raises:
        ColumnTypeChangedError: A key or `include` column now has another type.
    """
    registered = find_asset(connection, asset)
    if registered is None:
        # The one row of the ledger serializes registrations: a second one conflicts and retries.
        (number,) = row(
            connection, "UPDATE claude_batch.ledger SET assets = assets + 1 RETURNING assets"
        )
        registered = LedgerAsset(int(number), asset)
        connection.execute(
            "INSERT INTO claude_batch.assets VALUES ($asset_id, $asset, NULL, 0)",
            {"asset_id": registered.asset_id, "asset": asset},
        )
    grow_table(connection, registered.requests, {**_REQUEST_COLUMNS, **row_key, **include})
    changed = rows(
        connection,
        "UPDATE claude_batch.assets SET row_key = $row_key WHERE asset_id = $asset_id "
        "AND row_key IS DISTINCT FROM $row_key RETURNING asset_id",
        {"asset_id": registered.asset_id, "row_key": list(row_key)},
    )
    if changed:
        _create_requests_view(connection)
    return registered


def _create_requests_view(connection: Connection) -> None:
    """Show the requests of all assets as one relation, the row key as a JSON array."""
    ours = ", ".join(f"{name} AS {name[1:]}" for name in _REQUEST_COLUMNS)
    selects = [
        f"SELECT asset, {ours}, json_array({', '.join(map(quote_identifier, row_key))}) AS row_key "
        f"FROM {LedgerAsset(asset_id, asset).requests.sql}, claude_batch.assets "
        f"WHERE asset_id = {int(asset_id)}"
        for asset_id, asset, row_key in rows(
            connection,
            "SELECT asset_id, asset, row_key FROM claude_batch.assets WHERE row_key IS NOT NULL",
        )
    ]
    union = " UNION ALL ".join(selects)
    connection.execute(f"CREATE OR REPLACE VIEW claude_batch.requests AS {union}")


def claim_chunks(connection: Connection, registered: LedgerAsset, count: int) -> range:
    """Take running numbers for new chunks; with count 0, only serialize the planning.

    Two transactions that plan for one asset change the same row, so one of them fails and runs
    again, on what the other one planned.
    """
    (last,) = row(
        connection,
        "UPDATE claude_batch.assets SET chunks = chunks + $count "
        "WHERE asset_id = $asset_id RETURNING chunks",
        {"count": count, "asset_id": registered.asset_id},
    )
    first = registered.asset_id * _CHUNKS_PER_ASSET + int(last) - count
    return range(first, first + count)


# --- materializations -----------------------------------------------------------------------


_MATERIALIZATION: Final = (
    "materialization_id, partitions, state, config, model_max_tokens, started_at"
)


def _materialization(values: tuple[Any, ...]) -> Materialization:
    identity, partitions, state, config, model_max_tokens, started_at = values
    return Materialization(
        identity,
        tuple(partitions) or (None,),
        state,
        MaterializationConfig(**json.loads(config)),
        model_max_tokens,
        started_at,
    )


def materializations_of_run(
    connection: Connection, asset: str, run_id: str
) -> list[Materialization]:
    """What a run works on, oldest first; empty for a run that the ledger has not seen."""
    found = rows(
        connection,
        f"SELECT {_MATERIALIZATION} FROM claude_batch.materializations "
        "WHERE asset = $asset AND materialization_id IN (SELECT materialization_id "
        "FROM claude_batch.runs WHERE run_id = $run_id AND asset = $asset) ORDER BY started_at",
        {"asset": asset, "run_id": run_id},
    )
    return [_materialization(values) for values in found]


def open_materializations(connection: Connection, asset: str) -> list[Materialization]:
    """All materializations of an asset that are not at their end, oldest first."""
    found = rows(
        connection,
        f"SELECT {_MATERIALIZATION} FROM claude_batch.materializations "
        "WHERE asset = $asset AND state = 'open' ORDER BY started_at",
        {"asset": asset},
    )
    return [_materialization(values) for values in found]


def get_materialization(connection: Connection, materialization_id: str) -> Materialization:
    """Read one materialization again."""
    found = row(
        connection,
        f"SELECT {_MATERIALIZATION} FROM claude_batch.materializations "
        "WHERE materialization_id = $materialization_id",
        {"materialization_id": materialization_id},
    )
    return _materialization(found)


def open_materialization(
    connection: Connection,
    asset: str,
    partitions: Sequence[str | None],
    config: MaterializationConfig,
    now: datetime,
) -> Materialization:
    """Begin a materialization."""
    opened = Materialization(str(uuid.uuid4()), tuple(partitions), "open", config, None, now)
    connection.execute(
        "INSERT INTO claude_batch.materializations VALUES ($materialization_id, $asset, "
        "$partitions::VARCHAR[], 'open', $config, NULL, $now, NULL)",
        {
            "materialization_id": opened.materialization_id,
            "asset": asset,
            "partitions": [key for key in partitions if key is not None],
            "config": json.dumps(config.__dict__),
            "now": now,
        },
    )
    return opened


def attach_run(
    connection: Connection,
    asset: str,
    run_id: str,
    materializations: Iterable[Materialization],
    now: datetime,
) -> None:
    """Note that a run works on these materializations; attaching twice changes nothing."""
    for materialization in materializations:
        connection.execute(
            "INSERT INTO claude_batch.runs SELECT $run_id, $asset, $materialization_id, $now "
            "WHERE NOT EXISTS (SELECT 1 FROM claude_batch.runs WHERE run_id = $run_id "
            "AND asset = $asset AND materialization_id = $materialization_id)",
            {
                "run_id": run_id,
                "asset": asset,
                "materialization_id": materialization.materialization_id,
                "now": now,
            },
        )


def unlanded_materializations(connection: Connection, asset: str) -> list[Materialization]:
    """Materializations in any state that have something out, oldest first."""
    found = rows(
        connection,
        f"SELECT {_MATERIALIZATION} FROM claude_batch.materializations WHERE asset = $asset "
        "AND materialization_id IN (SELECT materialization_id FROM claude_batch.chunks "
        "WHERE state IN ('sending', 'submitted')) ORDER BY started_at",
        {"asset": asset},
    )
    return [_materialization(values) for values in found]


def runs_of(connection: Connection, materialization_id: str) -> set[str]:
    """Ids of the runs that have worked on a materialization, or are going to."""
    found = rows(
        connection,
        "SELECT run_id FROM claude_batch.runs WHERE materialization_id = $materialization_id",
        {"materialization_id": materialization_id},
    )
    return {str(run_id) for (run_id,) in found}


def end_materialization(
    connection: Connection,
    materialization_id: str,
    state: Literal["done", "cancelled"],
    now: datetime,
) -> bool:
    """Close a materialization; False if somebody else has."""
    moved = rows(
        connection,
        "UPDATE claude_batch.materializations SET state = $state, ended_at = $now "
        "WHERE materialization_id = $materialization_id AND state = 'open' "
        "RETURNING materialization_id",
        {"state": state, "now": now, "materialization_id": materialization_id},
    )
    return bool(moved)


def note_model_limit(connection: Connection, materialization_id: str, max_tokens: int) -> None:
    """Keep the model's own limit of `max_tokens`, which bounds how far attempts may grow."""
    connection.execute(
        "UPDATE claude_batch.materializations SET model_max_tokens = $max_tokens "
        "WHERE materialization_id = $materialization_id",
        {"max_tokens": max_tokens, "materialization_id": materialization_id},
    )


# --- chunks ---------------------------------------------------------------------------------


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
