"""The held runs in the queue: finding them, and letting them go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import dagster as dg

from dagster_claude_batch import held_run, holding
from dagster_claude_batch.held_run import HeldRun
from dagster_claude_batch.sensor.leaving_out import leave_out
from dagster_claude_batch.sensor.looking import Look, may_go
from dagster_claude_batch.sensor.reasons import why_go
from dagster_claude_batch.sensor.room import going_for_room
from dagster_claude_batch.sensor.scene import QUEUED, Held, Scene
from dagster_claude_batch.sensor.slots import Slots

STUCK: Final = timedelta(minutes=5)
"""A held run that is still not enqueued after this long was left behind by a crash."""

RELEASES_PER_TICK: Final = 200

_AT_WORK: Final = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


@dataclass(frozen=True)
class Queue:
    """The held runs in it: of this code location by id, those in reserve, and those of others."""

    runs: Mapping[str, dg.DagsterRun]
    reserves: Sequence[dg.DagsterRun]
    elsewhere: Sequence[dg.DagsterRun]


def read_queue(scene: Scene) -> Queue:
    """Find the held runs."""
    tags = {held_run.HELD_TAG: scene.claude_resource}
    found = held_run.in_queue(scene.instance, tags, QUEUED)
    copies = [run for run in found if held_run.is_copy(run)]
    for run in copies:
        with scene.boundary(f"Run {run.run_id[:8]} keeps the lowest priority"):
            held_run.take_for_ordinary(scene.instance, run)
    found = [run for run in found if run not in copies]
    reserves = [run for run in found if run.tags.get(held_run.STATE_TAG) == held_run.IN_RESERVE]
    waiting = [run for run in found if run not in reserves]
    runs = {run.run_id: run for run in waiting if scene.ours.include(run)}
    return Queue(
        runs,
        [run for run in reserves if scene.ours.include(run)],
        [run for run in waiting if run.run_id not in runs],
    )


def enqueue_left_behind(scene: Scene, runs: Mapping[str, dg.DagsterRun]) -> None:
    """Enqueue runs whose maker was killed between creating and enqueueing them."""
    created = [run for run in runs.values() if run.status == dg.DagsterRunStatus.NOT_STARTED]
    makers = scene.runs(held_run.read(run).maker_run_id for run in created)
    for run in created:
        maker = makers.get(held_run.read(run).maker_run_id)
        if (maker is not None and maker.is_finished) or _is_stuck(scene, run):
            with scene.boundary(f"Run {run.run_id[:8]} was not put into the queue"):
                holding.enqueue(scene.instance, run)


def _is_stuck(scene: Scene, run: dg.DagsterRun) -> bool:
    record = scene.instance.get_run_record_by_id(run.run_id)
    return record is not None and scene.real_now() - record.create_timestamp > STUCK


def waiting_ones(scene: Scene, runs: Mapping[str, dg.DagsterRun]) -> list[Held]:
    """The held runs that have not been let go; those that have been, once more."""
    waiting: list[Held] = []
    for run in runs.values():
        with scene.boundary(f"Run {run.run_id[:8]} was not let go"):
            held = held_run.read(run)
            if held.state == held_run.RELEASED:
                held_run.forget_pool(scene.instance, held.pool)
            elif run.status == dg.DagsterRunStatus.QUEUED:
                waiting.append((held, run))
    return waiting


def release(
    scene: Scene, runs: Mapping[str, dg.DagsterRun], waiting: Sequence[Held], look: Look
) -> set[str]:
    """Let go what has something to do, never before the run that made it has ended.

    Who collects goes before who only waits for room, which it makes. Those whose pools have no
    free slot stay: in the queue they cost nothing.
    """
    if not waiting:
        return set()
    let_go = _unfinished(scene, runs)
    due = [pair for pair in waiting if may_go(pair[0], look, scene.now)]
    ready = _with_makers(scene, [*due, *_going_for_room(scene, waiting, due, let_go)])
    slots = Slots(scene.instance, let_go)
    released, noted = set[str](), set[str]()
    for held, run, maker in ready:
        if scene.is_late() or len(released) == RELEASES_PER_TICK:
            break
        with scene.boundary(f"Run {run.run_id[:8]} was not let go"):
            if slots.take(held.pools):
                _let_go(scene, held, run, maker, why_go(held, look, scene.now))
                released.add(held.run_id)
            elif not held.is_ready and not _is_for_room(held):
                held_run.make_ready(scene.instance, held)
                noted.add(held.run_id)
    left = [held for held, _ in due if held.batch_ids and not held.is_ready]
    if any(held.run_id not in released | noted for held in left):
        scene.cursor.last_look = 0.0
    return released


def _unfinished(scene: Scene, runs: Mapping[str, dg.DagsterRun]) -> list[HeldRun]:
    """The held runs that have been let go and are not over."""
    tags = {**scene.ours.tags(), held_run.STATE_TAG: held_run.RELEASED}
    at_work = scene.instance.get_runs(dg.RunsFilter(tags=tags, statuses=list(_AT_WORK)))
    in_queue = [run for run in runs.values() if tags.items() <= run.tags.items()]
    return [held_run.read(run) for run in (*in_queue, *at_work)]


def _going_for_room(
    scene: Scene, waiting: Sequence[Held], due: Sequence[Held], let_go: Sequence[HeldRun]
) -> list[Held]:
    due_ids = {held.run_id for held, _ in due}
    going = going_for_room(scene, waiting, let_go)
    return [pair for pair in going if pair[0].run_id not in due_ids]


def _is_for_room(held: HeldRun) -> bool:
    return any(wait.is_for_room for wait in held.waits)


def _with_makers(
    scene: Scene, due: Sequence[Held]
) -> list[tuple[HeldRun, dg.DagsterRun, dg.RunRecord | None]]:
    """Those whose maker has ended, with the record of it, if it has not been deleted."""
    makers = scene.records([held.maker_run_id for held, _ in due])
    over = [
        (held, run, maker)
        for held, run in due
        if _is_over(scene, held, maker := makers.get(held.maker_run_id))
    ]
    # A maker says last what is waited for: it may have ended since its held run was read.
    now = scene.runs([held.run_id for held, _, _ in over if not held.waits])
    silent = {run_id for run_id, run in now.items() if not held_run.read(run).waits}
    return [each for each in over if each[0].waits or each[0].run_id in silent]


def _let_go(
    scene: Scene,
    held: HeldRun,
    run: dg.DagsterRun,
    maker: dg.RunRecord | None,
    why: tuple[str, str],
) -> None:
    if not held.waits and maker and maker.dagster_run.status == dg.DagsterRunStatus.CANCELED:
        # Who terminated the run while it was sending did not mean its successor to go on.
        scene.instance.report_run_canceled(run, message="The run before this was cancelled.")
    elif maker is None:
        held_run.release(scene.instance, run, *why)
    else:
        narrowed, left_out = leave_out(scene, run, maker.dagster_run)
        held_run.release(scene.instance, narrowed, *why, *left_out)


def _is_over(scene: Scene, held: HeldRun, maker: dg.RunRecord | None) -> bool:
    """Whether the run that made a held run has ended, and a pause after failures is over."""
    if maker is None:
        return True
    if not maker.dagster_run.is_finished:
        return False
    pause = held_run.pause_after_failures(held.fruitless, scene.poll_interval)
    over = (maker.end_time or 0.0) + pause.total_seconds()
    return bool(held.waits) or scene.real_now().timestamp() >= over
