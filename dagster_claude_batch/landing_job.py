"""The job that lands what no run waits for any more, and cancels what was abandoned."""

from collections.abc import Callable
from typing import Final

import dagster as dg
from pydantic import Field

from dagster_claude_batch.batch_asset import BatchAsset, batch_assets_of, engine_for

LEFT_TAG: Final = ".dagster/claude_batch.left"
"""On a landing run that has ended: how many batches are still out."""


class LandingConfig(dg.Config):
    """What the sensor has found out."""

    abandoned_runs: list[str] = Field(
        default=[], description="Held runs that were cancelled or deleted while they waited."
    )


def op_name_of(job_name: str) -> str:
    """The op of a landing job: its name must be unique in the code location, as the job's."""
    return f"{job_name}_op"


def build_landing_job(name: str, *, claude_resource: str) -> dg.JobDefinition:
    """Build the landing job for all assets of a code location that use this Claude resource."""

    @dg.op(
        name=op_name_of(name),
        description="Lands answers that were paid for and that no run waits for.",
    )
    def land(context: dg.OpExecutionContext, config: LandingConfig) -> None:
        left = 0
        for asset in batch_assets_of(context.repository_def):
            if asset.claude_resource == claude_resource:
                left += _settle(context, asset, config)
        context.instance.add_run_tags(context.run_id, {LEFT_TAG: str(left)})
        context.log.info(f"{left:,} batches are still out.")

    graph = dg.GraphDefinition(name=name, node_defs=[land])
    return graph.to_job(  # pyright: ignore[reportUnknownMemberType]  # open in Dagster's own types
        description="Lands the answers of batches whose runs were cancelled. Started by the "
        "sensor; safe to start by hand.",
        executor_def=dg.in_process_executor,
    )


def _settle(context: dg.OpExecutionContext, asset: BatchAsset, config: LandingConfig) -> int:
    with dg.build_resources(dict(asset.resource_defs()), instance=context.instance) as resources:
        engine = engine_for(
            asset,
            database=getattr(resources, asset.duckdb_resource),
            claude=getattr(resources, asset.claude_resource),
            run_id=context.run_id,
            log=context.log,
        )
        return engine.settle(config.abandoned_runs, is_alive=_is_alive(context.instance))


def _is_alive(instance: dg.DagsterInstance) -> Callable[[str], bool]:
    def is_alive(run_id: str) -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and not run.is_finished

    return is_alive
