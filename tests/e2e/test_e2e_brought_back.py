"""Collecting runs that fail, and who tries again: the next run, Dagster, a person, the sensor."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from dagster_driver import Run
from e2e_situations import Shown, record
from e2e_stage import Stage

from dagster_claude_batch import held_run, holding

SITUATIONS = {
    "fails_unauthorized": "collecting fails: refused by the API, in a backfill",
    "fails_locked": "collecting fails: the database is locked for too long",
    "fails_and_is_retried": "collecting fails: Dagster retries the run",
    "fails_and_is_reexecuted": "collecting fails: a person executes it again",
    "killed_alone": "collecting fails: killed, and nobody looks after it",
    "killed_in_a_backfill": "collecting fails: killed, in a backfill",
}
REFUSED = ("fails_unauthorized", "fails_and_is_retried", "fails_and_is_reexecuted")
KILLED = ("killed_alone", "killed_in_a_backfill")
IN_BACKFILLS = ("fails_unauthorized", "killed_in_a_backfill")
ROWS = 3


@dataclass
class Seen:
    """What was shown of each asset, the first run that collected, and those that came after it."""

    held: dict[str, Run]
    waiting: dict[str, Shown] = field(default_factory=dict)
    failed: dict[str, Run] = field(default_factory=dict)
    just_failed: dict[str, Shown] = field(default_factory=dict)
    after: dict[str, list[Run]] = field(default_factory=dict)
    at_the_end: dict[str, Shown] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen(stage: Stage) -> Seen:
    """All situations side by side, for each is mostly a matter of waiting."""
    dagster = stage.dagster
    backfills, submitting = _launch(stage)
    seen = Seen({asset: stage.held_by(run_id) for asset, run_id in submitting.items()})

    def shown(*assets: str) -> dict[str, Shown]:
        return {asset: stage.shown(asset, backfills.get(asset)) for asset in assets}

    seen.waiting = shown(*SITUATIONS)
    with _killing(stage, seen.held):
        for asset in REFUSED:
            results = f"{stage.batches_of(asset)[0].id}/results"
            stage.close_gate("refused", results, method="GET", status=401)
        with stage.locked():
            stage.simulator.end_batches()
            seen.failed["fails_locked"] = dagster.wait_for_run(seen.held["fails_locked"].run_id)
            seen.just_failed = shown("fails_locked")
    for asset in (*REFUSED, *KILLED):
        seen.failed[asset] = dagster.wait_for_run(seen.held[asset].run_id)
        seen.just_failed |= shown(asset)
        if asset == "fails_and_is_reexecuted":
            dagster.reexecute(seen.failed[asset].run_id)
    for asset, run in seen.failed.items():
        seen.after[asset] = _wait_until_tried_again(stage, run)
        if asset in REFUSED[1:]:
            seen.after[asset] += _launched_again(stage, run)
    for asset in SITUATIONS:
        stage.wait_until_over(asset, backfills.get(asset))
        seen.failed[asset] = dagster.run(seen.failed[asset].run_id)
        seen.after[asset] = [dagster.run(run.run_id) for run in seen.after[asset]]
    seen.at_the_end = shown(*SITUATIONS)
    return seen


def _launch(stage: Stage) -> tuple[dict[str, str], dict[str, str]]:
    """Launch all of it: the backfills, and the runs that submit."""
    dagster, retried = stage.dagster, {"dagster/max_retries": "1"}
    for asset in SITUATIONS:
        stage.ask(asset, ROWS)
    backfills = {asset: dagster.launch_backfill([asset], ["berlin"]) for asset in IN_BACKFILLS}
    runs = {
        asset: dagster.materialize(
            asset, partition="berlin", tags=retried if asset == "fails_and_is_retried" else {}
        )
        for asset in SITUATIONS
        if asset not in backfills
    }
    for asset, backfill in backfills.items():
        stage.wait_for_batches(asset, 1)
        (run,) = dagster.backfill_runs(backfill, statuses=["STARTED", "SUCCESS"])
        runs[asset] = run.run_id
    return backfills, runs


@contextmanager
def _killing(stage: Stage, held: dict[str, Run]) -> Iterator[None]:
    """Kill collecting runs as they come to download."""
    gates = {
        asset: stage.close_gate("before", f"{stage.batches_of(asset)[0].id}/results", method="GET")
        for asset in KILLED
    }
    yield
    for asset, gate in gates.items():
        stage.wait_until_reached(gate)
        os.kill(stage.pid_of(held[asset].run_id), signal.SIGKILL)
        gate.open()


def _wait_until_tried_again(stage: Stage, failed: Run) -> list[Run]:
    return stage.dagster.wait_for(
        lambda: stage.held_runs_of(failed.run_id), timeout=600, what="the run that tries again"
    )


def _launched_again(stage: Stage, failed: Run) -> list[Run]:
    """What Dagster, or a person, launched."""
    return stage.dagster.wait_for(
        lambda: stage.dagster.runs(tags={"dagster/parent_run_id": failed.run_id}),
        timeout=600,
        what="the run that is launched again",
    )


@pytest.mark.parametrize("asset", SITUATIONS)
def test_what_a_failed_run_did_not_collect_another_one_does_and_nothing_is_sent(
    stage: Stage, seen: Seen, asset: str
) -> None:
    before, after = ("REQUESTED", "COMPLETED_SUCCESS") if asset in IN_BACKFILLS else (None, None)
    failed = seen.failed[asset]

    assert seen.waiting[asset] == Shown(
        {"materializing": 1, "missing": 2}, before, queued=1, batches_out=1
    )
    assert failed.status == "FAILURE"
    assert seen.at_the_end[asset] == Shown({"materialized": 1, "missing": 2}, after)
    assert {run.status for run in seen.after[asset]} == {"SUCCESS"}
    tries = seen.after[asset][0]
    assert failed.tags[held_run.SHORT_TAG] == f"again by run {tries.run_id[:8]}"
    assert len(stage.batches_of(asset)) == 1
    assert stage.sql(f"SELECT count(*) FROM {asset}") == [(ROWS,)]
    record(SITUATIONS[asset], seen.waiting[asset], seen.at_the_end[asset])


@pytest.mark.parametrize("asset", ["fails_unauthorized", "fails_locked"])
def test_a_partition_whose_run_has_just_failed_is_still_being_materialized(
    seen: Seen, asset: str
) -> None:
    shown = seen.just_failed[asset]

    assert shown.partitions == {"materializing": 1, "missing": 2}
    assert shown.backfill in {None, "REQUESTED"}


def test_a_run_that_gave_up_before_a_lock_names_its_holder(stage: Stage, seen: Seen) -> None:
    message = "\n".join(stage.dagster.run_messages(seen.failed["fails_locked"].run_id))

    assert f"(PID {os.getpid()})" in message


@pytest.mark.exhaustive
def test_after_pauses_that_grow_and_a_limit_that_is_said_nobody_tries_again_but_a_person(
    stage: Stage,
) -> None:
    asset, dagster = "fails_always", stage.dagster
    stage.ask(asset, ROWS)
    run = stage.held_by(dagster.materialize(asset, partition="berlin"))
    waiting = stage.shown(asset)
    results = f"{stage.batches_of(asset)[0].id}/results"

    stage.close_gate("refused", results, method="GET", status=401)
    stage.simulator.end_batches()
    said = list[str]()
    for _ in range(holding.MOST_FRUITLESS):
        failed = dagster.wait_for_run(run.run_id)
        stage.close_gate("refused", results, method="GET", status=401)
        (run,) = stage.held_runs_of(failed.run_id)
        said.append(run.tags[held_run.LONG_TAG])
    last = dagster.wait_for_run(run.run_id, timeout=300)
    stage.wait_for_ticks("claude_batch_sensor")
    given_up = stage.shown(asset)
    again = stage.see_through(dagster.materialize(asset, partition="berlin"))

    for number, text in enumerate(said, 1):
        assert f"to try again; {number} run{'s' if number > 1 else ''} in a row failed" in text
    assert (last.status, stage.held_runs_of(last.run_id)) == ("FAILURE", [])
    assert "runs in a row have ended without having collected anything" in "\n".join(
        dagster.run_messages(last.run_id)
    )
    assert given_up == Shown({"failed": 1, "missing": 2})
    assert again.status == "SUCCESS"
    assert len(stage.batches_of(asset)) == 1
    assert stage.sql(f"SELECT count(*) FROM {asset}") == [(ROWS,)]
    record("collecting fails: six times in a row", waiting, given_up)
