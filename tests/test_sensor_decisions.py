"""What a tick decides, without Dagster."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from dagster_claude_batch.held_run import HeldRun, pause_after
from dagster_claude_batch.sensor import Cursor, Look, describe, may_go
from dagster_claude_batch.workbench import Waiting

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SINCE = NOW - timedelta(hours=2, minutes=10)


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
        ((Waiting(unsent=1, needs=10),), Look(in_queue=95), False),
        ((Waiting(unsent=1, needs=10),), Look(in_queue=90), True),
        ((Waiting(("a",), not_before=NOW),), Look(), True),
        ((Waiting(("a",), not_before=NOW + timedelta(seconds=1)),), Look(), False),
        ((Waiting(("a",)), Waiting(("b",))), Look(frozenset("a")), False),
        ((Waiting(("a",)), Waiting(("b",))), Look(frozenset("ab")), True),
    ],
    ids=[
        "its maker ended before paying",
        "one of two batches has ended",
        "all batches have ended",
        "an end makes room for more",
        "no room yet",
        "the window is full",
        "the window has room",
        "its time has come",
        "its time has not come",
        "another asset still waits",
        "both assets are ready",
    ],
)
def test_when_a_held_run_may_go(waits: tuple[Waiting, ...], look: Look, *, expected: bool) -> None:
    assert may_go(_held(*waits), look, NOW, window=100) is expected


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

    said = describe(waiting, NOW, NOW + timedelta(minutes=4))

    assert said == "2 runs wait for 3 batches, the oldest out for 2 h 10 min, next look in 4 min."


@pytest.mark.parametrize("text", [None, "", "no json", '{"of": "another version"}', "[1]"])
def test_a_cursor_that_cannot_be_read_starts_anew(text: str | None) -> None:
    assert Cursor.load(text) == Cursor()


def test_a_cursor_survives_being_written() -> None:
    cursor = Cursor(1.5, ["a"], {"b": 2.0}, {"pool": 3.0}, 4.0, "landing:1")

    assert Cursor.load(cursor.dump()) == cursor
