"""Runs that have something to send and no room: what they wait for, and when they are let go.

Held runs are real runs of an instance that starts none; what they wait for, a run of the engine
has left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from kit import Project
from queue_kit import hold, let_go, run_of, scene_of

from dagster_claude_batch import held_run
from dagster_claude_batch.sensor.cursor import Cursor
from dagster_claude_batch.sensor.tick import tick
from dagster_claude_batch.workbench import Waiting

KEY = dg.AssetKey("sentiment")
PARTITIONS = ("a", "b", "c", "d")
POLL = timedelta(seconds=1)
"""The pause of the local resource."""


@dataclass
class Queue:
    """Held runs in the queue of an instance, and the sensor's ticks."""

    instance: dg.DagsterInstance
    project: Project
    cursor: Cursor = field(default_factory=Cursor)

    def hold(self, waiting: Waiting | None, *, state: str = held_run.WAITING) -> str:
        """Let a run wait; its id."""
        assert waiting is not None
        return hold(self.instance, waiting, key=KEY, state=state)

    def tick(self) -> list[str]:
        """Ids of the runs that a tick lets go."""
        before = let_go(self.instance)
        tick(scene_of(self.instance, self.project.claude, cursor=self.cursor))
        return [run_id for run_id in let_go(self.instance) if run_id not in before]

    def end(self, run_id: str) -> None:
        """A run that was let go has done its work."""
        self.instance.report_run_failed(run_of(self.instance, run_id))
        held_run.mark(self.instance, run_id, held_run.SETTLED, "results collected")

    def comes_back(self, run_id: str, waiting: Waiting | None) -> str:
        """A run that was let go ends, and leaves another that waits, as its step would."""
        assert waiting is not None
        run = run_of(self.instance, run_id)
        now = self.project.claude.now()
        left = held_run.found_no_room(held_run.read(run), KEY, waiting, now, POLL)
        self.end(run_id)
        return self.hold(left)

    def passes(self, time: timedelta) -> None:
        self.project.claude.simulator.advance(time)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """Four partitions with 4 rows each, and a window for 10 requests."""
    made = Project(
        tmp_path,
        claude={"max_in_flight_requests": 10},
        partitions_def=dg.StaticPartitionsDefinition(list(PARTITIONS)),
    )
    made.load([(partition, f"{partition}{n}", "x") for partition in PARTITIONS for n in range(4)])
    with dg.DagsterInstance.ephemeral() as instance:
        yield Queue(instance, made)


def _start(queue: Queue, partitions: Sequence[str] = PARTITIONS) -> list[Waiting]:
    """What the partitions' runs wait for, one after the other."""
    left = [queue.project.start(partition).waiting for partition in partitions]
    return [waiting for waiting in left if waiting is not None]


def test_who_has_only_to_send_waits_for_room_and_not_for_a_moment(queue: Queue) -> None:
    *_, full = _start(queue, ("a", "b", "c"))

    assert full.is_for_room
    assert (full.unsent, full.needs, full.send_after) == (1, 4, None)
    assert full.not_before is not None
    assert full.not_before - queue.project.claude.now() > timedelta(hours=24)


def test_nobody_goes_for_room_before_what_fills_it_has_been_collected(queue: Queue) -> None:
    a, b, c, _ = _start(queue)
    first, second, third = queue.hold(a), queue.hold(b), queue.hold(c)

    assert queue.tick() == []
    queue.passes(timedelta(hours=1))
    assert queue.tick() == []
    queue.project.end_batches()
    queue.passes(timedelta(hours=1))
    assert queue.tick() == [first, second]
    assert queue.tick() == []
    queue.end(first)
    assert queue.tick() == [third]


def test_only_as_many_go_for_room_as_fit_together(queue: Queue) -> None:
    a, b, c, d = _start(queue)
    del a, b
    third, fourth, fifth = queue.hold(c), queue.hold(d), queue.hold(d)

    assert queue.tick() == [third, fourth]
    assert queue.tick() == []
    queue.end(third)
    assert queue.tick() == [fifth]


def test_nobody_is_asked_how_much_room_there_is(queue: Queue) -> None:
    *_, d = _start(queue)
    queue.hold(d)
    before = list(queue.project.wire.calls)

    assert queue.tick() != []
    assert queue.project.wire.calls == before


def test_who_waits_for_room_goes_at_the_latest_when_the_window_must_be_empty(queue: Queue) -> None:
    *_, c, _ = _start(queue)
    third = queue.hold(c)
    queue.passes(timedelta(hours=24))
    now = queue.project.claude.now()
    queue.hold(Waiting(requests=8, since=now, not_before=now + timedelta(days=2)))
    assert queue.tick() == []

    queue.passes(timedelta(hours=1, minutes=1))

    assert third in queue.tick()


def test_a_chunk_larger_than_the_window_goes_when_nothing_else_is_out(queue: Queue) -> None:
    a, _, c, _ = _start(queue)
    first, large, small = queue.hold(a), queue.hold(replace(c, needs=11)), queue.hold(c)

    assert queue.tick() == []
    queue.end(first)
    assert queue.tick() == [large]
    queue.end(large)
    assert queue.tick() == [small]


def test_batches_that_several_runs_wait_for_fill_the_window_once(queue: Queue) -> None:
    a, _, c, _ = _start(queue)
    queue.hold(a)
    queue.hold(a)

    third = queue.hold(c)

    assert queue.tick() == [third]


def test_a_run_that_found_no_room_comes_again_after_pauses_that_grow(queue: Queue) -> None:
    *_, d = _start(queue)
    run_id, pauses = queue.hold(d), list[int]()
    for _ in range(7):
        assert queue.tick() == [run_id]
        run_id = queue.comes_back(run_id, d)
        (waiting,) = held_run.read(_found(queue, run_id)).waits
        assert waiting.send_after is not None
        pause = waiting.send_after - queue.project.claude.now()
        pauses.append(round(pause / POLL))
        assert queue.tick() == []
        queue.passes(pause)

    assert pauses == [1, 5, 15, 30, 60, 60, 60]


def test_after_a_run_found_no_room_one_at_a_time_tries_until_one_has_sent(queue: Queue) -> None:
    a, _, c, d = _start(queue)
    third, fourth = queue.hold(c), queue.hold(d)
    assert queue.tick() == [third, fourth]
    third, fourth = queue.comes_back(third, c), queue.comes_back(fourth, d)
    assert queue.tick() == []

    queue.passes(2 * POLL)
    assert queue.tick() == [third]
    assert queue.tick() == []
    queue.comes_back(third, replace(a, since=queue.project.claude.now()))
    assert queue.tick() == [fourth]


def test_a_run_that_the_api_asked_for_patience_is_not_let_go_before(queue: Queue) -> None:
    *_, d = _start(queue)
    later = queue.project.claude.now() + timedelta(minutes=5)
    run_id = queue.hold(replace(d, send_after=later))

    assert queue.tick() == []
    queue.passes(timedelta(minutes=5))
    assert queue.tick() == [run_id]


def test_a_run_that_goes_for_room_says_so(queue: Queue) -> None:
    *_, d = _start(queue)
    run_id = queue.hold(d)
    waiting = _found(queue, run_id).tags
    queue.tick()
    going = _found(queue, run_id).tags

    assert "max_in_flight_requests" in waiting[held_run.LONG_TAG]
    assert going[held_run.SHORT_TAG] == "room to send"


def _found(queue: Queue, run_id: str) -> dg.DagsterRun:
    run = queue.instance.get_run_by_id(run_id)
    assert run is not None
    return run
