"""A small code location, for Dagsters that differ in their settings; its files are in ``E2E_HOME``.

As a program it materializes an asset in its own process: ``materialize ASSET``, without any
instance, or ``execute_in_process ASSET``, in that of ``DAGSTER_HOME``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_duckdb import DuckDBResource
from e2e_warm import start_runs_warm

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    build_claude_batch_sensor,
)

start_runs_warm()

HOME = Path(os.environ["E2E_HOME"])


def asked(name: str, **declared: Any) -> dg.AssetsDefinition:
    return build_claude_batch_asset(
        name,
        source=f"{name}_source",
        row_key="review_id",
        prompt="{{ review }}",
        partitions_def=dg.StaticPartitionsDefinition(["amsterdam", "berlin", "copenhagen"]),
        partition_expr="city",
        **declared,
    )


def claude(directory: str) -> LocalClaudeBatchResource:
    """A workspace of the API, whose batches end when a test says so."""
    return LocalClaudeBatchResource(
        path=str(HOME / directory), processing_seconds=[7200, 7200], poll_interval_seconds=1
    )


@dg.asset(pool="warehouse")
def ordinary() -> None: ...


ALONE = {
    name: asked(name)
    for name in ("in_the_run", "by_command", "materialized", "executed_in_process")
}
RESOURCES = {
    "duckdb": DuckDBResource(database=str(HOME / "warehouse.duckdb")),
    "claude_batch": claude("simulator"),
}

defs = dg.Definitions(
    assets=[ordinary, asked("in_a_pool", pool="warehouse"), *ALONE.values()],
    sensors=[build_claude_batch_sensor("claude_batch_sensor", minimum_interval_seconds=1)],
    resources=RESOURCES,
    executor=dg.in_process_executor,
)


def main(how: str, asset: str) -> None:
    """Materialize the asset's partition ``berlin``.

    Raises:
        ValueError: ``how`` is neither of the two.
    """
    match how:
        case "materialize":
            dg.materialize([ALONE[asset]], partition_key="berlin", resources=RESOURCES)
        case "execute_in_process":
            job = defs.resolve_implicit_global_asset_job_def()
            with dg.DagsterInstance.get() as instance:
                job.execute_in_process(
                    instance=instance,
                    partition_key="berlin",
                    asset_selection=[dg.AssetKey(asset)],
                )
        case _:
            raise ValueError(how)


if __name__ == "__main__":
    main(*sys.argv[1:])
