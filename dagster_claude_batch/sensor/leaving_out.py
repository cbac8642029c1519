"""What a held run must not materialize: assets that depend on one that failed before it."""

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg

from dagster_claude_batch import held_run, holding
from dagster_claude_batch.sensor.scene import Scene


def leave_out(
    scene: Scene, run: dg.DagsterRun, maker: dg.DagsterRun
) -> tuple[dg.DagsterRun, list[str]]:
    """Leave out of a held run what Dagster would have skipped; the run to let go, and what to say.

    An asset that depends on the one that waits, and on another one that failed in the run that
    made this one, would else be materialized from what the other one was before.
    """
    repository, selection = scene.context.repository_def, run.asset_selection or frozenset()
    is_all = maker.asset_selection is not None and maker.asset_selection <= selection
    if repository is None or is_all:
        return run, []
    planned = holding.planned_in(scene.instance, maker).asset_selection
    made = held_run.materialized_in(scene.instance, maker.run_id)
    failed = planned - selection - made
    waits = {key for key in selection if _waits(run, key)}
    stale = _downstream(repository.asset_graph, failed, selection - (waits or selection))
    if not stale:
        return run, []
    narrowed = holding.narrow(
        scene.instance, run, frozenset(selection - stale), repository.asset_graph
    )
    said = f"Not materialized: {_names(stale)}, for in run {maker.run_id[:8]} was not: "
    said += f"{_names(failed)}."
    scene.instance.report_engine_event(said, narrowed)
    return narrowed, [said]


def _waits(run: dg.DagsterRun, key: dg.AssetKey) -> bool:
    """Whether it is for this asset that the run waits."""
    waiting = held_run.name_of(key) in held_run.read(run).assets
    return waiting or held_run.attached_tag(key) in run.tags


def _downstream(
    graph: Any,  # noqa: ANN401  # a BaseAssetGraph, which is not public
    failed: AbstractSet[dg.AssetKey],
    within: AbstractSet[dg.AssetKey],
) -> set[dg.AssetKey]:
    pending, found = list(failed), set[dg.AssetKey]()
    while pending:
        children = (graph.get(pending.pop()).child_keys & within) - found
        pending += children
        found |= children
    return found


def _names(keys: Collection[dg.AssetKey]) -> str:
    return ", ".join(sorted(key.to_user_string() for key in keys))
