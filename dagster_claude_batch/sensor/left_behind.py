"""Runs that ended while something was out: brought back, or noted for the landing job."""

from collections.abc import Mapping, Sequence
from typing import Final

import dagster as dg

from dagster_claude_batch import held_run, holding, reserve
from dagster_claude_batch.batch_asset import batch_asset_keys
from dagster_claude_batch.dagster_internals import AUTO_RETRY_TAG, WILL_RETRY_TAG
from dagster_claude_batch.sensor.scene import Scene

RETRIES_PER_TICK: Final = 20


def bring_back(scene: Scene) -> None:
    """Make another run for each that died while it collected, or never began to.

    One that fails by itself makes its successor itself. Where one after the other has failed, or
    one cannot be made, the landing job lands what they have left.
    """
    tags = {**scene.ours.tags(), held_run.STATE_TAG: held_run.RELEASED}
    failed = dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.FAILURE])
    for run in scene.instance.get_runs(failed, limit=RETRIES_PER_TICK):
        if scene.is_late():
            return
        with scene.boundary(f"Run {run.run_id[:8]} was not brought back"):
            _bring_back(scene, run)


def _bring_back(scene: Scene, run: dg.DagsterRun) -> None:
    held_id = holding.successor_id(scene.instance, run)
    if scene.instance.has_run(held_id) or _is_brought_back(scene, run):
        said = f"again by run {held_id[:8]}"
        held_run.mark(scene.instance, run.run_id, held_run.SETTLED, said)


def _is_brought_back(scene: Scene, run: dg.DagsterRun) -> bool:
    repository = scene.context.repository_def
    if repository is None or run.tags.get(WILL_RETRY_TAG) == "true":
        return False
    batch_assets = (run.asset_selection or frozenset()) & batch_asset_keys(repository)
    if not batch_assets:
        return False  # they are not declared any more
    try:
        held_id = holding.make(
            scene.instance,
            run,
            asset_graph=repository.asset_graph,
            batch_assets=batch_assets,
            claude_resource=scene.claude_resource,
            has_failed=True,
        )
    except RuntimeError:
        return False
    held_run.say_again(scene.instance, held_id, run, scene.poll_interval)
    return True


def drop_reserves(scene: Scene, reserves: Sequence[dg.DagsterRun]) -> None:
    """Delete the runs in reserve for runs that have ended, unless these are to be brought back."""
    makers = scene.runs(held_run.read(run).maker_run_id for run in reserves)
    for run in reserves:
        maker_id = held_run.read(run).maker_run_id
        maker = makers.get(maker_id)
        if maker is None or (maker.is_finished and not _may_come_back(maker)):
            with scene.boundary(f"Run {run.run_id[:8]} was not deleted"):
                reserve.drop(scene.instance, maker_id)


def _may_come_back(run: dg.DagsterRun) -> bool:
    """Whether nobody has gone on yet with a run that failed."""
    is_left = run.tags.get(held_run.STATE_TAG) == held_run.RELEASED
    is_retried = AUTO_RETRY_TAG in run.tags
    is_given_up = holding.fruitless_runs(run, has_failed=True) > holding.MOST_FRUITLESS
    is_failed = run.status == dg.DagsterRunStatus.FAILURE
    return is_failed and is_left and not is_retried and not is_given_up


def notice_ended(scene: Scene, runs: Mapping[str, dg.DagsterRun]) -> None:
    """Note runs that ended, or were deleted, before their batches had been collected.

    The landing job marks them as settled.
    """
    gone = {run_id for run_id in scene.cursor.held if run_id not in runs}
    found = scene.runs(gone)
    # In the place of one that was narrowed there is another.
    gone -= {run_id for run_id in gone - set(found) if _has_heir(scene, run_id)}
    at_work = {run_id for run_id, run in found.items() if not run.is_finished}
    deleted = gone.difference(found)
    is_landing = scene.cursor.landing is not None
    scene.cursor.held = sorted({*runs, *at_work, *(deleted if is_landing else ())})
    if is_landing:
        return
    now = scene.real_now().timestamp()
    for run_id in [*deleted, *_ended_with_something_out(scene)]:
        scene.cursor.ended.setdefault(run_id, now)


def _has_heir(scene: Scene, run_id: str) -> bool:
    return scene.instance.has_run(holding.held_run_id(run_id))


def _ended_with_something_out(scene: Scene) -> list[str]:
    statuses = [dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE]
    states = [held_run.WAITING, held_run.RELEASED, held_run.IN_RUN]
    ended: list[str] = []
    for tag in (held_run.HELD_TAG, held_run.WAITER_TAG):
        tags = {**scene.ours.tags(tag), held_run.STATE_TAG: states}
        found = scene.instance.get_runs(dg.RunsFilter(tags=tags, statuses=statuses))
        ended += [run.run_id for run in found]
    return ended
