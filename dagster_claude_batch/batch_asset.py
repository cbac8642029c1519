"""A declared asset among Dagster's definitions, and the engine that works on it."""

import re
import weakref
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource

from dagster_claude_batch import partitions
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.duckdb_errors import without_credentials
from dagster_claude_batch.launches import RunIdentity
from dagster_claude_batch.resource import ClaudeBatchResource
from dagster_claude_batch.warehouse import Connection, Warehouse


@dataclass(frozen=True)
class BatchAsset:
    """A declared asset, and the names of the resources it works with."""

    declaration: Declaration
    partitions_def: dg.PartitionsDefinition | None
    duckdb_resource: str
    claude_resource: str
    wait: Literal["sensor", "run"]
    bound_resources: Mapping[str, dg.ResourceDefinition] = field(
        default_factory=dict[str, dg.ResourceDefinition]
    )

    def resource_defs(self) -> Mapping[str, dg.ResourceDefinition]:
        """The resources as the code location binds them."""
        names = (self.duckdb_resource, self.claude_resource)
        return {name: self.bound_resources[name] for name in names}


_BATCH_ASSETS: Final["weakref.WeakKeyDictionary[object, BatchAsset]"] = weakref.WeakKeyDictionary()
"""By op definition, which stays the same however often Dagster copies the asset around it."""


def batch_asset(assets_def: dg.AssetsDefinition) -> BatchAsset | None:
    """What was declared for an asset; None for an asset of another kind."""
    if not assets_def.is_executable:
        return None
    return _BATCH_ASSETS.get(assets_def.node_def)


def batch_assets_of(repository: dg.RepositoryDefinition) -> list[BatchAsset]:
    """All batch assets of a code location, with their resources."""
    found: dict[int, BatchAsset] = {}
    for assets_def in repository.assets_defs_by_key.values():
        asset = batch_asset(assets_def)
        if asset is not None:
            bound = dict(assets_def.resource_defs)
            found[id(assets_def.node_def)] = replace(asset, bound_resources=bound)
    return list(found.values())


def batch_asset_keys(repository: dg.RepositoryDefinition) -> frozenset[dg.AssetKey]:
    """The keys of all batch assets of a code location."""
    definitions = repository.assets_defs_by_key.items()
    return frozenset(key for key, assets_def in definitions if batch_asset(assets_def) is not None)


def batch_assets_of_run(context: dg.AssetExecutionContext) -> dict[dg.AssetKey, BatchAsset]:
    """The batch assets of the run."""
    # Not the repository's: `dg.materialize` has none.
    graph = context.job_def.asset_layer.asset_graph
    in_run = graph.executable_asset_keys
    found = {key: batch_asset(graph.get(key).assets_def) for key in in_run}
    return {key: asset for key, asset in found.items() if asset is not None}


def engine_for(
    asset: BatchAsset,
    *,
    database: object,
    claude: ClaudeBatchResource,
    run_id: str,
    retry_of: str | None = None,
    collects_for: str | None = None,
    log: Any,  # noqa: ANN401  # Dagster's log manager is no logging.Logger to a type checker
) -> Engine:
    """Put a declaration to work with the resources of a run.

    ``collects_for``: see `RunIdentity`; such a run never makes a new database.
    """
    return Engine(
        asset.declaration,
        replace(
            warehouse_of(database, log=log),
            has_ledger=collects_for is not None,
            lock_timeout_seconds=claude.lock_timeout_seconds,
        ),
        claude,
        RunIdentity(run_id, retry_of, collects_for),
        lambda keys: partitions.slices(asset.partitions_def, keys),
        log=log,
    )


def warehouse_of(database: object, *, log: Any) -> Warehouse:  # noqa: ANN401  # Dagster's log manager, see `engine_for`
    """The database that a resource opens."""
    return Warehouse(
        lambda: open_connection(database),
        name=_name_of(database),
        file=_file_of(database),
        log=log,
    )


def _name_of(resource: object) -> str:
    """What to call a resource's database; an address may carry a token."""
    database = getattr(resource, "database", None)
    return without_credentials(database) if isinstance(database, str) else "of the run"


def _file_of(resource: object) -> Path | None:
    """The database's file; None for one that is in memory or has an address (``md:…``)."""
    if not isinstance(resource, DuckDBResource):
        return None
    has_address = re.match(r"[a-z0-9_]{2,}:|:memory:|$", resource.database, re.IGNORECASE)
    return None if has_address else Path(resource.database)


def open_connection(resource: Any) -> AbstractContextManager[Connection]:  # noqa: ANN401  # any resource that opens DuckDB
    """Open what a resource yields: `get_connection()`, or `duckdb_connect()` of dagster-ducklake.

    Raises:
        TypeError: The resource has neither.
    """
    if isinstance(resource, DuckDBResource) and _is_plain(resource):
        return _connect(resource)
    for name in ("get_connection", "duckdb_connect"):
        opener = getattr(resource, name, None)
        if opener is not None:
            return opener()
    raise TypeError(
        f"The DuckDB resource is a {type(resource)!r}, which has neither get_connection() "
        "nor duckdb_connect(). Use dagster_duckdb.DuckDBResource."
    )


def _is_plain(resource: DuckDBResource) -> bool:
    """Whether a resource connects as Dagster's own does."""
    return type(resource).get_connection is DuckDBResource.get_connection


@contextmanager
def _connect(resource: DuckDBResource) -> Generator[Connection]:
    """Connect as the resource would, but once, and in UTC.

    Its own retries double their pauses for 102 s, and so notice a lock's end far too late. A
    prompt says an aware time in the connection's zone, by default the machine's: on another
    machine it would be another question.
    """
    config = {"custom_user_agent": "dagster", **resource.connection_config}
    with closing(duckdb.connect(resource.database, read_only=False, config=config)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def register(assets_def: dg.AssetsDefinition, asset: BatchAsset) -> None:
    """Remember what was declared for an asset."""
    _BATCH_ASSETS[assets_def.node_def] = asset
