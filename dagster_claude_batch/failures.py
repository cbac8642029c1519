"""The failures table as a line of its own in the lineage, with no button of its own to press."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import dagster as dg

from dagster_claude_batch import partitions
from dagster_claude_batch.batch_asset import batch_asset
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import NoBatchAssetError
from dagster_claude_batch.metadata import failures_sql
from dagster_claude_batch.report import PartitionReport

_SUFFIX: Final = "_failures"


def build_claude_batch_failures_spec(
    asset: dg.AssetsDefinition | dg.AssetSpec | dg.SourceAsset,
) -> dg.AssetSpec:
    """Build the failures table of a batch asset as an asset beside it, ``<asset>_failures``.

    It is for the lineage, and for what depends on failures: nobody materializes it by itself, for
    each run of ``asset`` reports it too, also one that fails. Put it into the `assets` of your
    definitions: `dagster.load_assets_from_modules` takes it along only with ``include_specs=True``.
    Dagster's DuckDB IO managers can read it if ``table`` is not another name.

    Args:
        asset: What `build_claude_batch_asset` has returned; if you load it with a ``key_prefix``,
            what has that prefix.

    Raises:
        NoBatchAssetError: It is an asset of another kind.
    """
    found = batch_asset(asset)
    if found is None or not isinstance(asset, dg.AssetsDefinition):
        keys = asset.keys if isinstance(asset, dg.AssetsDefinition) else [asset.key]
        raise NoBatchAssetError([key.to_user_string() for key in keys])
    (spec,) = asset.specs
    table = found.declaration.failures
    metadata: dict[str, Any] = {"schema": table.schema, "dagster/table_name": str(table)}
    expression = partitions.partition_expr_of_answers(found.partitions_def)
    if expression is not None:
        metadata["partition_expr"] = expression
    return dg.AssetSpec(
        failures_key(spec.key),
        deps=[spec.key],
        description=f"Rows of {found.declaration.source_label} to which "
        f"{spec.key.to_user_string()} has no answer, and why. Each of its runs writes them.",
        metadata=metadata,
        group_name=spec.group_name,
        owners=spec.owners,
        kinds={"duckdb"},
        partitions_def=found.partitions_def,
    )


def failures_key(key: dg.AssetKey) -> dg.AssetKey:
    """The key of the failures beside that of the answers."""
    return dg.AssetKey([*key.path[:-1], f"{key.path[-1]}{_SUFFIX}"])


def reported(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    declaration: Declaration,
    reports: Sequence[PartitionReport],
) -> Iterator[dg.AssetMaterialization]:
    """What a run says of the failures of its partitions, if its code location has them as an asset.

    ``key`` is that of the answers, as the code location knows it.
    """
    if not _is_in_lineage(context, failures_key(key)):
        return
    for report in reports:
        counted = "row_count" if report.partition is None else "partition_row_count"
        yield dg.AssetMaterialization(
            failures_key(key),
            partition=report.partition,
            metadata={
                f"dagster/{counted}": report.failed,
                "failure_rate": report.failure_rate,
                "failures_sql": failures_sql(declaration, [report]),
                **{f"failed/{kind}": count for kind, count in report.failed_by_type.items()},
            },
        )


def _is_in_lineage(context: dg.AssetExecutionContext, key: dg.AssetKey) -> bool:
    """Whether the code location has an asset with this key that nobody else materializes."""
    # Not the repository's graph: `dg.materialize` has none. The job's own has only what it runs.
    graph = context.job_def.asset_layer.asset_graph.source_asset_graph
    return graph.has(key) and not graph.get(key).is_executable
