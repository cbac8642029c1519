"""The run that submits is killed, at each point from before its claim to after its step."""

import os
import re
import signal
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from dagster_driver import Backfill
from dagster_storage import IS_SQLITE, events_locked
from e2e_gates import Gate
from e2e_situations import Shown, record
from e2e_stage import Stage

from dagster_claude_batch import holding

POINTS = {
    "killed_unclaimed": "before the claim",
    "killed_claimed": "claimed, no held run yet",
    "killed_created": "held run created, not enqueued",
    "killed_enqueued": "held run enqueued, nothing sent",
    "killed_posted": "sent, batch id unknown",
    "killed_between": "one batch id durable, the other batch not sent",
    "killed_sent": "all batch ids durable, step not ended",
    "killed_ended": "step ended, run not ended",
}
RETRIED = ("killed_unclaimed", "killed_claimed", "killed_ended")
"""Where there is no held run yet, or something else is left to do, Dagster's own retry helps."""

ROWS = {**dict.fromkeys(POINTS, 2), "killed_enqueued": 3}
"""A batch of as many rows as the one in doubt would have to end before it is known for another."""

A_RETRY = {"dagster/max_retries": "1"}


@dataclass(frozen=True)
class Seen:
    """What was shown of each asset, how its backfill ended, and its killed run."""

    runs: Mapping[str, str]
    waiting: Mapping[str, Shown]
    at_the_end: Mapping[str, Shown]
    backfills: Mapping[str, Backfill]


@pytest.fixture(scope="module")
def seen(stage: Stage) -> Seen:
    """All runs are killed together, and what they leave behind is seen through together."""
    dagster = stage.dagster
    for asset in POINTS:
        stage.ask(asset, ROWS[asset])
    gates = _close_gates(stage)
    with ExitStack() as until_killed:
        with stage.locked():
            backfills = {asset: _launch(stage, asset) for asset in POINTS}
            runs = {asset: _run_of(stage, each) for asset, each in backfills.items()}
            held_id = holding.held_run_id(runs["killed_created"])
            until_killed.enter_context(_events_locked(stage, held_id))
            _wait_until_said(stage, runs["killed_unclaimed"], "is locked by")
            _kill(stage, runs["killed_unclaimed"])
        dagster.wait_for(
            lambda: dagster.runs(run_ids=[held_id]), timeout=600, every=0.1, what="the held run"
        )
        _kill(stage, runs["killed_created"])
    _kill_once_ids_are_durable(stage, gates.pop("killed_sent"), runs["killed_sent"])
    for asset, gate in gates.items():
        stage.wait_until_reached(gate)
        _kill(stage, runs[asset])
    for run_id in runs.values():
        assert dagster.wait_for_run(run_id).status == "FAILURE"
    for gate in gates.values():
        gate.open()
    stage.simulator.advance(timedelta(hours=1))  # a batch would have been seen by now

    def shown() -> dict[str, Shown]:
        return {asset: stage.shown(asset, each) for asset, each in backfills.items()}

    dagster.wait_for(
        lambda: (
            all(each.started == 0 and each.queued == 1 for each in shown().values())
            and all(len(stage.sent(asset)) == ROWS[asset] for asset in POINTS)
        ),
        timeout=300,
        what="what was killed to be gone on with",
    )
    waiting = shown()
    stage.simulator.end_batches()
    ended = {asset: dagster.wait_for_backfill(each) for asset, each in backfills.items()}
    return Seen(runs, waiting, shown(), ended)


def _close_gates(stage: Stage) -> dict[str, Gate]:
    """Where runs are to stop, by asset."""
    return {
        "killed_claimed": stage.close_gate("before", "claude-sonnet-5-5", method="GET"),
        "killed_enqueued": stage.close_gate("before", "killed_enqueued "),
        "killed_posted": stage.close_gate("after", "killed_posted "),
        "killed_between": stage.close_gate("before", "killed_between ", nth=2),
        "killed_sent": stage.close_gate("after", "killed_sent "),
        "killed_ended": stage.close_gate("before", "killed_ended_sibling", method="STEP"),
    }


def _kill_once_ids_are_durable(stage: Stage, gate: Gate, run_id: str) -> None:
    """Kill a run that has committed its batch's id, where it says so."""
    stage.wait_until_reached(gate)
    (batch,) = stage.batches_of("killed_sent")
    said = stage.close_gate("before", f"Submitted batch {batch.id}", method="LOG")
    gate.open()
    stage.wait_until_reached(said)
    ids = "SELECT batch_id FROM claude_batch.chunks WHERE asset = 'killed_sent'"
    assert stage.sql(ids) == [(batch.id,)]
    _kill(stage, run_id)
    said.open()


def _launch(stage: Stage, asset: str) -> str:
    assets = [asset, "killed_ended_sibling"] if asset == "killed_ended" else [asset]
    tags = A_RETRY if asset in RETRIED else None
    return stage.dagster.launch_backfill(assets, ["berlin"], tags=tags)


def _run_of(stage: Stage, backfill: str) -> str:
    (run,) = stage.dagster.wait_for(
        lambda: stage.dagster.backfill_runs(backfill), timeout=600, what="the backfill's run"
    )
    return run.run_id


@contextmanager
def _events_locked(stage: Stage, run_id: str) -> Iterator[None]:
    """Stop whoever writes to a run's event log, which creating and enqueueing it do."""
    if not IS_SQLITE:
        with events_locked(stage.dagster.home, run_id):
            yield
        return
    events = stage.dagster.home / "history" / "runs" / f"{run_id}.db"
    with closing(sqlite3.connect(events, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def _kill(stage: Stage, run_id: str) -> None:
    said = "\n".join(stage.dagster.run_messages(run_id))
    (pid,) = set(re.findall(r"in process \(pid: (\d+)\)", said))
    os.kill(int(pid), signal.SIGKILL)


def _wait_until_said(stage: Stage, run_id: str, said: str) -> None:
    stage.dagster.wait_for(
        lambda: any(said in message for message in stage.dagster.run_messages(run_id)),
        timeout=600,
        what=f"the run to say: {said}",
    )


@pytest.mark.parametrize("asset", POINTS, ids=POINTS.values())
def test_what_a_killed_run_left_is_gone_on_with_and_nothing_is_sent_twice(
    stage: Stage, seen: Seen, asset: str
) -> None:
    batches = 2 if asset == "killed_between" else 1
    partitions = {"materializing": 1, "missing": 2}
    done = {"materialized": 1, "missing": 2}

    assert seen.waiting[asset] == Shown(partitions, "REQUESTED", queued=1, batches_out=batches)
    assert seen.at_the_end[asset] == Shown(done, "COMPLETED_SUCCESS")
    assert seen.backfills[asset].failed == 0
    assert stage.sent(asset) == [f"{asset} berlin {row}" for row in range(ROWS[asset])]
    assert stage.sql(f"SELECT count(*) FROM {asset}") == [(ROWS[asset],)]
    assert len(stage.dagster.asset_materializations(asset)) == 1
    record(f"killed: {POINTS[asset]}", seen.waiting[asset], seen.at_the_end[asset])
