"""Runs in reserve: each keeps a backfill open while one of its runs collects, and never begins.

A backfill ends when none of its runs is left, and the sensor brings a run back that was killed
only at its next tick. A run in reserve names no asset in its plan: what a run plans outlives it in
part, for of a deleted run Dagster keeps the checks that it intended to execute, as the newest ones.
"""

import uuid
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_claude_batch import held_run, holding

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph


def reserve_id(run_id: str) -> str:
    """The id of the one run in reserve for a run."""
    return str(uuid.uuid5(uuid.UUID(run_id), "run in reserve of dagster_claude_batch"))


def make(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    key: dg.AssetKey,
    *,
    asset_graph: "BaseAssetGraph[Any]",
    claude_resource: str,
) -> None:
    """Create and enqueue the run in reserve for a run that collects an asset; once.

    Raises:
        RuntimeError: Dagster would not hold it. There is none then.
    """
    made_id = reserve_id(run.run_id)
    if instance.has_run(made_id):
        return
    pool = held_run.pool_of(made_id)
    tags = {
        **holding.copied_tags(run, claude_resource, pool),
        held_run.STATE_TAG: held_run.IN_RESERVE,
        held_run.SHORT_TAG: "in reserve",
        held_run.LONG_TAG: "This run never begins. It keeps the backfill open while run "
        f"{run.run_id[:8]} collects, and is deleted when that has ended.",
    }
    made = holding.create_held(
        instance, run, made_id, tags, frozenset({key}), asset_graph, is_silent=True
    )
    if made is not None:
        holding.enqueue(instance, made)


def drop(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete the run in reserve for a run, if there is one: it is not needed any more."""
    made_id = reserve_id(run_id)
    made = instance.get_run_by_id(made_id)
    is_cancelled = made is not None and made.status == dg.DagsterRunStatus.CANCELED
    if is_cancelled or holding.has_not_begun(made):
        instance.delete_run(made_id)
        held_run.forget_pool(instance, held_run.pool_of(made_id))
