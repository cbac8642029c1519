"""Room in the window: how much of it there is, and which runs go for it.

The ledger decides, in the run, and counts what nobody has collected yet. The sensor counts the
same by the tags of held runs. What it cannot see (runs that wait themselves, or are just sending,
and what nobody waits for any more) shows as a run that found no room: then one at a time tries,
after pauses that grow.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from dagster_claude_batch import held_run
from dagster_claude_batch.doubt import LATEST_END
from dagster_claude_batch.held_run import HeldRun
from dagster_claude_batch.sensor.scene import Held, Scene
from dagster_claude_batch.workbench import Waiting


def going_for_room(scene: Scene, waiting: Sequence[Held], let_go: Sequence[HeldRun]) -> list[Held]:
    """Those of all waiting runs that may go for room now, oldest first; ``let_go``: see `Slots`."""
    wanting = [pair for pair in waiting if _of_room(pair[0])]
    if not wanting:
        return []
    everybody = [*(held for held, _ in waiting), *let_go]
    window = scene.claude.max_in_flight_requests
    going = fitting([held for held, _ in wanting], everybody, scene.now, window)
    tries = _tries(everybody, scene)
    return [pair for pair in wanting if pair[0].run_id in going][:tries]


def fitting(
    wanting: Iterable[HeldRun], everybody: Iterable[HeldRun], now: datetime, window: int
) -> set[str]:
    """Ids of the runs that fit into the window together, in their order.

    As in the ledger, a chunk larger than the window goes when nothing else is out.
    """
    out = in_flight(everybody, now)
    going: set[str] = set()
    for held in wanting:
        waits = [wait for wait in _of_room(held) if _may_send(wait, now)]
        needs = min((wait.needs for wait in waits), default=None)
        if needs is None:
            continue
        if out and out + needs > window:
            break  # smaller ones that overtake it would keep it waiting
        out += max(1, sum(_wanted(wait) for wait in waits))
        going.add(held.run_id)
    return going


def in_flight(everybody: Iterable[HeldRun], now: datetime) -> int:
    """Requests that are out or about to be, as far as the tags of unfinished held runs tell.

    Runs that wait for the same batches count once; what must have left the queue does not.
    """
    counted: dict[object, int] = {}
    for held in everybody:
        for number, wait in enumerate(held.waits):
            if wait.since is not None and now - wait.since > LATEST_END:
                continue
            going = held.state == held_run.RELEASED and wait.is_for_room
            requests = _wanted(wait) if going else wait.requests
            key = wait.batch_ids or (held.run_id, number)
            counted[key] = max(counted.get(key, 0), requests)
    return sum(counted.values())


def _tries(everybody: Sequence[HeldRun], scene: Scene) -> int | None:
    """How many may go: one at a time after one that found no room, until one has found some."""
    vain = [(held, wait) for held in everybody for wait in _of_room(held) if wait.in_vain]
    sent = max((w.since for held in everybody for w in held.waits if w.since), default=None)
    failures = [moment for _, wait in vain if (moment := _found_none(wait, scene))]
    if not vain or (sent is not None and all(sent > moment for moment in failures)):
        return None
    is_trying = any(held.state == held_run.RELEASED for held, _ in vain)
    return 0 if is_trying or any(not _may_send(wait, scene.now) for _, wait in vain) else 1


def _found_none(wait: Waiting, scene: Scene) -> datetime | None:
    """When a run came for room and found none."""
    if wait.send_after is None:
        return None
    return wait.send_after - held_run.pause_after_failures(wait.in_vain, scene.poll_interval)


def _of_room(held: HeldRun) -> list[Waiting]:
    return [wait for wait in held.waits if wait.is_for_room]


def _may_send(wait: Waiting, now: datetime) -> bool:
    return wait.send_after is None or now >= wait.send_after


def _wanted(wait: Waiting) -> int:
    """About how many requests a run sends that has room for all."""
    return wait.unsent * wait.needs
