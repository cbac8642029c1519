"""The limits of held runs' pools, which go when their runs do."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import dagster as dg

from dagster_claude_batch import held_run
from dagster_claude_batch.sensor.scene import QUEUED, Scene

OLD_POOL: Final = timedelta(minutes=10)
"""A pool limit comes before its run: only one that stays without a run was left behind."""


def sweep(scene: Scene, runs: Iterable[dg.DagsterRun]) -> list[dg.DagsterRun]:
    """Delete pool limits that belong to no held run any more, once they are surely old.

    Returned are others' runs that are held, as far as they had to be looked for.
    """
    if not scene.instance.event_log_storage.supports_global_concurrency_limits:
        return []
    limits = scene.instance.event_log_storage.get_pool_limits()
    ours = {each.name for each in limits if each.name.startswith(held_run.POOL_PREFIX)}
    used = {held_run.read(run).pool for run in runs}
    now = scene.real_now().timestamp()
    seen = {pool: scene.cursor.pools.get(pool, now) for pool in ours - used}
    old = [pool for pool, since in seen.items() if now - since > OLD_POOL.total_seconds()]
    others = _others_held(scene) if old else []
    if old and not others:
        for pool in old:
            held_run.forget_pool(scene.instance, pool)
            del seen[pool]
    scene.cursor.pools = seen
    return others


def _others_held(scene: Scene) -> list[dg.DagsterRun]:
    """The runs of other code locations or resources in held pools of their own."""
    runs = scene.instance.get_runs(dg.RunsFilter(statuses=list(QUEUED)))
    held = [run for run in runs if held_run.HELD_TAG in run.tags and not held_run.is_copy(run)]
    return [run for run in held if not scene.ours.include(run)]
