"""The job that lands what no run waits for any more, and cancels what was abandoned."""

from functools import partial
from typing import Final

import dagster as dg
from pydantic import Field

from dagster_claude_batch import held_run
from dagster_claude_batch.batch_asset import BatchAsset, batch_assets_of, engine_of_job
from dagster_claude_batch.deleting import delete_as_declared
from dagster_claude_batch.ours import Ours

LEFT_TAG: Final = ".dagster/claude_batch.left"
"""On a landing run that has ended: how many batches are still out."""


class LandingConfig(dg.Config):
    """What the sensor has found out."""

    ended_runs: list[str] = Field(
        default=[],
        description="Runs that were cancelled or deleted, or failed, before their batches had been "
        "collected. What cancelled and deleted ones wait for is cancelled too.",
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
        ours = Ours.of_run(context.run, claude_resource)
        left, is_watching, problems = 0, False, dict[str, Exception]()
        for asset in batch_assets_of(context.repository_def):
            if asset.claude_resource != claude_resource:
                continue
            try:
                out, watching = _settle(context, asset, config.ended_runs)
            except Exception as error:  # noqa: BLE001  # one asset's trouble keeps nobody else's answers
                problems[asset.declaration.asset] = error
                out, watching = 1, True
            left, is_watching = left + out, is_watching or watching
        for run_id in config.ended_runs if not problems else ():
            if context.instance.has_run(run_id):
                held_run.mark(context.instance, run_id, held_run.SETTLED, "ended without results")
        if is_watching:
            context.instance.add_run_tags(context.run_id, ours.tags(held_run.GAVE_UP_TAG))
        else:
            ours.stop_watching(context.instance)
        context.instance.add_run_tags(context.run_id, {LEFT_TAG: str(left)})
        context.log.info(f"{left:,} batches are still out.")
        for troubled, problem in problems.items():
            context.log.error(f"Asset {troubled!r}: {problem}")
        if problems:
            raise next(iter(problems.values()))

    graph = dg.GraphDefinition(name=name, node_defs=[land])
    return graph.to_job(  # pyright: ignore[reportUnknownMemberType]  # open in Dagster's own types
        description="Lands the answers of batches whose runs were cancelled. Started by the "
        "sensor; safe to start by hand.",
        executor_def=dg.in_process_executor,
    )


def _settle(
    context: dg.OpExecutionContext, asset: BatchAsset, ended_runs: list[str]
) -> tuple[int, bool]:
    """Settle one asset: how many batches are left, and whether second copies may still appear."""
    abandoned = [run_id for run_id in ended_runs if _was_given_up(context.instance, run_id)]
    with engine_of_job(context, asset) as engine:
        alive = partial(held_run.is_alive, context.instance)
        left = engine.settle(abandoned, is_alive=alive)
        delete_as_declared(engine, is_alive=alive)
        return left, engine.is_watching()


def _was_given_up(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether somebody cancelled or deleted a run; one that failed is only collected for."""
    run = instance.get_run_by_id(run_id)
    return run is None or run.status == dg.DagsterRunStatus.CANCELED
