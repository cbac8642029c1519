"""A declared asset among Dagster's definitions, and the engine that works on it."""

import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import dagster as dg

from dagster_claude_batch import partitions
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.connecting import warehouse_of
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.launches import RunIdentity
from dagster_claude_batch.resource import ClaudeBatchResource


@dataclass(frozen=True)
class BatchAsset:
    """A declared asset, and the names of the resources it works with.

    ``key`` is the declared one, or that of a code location, which may have renamed the asset: what
    the ledger calls it is in the ``declaration``, and stays.
    """

    key: dg.AssetKey
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


def batch_asset(
    assets_def: dg.AssetsDefinition | dg.AssetSpec | dg.SourceAsset,
) -> BatchAsset | None:
    """What was declared for an asset; None for an asset of another kind."""
    if not isinstance(assets_def, dg.AssetsDefinition) or not assets_def.is_executable:
        return None
    return _BATCH_ASSETS.get(assets_def.node_def)


def batch_assets_of(repository: dg.RepositoryDefinition) -> list[BatchAsset]:
    """All batch assets of a code location, with the keys and resources that they have there."""
    found: dict[int, BatchAsset] = {}
    for key, assets_def in repository.assets_defs_by_key.items():
        asset = batch_asset(assets_def)
        if asset is not None:
            bound = dict(assets_def.resource_defs)
            found[id(assets_def.node_def)] = replace(asset, key=key, bound_resources=bound)
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


@contextmanager
def engine_of_job(context: dg.OpExecutionContext, asset: BatchAsset) -> Generator[Engine]:
    """Put an asset of the code location to work in a job that is not its own."""
    with dg.build_resources(dict(asset.resource_defs()), instance=context.instance) as resources:
        yield engine_for(
            asset,
            database=getattr(resources, asset.duckdb_resource),
            claude=getattr(resources, asset.claude_resource),
            run_id=context.run_id,
            log=context.log,
        )


def register(assets_def: dg.AssetsDefinition, asset: BatchAsset) -> None:
    """Remember what was declared for an asset."""
    _BATCH_ASSETS[assets_def.node_def] = asset
