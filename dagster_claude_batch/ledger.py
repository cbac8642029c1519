"""What was planned, sent and landed: schema ``claude_batch``, and every change of state in it."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from dagster_claude_batch.errors import LedgerVersionError, TableTakenError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.ledger_tables import MIGRATIONS, SPENDING
from dagster_claude_batch.tables import USAGE_COLUMNS, TableName, exists, grow_table
from dagster_claude_batch.warehouse import Connection, row, rows

SCHEMA: Final = "claude_batch"

MaterializationState: TypeAlias = Literal["open", "done", "cancelled"]

_REQUEST_COLUMNS: Final = {
    "_chunk_id": "BIGINT",
    "_ordinal": "INTEGER",
    "_position": "INTEGER",
    "_partition": "VARCHAR",
    "_request_hash": "VARCHAR",
    "_attempt": "INTEGER",
    "_outcome": "VARCHAR",
    "_retryable": "BOOLEAN",
    "_web_searches": "INTEGER",
    "_fingerprint": "UBIGINT",
    **USAGE_COLUMNS,
}

_CHUNKS_PER_ASSET: Final = 2**32

VERSION: Final = len(MIGRATIONS)
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
    limit: int | None = None
    max_cost_usd: float | None = None


@dataclass(frozen=True)
class Materialization:
    """One asking for a set of partitions; ``(None,)`` for an asset without partitions.

    ``halted_because`` is what the API said of the account when it refused rows already sent;
    until another run attaches, nothing more is sent. ``awaits`` are ids of chunks with rows of its
    partitions that others had out when it began; these rows are planned if nothing comes of that.
    ``pilot`` is why nothing more was sent than that, if so. ``capped`` is which cap kept the rest
    from being sent, and ``left`` how many rows of which partitions that were.
    """

    materialization_id: str
    partitions: tuple[str | None, ...]
    state: MaterializationState
    config: MaterializationConfig
    model_max_tokens: int | None
    started_at: datetime
    halted_because: str | None = None
    awaits: tuple[int, ...] = ()
    pilot: str | None = None
    capped: str | None = None
    left: Mapping[str | None, int] = field(default_factory=dict[str | None, int])


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
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    _grow_requests(connection)
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


def _grow_requests(connection: Connection) -> None:
    """Let the requests of all assets have the columns that are new."""
    known = rows(
        connection,
        "SELECT asset_id, asset FROM claude_batch.assets WHERE row_key IS NOT NULL",
    )
    for values in known:
        grow_table(connection, LedgerAsset(*values).requests, _REQUEST_COLUMNS)
    if known:
        _create_views(connection)


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
            "INSERT INTO claude_batch.assets (asset_id, asset, chunks) "
            "VALUES ($asset_id, $asset, 0)",
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
        _create_views(connection)
    return registered


def _create_views(connection: Connection) -> None:
    """Show the requests of all assets as one relation, the row key as a JSON array; and costs."""
    shown = [name for name in _REQUEST_COLUMNS if name != "_fingerprint"]
    ours = ", ".join(f"{name} AS {name[1:]}" for name in shown)
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
    connection.execute(f"CREATE OR REPLACE VIEW claude_batch.spending AS {SPENDING}")


def refuse_taken_tables(connection: Connection, asset: str, tables: Sequence[TableName]) -> None:
    """Check that no other asset writes these tables.

    Raises:
        TableTakenError: One does.
    """
    names = dict(zip(_identities(connection, tables), tables, strict=True))
    taken = rows(
        connection,
        "SELECT asset, list_intersect(tables, $tables::VARCHAR[])[1] FROM claude_batch.assets "
        "WHERE asset <> $asset AND list_has_any(tables, $tables::VARCHAR[])",
        {"asset": asset, "tables": list(names)},
    )
    for owner, name in taken:
        raise TableTakenError(asset, str(names[name]), owner=owner)


def note_tables(
    connection: Connection, registered: LedgerAsset, tables: Sequence[TableName]
) -> None:
    """Write down which tables an asset writes; those that it wrote before are free again."""
    connection.execute(
        "UPDATE claude_batch.assets SET tables = $tables::VARCHAR[] WHERE asset_id = $asset_id "
        "AND tables IS DISTINCT FROM $tables::VARCHAR[]",
        {"asset_id": registered.asset_id, "tables": _identities(connection, tables)},
    )


def _identities(connection: Connection, tables: Sequence[TableName]) -> list[str]:
    """One name for each table, whatever its case; the ledger's own database is left out."""
    (here,) = row(connection, "SELECT current_database()")
    return [
        replace(table, database=None).sql.casefold()
        if table.database is None or table.database.casefold() == str(here).casefold()
        else table.sql.casefold()
        for table in tables
    ]


def claim_chunks(connection: Connection, registered: LedgerAsset, count: int) -> range:
    """Take running numbers for new chunks; with count 0, only serialize the planning.

    Two transactions that plan for one asset change the same row, so one of them fails and runs
    again, on what the other one planned. A number is wasted for that: DuckDB takes an UPDATE that
    changes nothing for none.
    """
    taken = max(count, 1)
    (last,) = row(
        connection,
        "UPDATE claude_batch.assets SET chunks = chunks + $taken "
        "WHERE asset_id = $asset_id RETURNING chunks",
        {"taken": taken, "asset_id": registered.asset_id},
    )
    first = registered.asset_id * _CHUNKS_PER_ASSET + int(last) - taken
    return range(first, first + count)


_MATERIALIZATION: Final = (
    "materialization_id, partitions, state, config, model_max_tokens, started_at, halted_because, "
    "awaits, pilot, capped, left_partitions, left_rows"
)


