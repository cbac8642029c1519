"""What a tick says: of its assets, and of itself in one sentence."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

import dagster as dg

from dagster_claude_batch import dagster_internals, held_run
from dagster_claude_batch.batch_asset import batch_asset_keys
from dagster_claude_batch.dagster_internals import LOCATION_TAG, PARTITION_NAME_TAG
from dagster_claude_batch.held_run import HeldRun
from dagster_claude_batch.sensor.looking import Look, next_look
from dagster_claude_batch.sensor.scene import Held, Scene

OBSERVATIONS_PER_TICK: Final = 100

PROBLEMS_SHOWN: Final = 3


def progress(scene: Scene, waiting: Sequence[Held], look: Look) -> list[dg.AssetObservation]:
    """Say how many batches have ended of those that a run waits for, at each tenth of them."""
    before, scene.cursor.progress = scene.cursor.progress, {}
    said: list[dg.AssetObservation] = []
    for held, run in waiting:
        ended = len(look.ended & held.batch_ids)
        tenths = max(10 * ended // max(1, len(held.batch_ids)), before.get(held.run_id, 0))
        if tenths:
            scene.cursor.progress[held.run_id] = tenths
        if tenths > before.get(held.run_id, 0) and len(said) < OBSERVATIONS_PER_TICK:
            said += progress_of(held, run, ended)
    return said


def progress_of(held: HeldRun, run: dg.DagsterRun, ended: int) -> list[dg.AssetObservation]:
    """How far the batches of a held run are, for each of its assets that waits."""
    return [
        dg.AssetObservation(
            key,
            partition=run.tags.get(PARTITION_NAME_TAG),
            description=f"{ended:,} of {len(held.batch_ids):,} Claude batches have ended.",
            metadata={
                "waiting_for_batches": len(held.batch_ids) - ended,
                "collecting_run": dg.MetadataValue.dagster_run(held.run_id),
            },
        )
        for key in sorted(run.asset_selection or ())
        if held_run.name_of(key) in held.assets
    ]


def summary(
    scene: Scene, left: Sequence[HeldRun], released: set[str], problems: Sequence[str]
) -> str:
    """What the sensor's page shows of a tick that asks for no run."""
    parts = list(problems[:PROBLEMS_SHOWN])
    if len(problems) > PROBLEMS_SHOWN:
        parts.append(f"And {len(problems) - PROBLEMS_SHOWN:,} more problems, in this tick's log.")
    if released:
        parts.append(f"Let {held_run.counted(len(released), 'run', 'runs')} go.")
    parts.append(describe(left, scene.now, next_look(scene, left)))
    return " ".join(parts)


def of_no_held_runs(lacking: str, runs: Collection[dg.DagsterRun]) -> str:
    """What it shows where Dagster cannot hold runs, and what to do about those that it holds."""
    said = f"{dagster_internals.lacks(lacking)}: runs wait for their batches themselves."
    if not runs:
        return said
    held = held_run.counted(len(runs), "run that is held", "runs that are held")
    pools = ", ".join(sorted(held_run.read(run).pool for run in runs)[:_POOLS_SHOWN])
    return (
        f"{said} To let the {held} in the queue go, delete in Deployment → Concurrency the "
        f"limits of their pools: {pools}{' …' if len(runs) > _POOLS_SHOWN else ''}"
    )


_POOLS_SHOWN: Final = 10


def describe(waiting: Sequence[HeldRun], now: datetime, look_at: datetime) -> str:
    """What is waited for, in one sentence."""
    if not waiting:
        return "Nothing is waiting for batches."
    batches = {batch_id for held in waiting for batch_id in held.batch_ids}
    since = [wait.since for held in waiting for wait in held.waits if wait.since]
    runs = held_run.counted(len(waiting), "run", "runs")
    partitions = held_run.counted(
        sum(held.partitions for held in waiting), "partition", "partitions"
    )
    verb = "waits" if len(waiting) == 1 else "wait"
    parts = [
        f"{runs} with {partitions} {verb} for {held_run.counted(len(batches), 'batch', 'batches')}"
    ]
    if since:
        parts.append(f"the oldest out for {_duration(now - min(since))}")
    again = [held for held in waiting if held.fruitless and not held.waits]
    if again:
        parts.append(f"{held_run.counted(len(again), 'of them tries', 'of them try')} again")
    doubtful = [held for held in waiting if any(wait.is_in_doubt for wait in held.waits)]
    if doubtful:
        looks = held_run.counted(len(doubtful), "of them looks", "of them look")
        parts.append(f"{looks} for a batch whose creation nobody saw")
    for_room = [held for held in waiting if any(wait.is_for_room for wait in held.waits)]
    if for_room:
        has = held_run.counted(len(for_room), "of them has", "of them have")
        parts.append(f"{has} no room to send yet")
    ready = [held for held in waiting if held.is_ready]
    if ready:
        waits = held_run.counted(len(ready), "of them waits", "of them wait")
        parts.append(f"{waits} for a free slot of a pool")
    if batches and look_at > now:
        parts.append(f"next look in {_duration(look_at - now)}")
    return ", ".join(parts) + "."


def _duration(length: timedelta) -> str:
    minutes, seconds = divmod(int(length.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def may_have_been_renamed(scene: Scene, elsewhere: Sequence[dg.DagsterRun]) -> str:
    """Say what else waits for assets of ours: Dagster runs it where it was launched, or not.

    Another location may define the same assets by right, so nothing is done about it.
    """
    repository = scene.context.repository_def
    if repository is None or not elsewhere:
        return ""
    ours = batch_asset_keys(repository)
    left = [run for run in elsewhere if ours.intersection(run.asset_selection or ())]
    if not left:
        return ""
    names = sorted({repr(run.tags.get(LOCATION_TAG, "")) for run in left})
    waits = held_run.counted(len(left), "run waits", "runs wait")
    return (
        f" {waits} for assets that are defined here, launched in {', '.join(names)}: if this "
        "code location was renamed, cancel and materialize again; nothing is sent twice."
    )


def have_no_sensor(scene: Scene, others: Sequence[dg.DagsterRun]) -> str:
    """Say which runs of this code location nobody lets go: their resource has no sensor any more.

    It was removed, or the resource renamed, while they waited.
    """
    repository = scene.context.repository_def
    if repository is None:
        return ""
    here = scene.ours.located().items()
    looked_after = {each.tags.get(held_run.SENSOR_RESOURCE_TAG) for each in repository.sensor_defs}
    tag = held_run.HELD_TAG
    left = [run for run in others if here <= run.tags.items() and run.tags[tag] not in looked_after]
    if not left:
        return ""
    names = ", ".join(sorted({repr(run.tags[tag]) for run in left}))
    waits = held_run.counted(len(left), "run waits", "runs wait")
    return (
        f" {waits} for a sensor for the Claude resource {names}, which this code location has no "
        "more: declare one, or cancel them and materialize again; nothing is sent twice."
    )
