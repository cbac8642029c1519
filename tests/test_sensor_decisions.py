"""What a tick decides, without Dagster."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from queue_kit import add_run, hold, run_of, scene_of

from dagster_claude_batch import LocalClaudeBatchResource
from dagster_claude_batch.held_run import (
    FRUITLESS_TAG,
    OURS,
    PARTITIONS_TAG,
    POOLS_TAG,
    STATE_TAG,
    WAITER_TAG,
    HeldRun,
    pause_after,
    pause_after_failures,
    read,
)
from dagster_claude_batch.landing_job import LEFT_TAG
from dagster_claude_batch.sensor.cursor import Cursor
from dagster_claude_batch.sensor.looking import Look, may_go, with_unseen
from dagster_claude_batch.sensor.said import describe
from dagster_claude_batch.sensor.scene import Scene
from dagster_claude_batch.sensor.tick import tick
from dagster_claude_batch.workbench import Waiting

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
SINCE = NOW - timedelta(hours=2, minutes=10)
LONG = timedelta(minutes=10)
QUESTION = {"role": "user", "content": "?"}


def _held(*waits: Waiting) -> HeldRun:
    return HeldRun("held", "maker", "pool", "waiting", dg.DagsterRunStatus.QUEUED, waits)


@pytest.mark.parametrize(
    ("waits", "look", "expected"),
    [
        ((), Look(), True),
        ((Waiting(("a", "b"), since=SINCE),), Look(frozenset("a")), False),
        ((Waiting(("a", "b"), since=SINCE),), Look(frozenset("ab")), True),
        ((Waiting(("a", "b"), unsent=1),), Look(frozenset("a")), True),
        ((Waiting(("a",), unsent=1),), Look(), False),
        ((Waiting(unsent=1, needs=10, not_before=LATER),), Look(), False),
        ((Waiting(unsent=1, needs=10, not_before=NOW),), Look(), True),
        ((Waiting(("a", "b"), any_end=True),), Look(frozenset("a")), True),
        ((Waiting(("a", "b"), any_end=True),), Look(), False),
        ((Waiting(not_before=LATER),), Look(), False),
        ((Waiting(("a",), not_before=NOW),), Look(), True),
        ((Waiting(("a",), not_before=LATER),), Look(), False),
        ((Waiting(("a",)), Waiting(("b",))), Look(frozenset("a")), False),
        ((Waiting(("a",)), Waiting(("b",))), Look(frozenset("ab")), True),
    ],
    ids=[
        "its maker ended before paying",
        "one of two batches has ended",
        "all batches have ended",
        "an end makes room for more",
        "no room yet",
        "only room makes it go",
        "room or not, its time has come",
        "one of the candidates of a doubt has ended",
        "none of them has",
        "a doubt is to settle first",
        "its time has come",
        "its time has not come",
        "another asset still waits",
        "both assets are ready",
    ],
)
def test_when_a_held_run_may_go(waits: tuple[Waiting, ...], look: Look, *, expected: bool) -> None:
    assert may_go(_held(*waits), look, NOW) is expected


@pytest.mark.parametrize(
    ("age", "seconds"),
    [
        (timedelta(), 60),
        (timedelta(hours=1), 60),
        (timedelta(hours=5, minutes=30), 330),
        (timedelta(hours=10), 600),
        (timedelta(hours=20), 600),
    ],
)
def test_looks_become_rarer_with_the_age_of_the_batches(age: timedelta, seconds: float) -> None:
    assert pause_after(age, timedelta(seconds=60)) == timedelta(seconds=seconds)


def test_a_quiet_tick_says_what_it_waits_for() -> None:
    waiting = [_held(Waiting(("a", "b"), since=SINCE)), _held(Waiting(("b", "c"), since=NOW))]
    waiting[1] = replace(waiting[1], partitions=3)

    said = describe(waiting, NOW, NOW + timedelta(minutes=4))

    assert said == (
        "2 runs with 4 partitions wait for 3 batches, the oldest out for 2 h 10 min, "
        "next look in 4 min."
    )


def test_a_quiet_tick_says_what_looks_for_a_batch_that_nobody_saw() -> None:
    in_doubt = _held(Waiting(requests=10, not_before=NOW + timedelta(minutes=20)))

    assert describe([in_doubt], NOW, NOW) == (
        "1 run with 1 partition waits for 0 batches, 1 of them looks for a batch whose creation "
        "nobody saw."
    )


def test_a_quiet_tick_says_what_tries_again() -> None:
    again = replace(_held(), fruitless=2)

    assert describe([again], NOW, NOW) == (
        "1 run with 1 partition waits for 0 batches, 1 of them tries again."
    )


def test_a_cursor_of_another_version_keeps_what_both_know() -> None:
    assert Cursor.load('{"held": ["a"], "of": "another version"}') == Cursor(held=["a"])


@pytest.mark.parametrize("text", [None, "", "no json", '{"of": "another version"}', "[1]"])
def test_a_cursor_that_cannot_be_read_starts_anew(text: str | None) -> None:
    assert Cursor.load(text) == Cursor()


def test_a_cursor_survives_being_written() -> None:
    cursor = Cursor(1.5, ["a"], {"b": 2.0}, {"pool": 3.0}, 4.0, "landing:1", {"c": 5.0})

    assert Cursor.load(cursor.dump()) == cursor


def _scene(simulator: Path, moment: datetime, cursor: Cursor) -> Scene:
    claude = LocalClaudeBatchResource(path=str(simulator))
    return scene_of(dg.DagsterInstance.ephemeral(), claude, cursor=cursor, now=moment)


def test_a_batch_long_unseen_among_others_is_worth_a_run_once_an_hour(tmp_path: Path) -> None:
    cursor = Cursor()
    seen: list[bool] = []
    for minutes in (0, 30, 61, 62, 100, 123):
        scene = _scene(tmp_path, NOW + timedelta(minutes=minutes), cursor)
        look = with_unseen(scene, Look(frozenset("a"), unseen=frozenset("b")))
        seen.append("b" in look.ended)

    assert seen == [False, False, True, False, False, True]
    scene = _scene(tmp_path, NOW, cursor)
    assert with_unseen(scene, Look(frozenset("ab"))).unseen == frozenset()
    assert cursor.unseen == {}


def test_what_a_held_run_waits_for_survives_its_tags() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        waiting = Waiting(("a", "b"), 7, 2, 5, SINCE, LATER, NOW, any_end=True, in_vain=3)

        held = hold(instance, waiting)

        assert read(run_of(instance, held)).waits == (waiting,)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"since": null}', Waiting(("a",))),
        ('{"requests": 7, "novelty": {}}', Waiting(("a",), 7)),
        ('{"requests": "many", "since": "today"}', Waiting(("a",))),
        ("[]", Waiting(("a",))),
        ("no json", Waiting(("a",))),
    ],
)
def test_tags_that_another_version_wrote_are_read_as_far_as_they_go(
    written: str, expected: Waiting
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        found = run_of(instance, hold(instance, Waiting(("a",))))
        (tag,) = (tag for tag in found.tags if tag.startswith(f"{OURS}wait."))
        others = {PARTITIONS_TAG: "?", FRUITLESS_TAG: "", POOLS_TAG: "{"}

        read_back = read(found.with_tags({**found.tags, tag: written, **others}))

    assert read_back.waits == (expected,)
    assert (read_back.partitions, read_back.fruitless, read_back.pools) == (1, 0, ())


def test_a_wait_that_names_nothing_to_wait_for_is_due_at_once() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        held = run_of(instance, hold(instance, Waiting(requests=3)))

    assert may_go(read(held), Look(), NOW)


@pytest.mark.parametrize(
    ("fruitless", "minutes"), [(0, 0), (1, 1), (2, 5), (3, 15), (4, 30), (5, 60), (9, 60)]
)
def test_pauses_grow_with_each_run_that_came_to_nothing(fruitless: int, minutes: int) -> None:
    pause = pause_after_failures(fruitless, timedelta(minutes=1))

    assert pause == timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("status", "told_again"),
    [(dg.DagsterRunStatus.FAILURE, True), (dg.DagsterRunStatus.SUCCESS, False)],
)
def test_what_a_landing_run_was_told_of_is_told_again_if_it_failed(
    tmp_path: Path, status: dg.DagsterRunStatus, *, told_again: bool
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tags = {"dagster/run_key": "landing:1", LEFT_TAG: "0"}
        add_run(instance, status, tags)
        cursor = Cursor(landing="landing:1", landing_for=["deleted"])
        claude = LocalClaudeBatchResource(path=str(tmp_path))

        tick(scene_of(instance, claude, cursor=cursor, now=NOW, grace=LONG))

    assert ("deleted" in cursor.ended) is told_again
    assert cursor.landing is None
    assert cursor.landing_for == []


@pytest.mark.parametrize(
    ("maker", "expected"),
    [
        (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.QUEUED),
        (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.NOT_STARTED),
    ],
)
def test_a_held_run_that_was_not_enqueued_is_so_as_soon_as_its_maker_has_ended(
    tmp_path: Path, maker: dg.DagsterRunStatus, expected: dg.DagsterRunStatus
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        made_by = add_run(instance, maker)
        held = hold(instance, maker=made_by, status=dg.DagsterRunStatus.NOT_STARTED)
        claude = LocalClaudeBatchResource(path=str(tmp_path))

        tick(scene_of(instance, claude, cursor=Cursor(), now=NOW))

        found = run_of(instance, held)
    assert found.status == expected


@pytest.mark.parametrize(("seconds_ago", "released"), [(0, True), (31, False)])
def test_a_tick_that_has_taken_long_leaves_the_rest_to_the_next(
    tmp_path: Path, seconds_ago: float, *, released: bool
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        held = hold(instance, maker=add_run(instance, dg.DagsterRunStatus.FAILURE))
        claude = LocalClaudeBatchResource(path=str(tmp_path))
        scene = scene_of(instance, claude, cursor=Cursor(), now=NOW)
        scene.began -= seconds_ago

        tick(scene)

        found = run_of(instance, held)
    assert (read(found).state == "released") is released


def test_where_dagster_cannot_hold_runs_a_tick_touches_none_and_says_how_to_let_them_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        held = hold(instance, maker=add_run(instance, dg.DagsterRunStatus.FAILURE))
        waiter = {WAITER_TAG: "claude_batch", STATE_TAG: "in_run"}
        gone = add_run(instance, dg.DagsterRunStatus.FAILURE, waiter)
        claude = LocalClaudeBatchResource(path=str(tmp_path))
        cursor = Cursor(landed_at=datetime.now(UTC).timestamp())
        snapshots = "dagster._core.snap.execution_plan_snapshot"
        monkeypatch.setattr(f"{snapshots}.ExecutionStepSnap", object)

        result = tick(scene_of(instance, claude, cursor=cursor, now=NOW, grace=LONG))

        found = run_of(instance, held)
    assert read(found).state == "waiting"
    assert list(cursor.ended) == [gone]
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message == (
        f"Dagster {dg.__version__} has no ExecutionStepSnap._replace, which runs that wait in the "
        "queue need: runs wait for their batches themselves. To let the 1 run that is held in the "
        "queue go, delete in Deployment → Concurrency the limits of their pools: "
        f"waiting_for_claude_batch/{held[:8]}"
    )