def _materialization(values: tuple[Any, ...]) -> Materialization:
    identity, partitions, state, config, model_limit, started_at, halted, awaits, *ended = values
    pilot, capped, left_partitions, left_rows = ended
    left = zip(left_partitions or ([None] if left_rows else []), left_rows or (), strict=True)
    return Materialization(
        identity,
        tuple(partitions) or (None,),
        state,
        MaterializationConfig(**json.loads(config)),
        model_limit,
        started_at,
        halted,
        tuple(awaits or ()),
        pilot,
        capped,
        dict(left),
    )


def materializations(
    connection: Connection, asset: str, where: str, parameters: Mapping[str, Any] | None = None
) -> list[Materialization]:
    """Those of an asset's materializations of which a condition holds, oldest first."""
    found = rows(
        connection,
        f"SELECT {_MATERIALIZATION} FROM claude_batch.materializations "
        f"WHERE asset = $asset AND {where} ORDER BY started_at",
        {"asset": asset, **(parameters or {})},
    )
    return [_materialization(values) for values in found]


def open_materializations(connection: Connection, asset: str) -> list[Materialization]:
    """All materializations of an asset that are not at their end, oldest first."""
    return materializations(connection, asset, "state = 'open'")


def asked_partitions(connection: Connection, asset: str) -> set[str | None]:
    """Partitions all of whose rows a materialization has asked, to its end; None if it has none."""
    found = rows(
        connection,
        "SELECT DISTINCT partition FROM (SELECT unnest(CASE WHEN len(partitions) = 0 THEN [NULL] "
        "ELSE partitions END) AS partition, capped, left_partitions "
        "FROM claude_batch.materializations WHERE asset = $asset AND state = 'done' "
        "AND (config::JSON->>'limit') IS NULL AND pilot IS NULL) "
        "WHERE capped IS NULL OR NOT coalesce(list_contains(left_partitions, partition), true)",
        {"asset": asset},
    )
    return {partition for (partition,) in found}


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
        "INSERT INTO claude_batch.materializations (materialization_id, asset, partitions, state, "
        "config, started_at) VALUES ($materialization_id, $asset, $partitions::VARCHAR[], 'open', "
        "$config, $now)",
        {
            "materialization_id": opened.materialization_id,
            "asset": asset,
            "partitions": [key for key in partitions if key is not None],
            "config": json.dumps(config.__dict__),
            "now": now,
        },
    )
    return opened


def awaited_by_others(
    connection: Connection, asset: str, materialization_ids: Sequence[str]
) -> frozenset[int]:
    """Ids of the chunks that open materializations besides these wait for."""
    found = rows(
        connection,
        "SELECT DISTINCT unnest(awaits) FROM claude_batch.materializations WHERE asset = $asset "
        "AND state = 'open' AND NOT list_contains($ids::VARCHAR[], materialization_id)",
        {"asset": asset, "ids": list(materialization_ids)},
    )
    return frozenset(int(chunk_id) for (chunk_id,) in found)


def note_pilot(connection: Connection, materialization_id: str, said: str) -> None:
    """Keep why nothing but a pilot was sent."""
    connection.execute(
        "UPDATE claude_batch.materializations SET pilot = $said "
        "WHERE materialization_id = $materialization_id",
        {"said": said, "materialization_id": materialization_id},
    )


def note_capped(
    connection: Connection,
    materialization_id: str,
    said: str,
    left: Mapping[str | None, int],
) -> None:
    """Keep which cap has kept how many rows, by partition, from being sent."""
    connection.execute(
        "UPDATE claude_batch.materializations SET capped = $said, "
        "left_partitions = $partitions::VARCHAR[], left_rows = $rows::BIGINT[] "
        "WHERE materialization_id = $materialization_id",
        {
            "said": said,
            "partitions": [key for key in left if key is not None],
            "rows": list(left.values()),
            "materialization_id": materialization_id,
        },
    )


def note_awaited(
    connection: Connection, materialization: Materialization, chunk_ids: Sequence[int]
) -> Materialization:
    """Keep which chunks others had out when a materialization began."""
    connection.execute(
        "UPDATE claude_batch.materializations SET awaits = $chunk_ids::BIGINT[] "
        "WHERE materialization_id = $materialization_id",
        {
            "chunk_ids": list(chunk_ids),
            "materialization_id": materialization.materialization_id,
        },
    )
    return replace(materialization, awaits=tuple(chunk_ids))


def unlanded_materializations(connection: Connection, asset: str) -> list[Materialization]:
    """Materializations in any state that have something out, oldest first."""
    is_out = (
        "materialization_id IN (SELECT materialization_id FROM claude_batch.chunks "
        "WHERE state IN ('sending', 'submitted'))"
    )
    return materializations(connection, asset, is_out)


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


def note_model_limit(
    connection: Connection, materialization_id: str, max_tokens: int | None
) -> None:
    """Keep the model's own limit of `max_tokens`, which bounds how far attempts may grow.

    None forgets it, so that the model is checked again.
    """
    connection.execute(
        "UPDATE claude_batch.materializations SET model_max_tokens = $max_tokens "
        "WHERE materialization_id = $materialization_id",
        {"max_tokens": max_tokens, "materialization_id": materialization_id},
    )


def note_halt(connection: Connection, materialization_id: str, reason: str | None) -> None:
    """Keep why the account was halted, or with None forget it, for somebody tries again."""
    connection.execute(
        "UPDATE claude_batch.materializations SET halted_because = $reason "
        "WHERE materialization_id = $materialization_id "
        "AND halted_because IS DISTINCT FROM $reason",
        {"reason": reason, "materialization_id": materialization_id},
    )
