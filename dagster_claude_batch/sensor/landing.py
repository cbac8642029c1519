"""When the landing job runs: some time after the last run that waited for a batch has ended."""

from datetime import timedelta
from typing import Final

import dagster as dg

from dagster_claude_batch import held_run
from dagster_claude_batch.doubt import UNSEEN
from dagster_claude_batch.landing_job import LEFT_TAG, op_name_of
from dagster_claude_batch.sensor.scene import Scene

DAY: Final = timedelta(days=1)


def requests(scene: Scene) -> list[dg.RunRequest]:
    """Ask for a run that lands what nobody waits for, and cancels what was given up."""
    now = scene.real_now().timestamp()
    if _is_landing(scene):
        return []
    ripe = [
        run_id
        for run_id, since in scene.cursor.ended.items()
        if now - since > scene.grace.total_seconds()
    ]
    if _is_daily_landing_due(scene, now):
        scene.cursor.land_at = now
    if scene.cursor.land_at is None and scene.ours.watchers(scene.instance):
        scene.cursor.land_at = now + UNSEEN.total_seconds()
    if not ripe and (scene.cursor.land_at is None or now < scene.cursor.land_at):
        return []
    scene.cursor.ended = {
        run_id: since for run_id, since in scene.cursor.ended.items() if run_id not in ripe
    }
    scene.cursor.land_at = None
    scene.cursor.landed_at = now
    scene.cursor.landing_for = ripe
    scene.cursor.landing = f"{scene.landing_job}:{now:.3f}"
    config = {"ended_runs": ripe}
    return [
        dg.RunRequest(
            run_key=scene.cursor.landing,
            run_config={"ops": {op_name_of(scene.landing_job): {"config": config}}},
        )
    ]


def _is_daily_landing_due(scene: Scene, now: float) -> bool:
    """Whether it is time to look for what only the ledger knows of, where it may know of anything.

    A cursor that was lost has forgotten held runs that were deleted.
    """
    last = scene.cursor.landed_at
    if last is not None and now - last < DAY.total_seconds():
        return False
    states = [held_run.WAITING, held_run.RELEASED, held_run.IN_RUN, held_run.SETTLED]
    tags = {**scene.ours.located(), held_run.STATE_TAG: states}
    if scene.instance.get_runs(dg.RunsFilter(tags=tags), limit=1):
        return True
    scene.cursor.landed_at = now  # nothing has ever been held here
    return False


def _is_landing(scene: Scene) -> bool:
    """Whether a landing run that was asked for is still at work; note what it left."""
    if scene.cursor.landing is None:
        return False
    tags = {"dagster/run_key": scene.cursor.landing}
    runs = scene.instance.get_runs(dg.RunsFilter(tags=tags), limit=1)
    if runs and not runs[0].is_finished:
        return True
    left = int(runs[0].tags.get(LEFT_TAG, "1")) if runs else 1
    if not runs or runs[0].status != dg.DagsterRunStatus.SUCCESS:
        # What it was told of is told again, one grace later.
        again = dict.fromkeys(scene.cursor.landing_for, scene.real_now().timestamp())
        scene.cursor.ended = {**again, **scene.cursor.ended}
    scene.cursor.landing, scene.cursor.landing_for = None, []
    if left:
        pause = timedelta(seconds=2 * scene.claude.poll_interval_seconds)
        scene.cursor.land_at = (scene.real_now() + pause).timestamp()
    return False
