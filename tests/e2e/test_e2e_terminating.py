"""Terminating a run in each of its states, and materializing again."""

import os
import signal
from collections import Counter
from datetime import timedelta

import pytest
from e2e_stage import Stage

FORTY_OF_BERLIN = (
    "SELECT 'berlin' AS city, i AS review_id, 'nice ' || i AS review FROM range(40) AS r(i)"
)
REFRESH = {"ops": {"refreshed": {"config": {"refresh": True}}}}
WAIT_IN_THE_RUN = {"ops": {"cut_in_the_run": {"config": {"wait": "run"}}}}


@pytest.fixture(scope="module")
def cut(stage: Stage) -> dict[str, str]:
    """Runs terminated while sending, by asset, when five rows of the first batch were answered."""
    for asset in ("cut_short", "cut_in_doubt", "cut_and_resumed"):
        stage.ask(asset, 30)
    stage.ask("cut_in_the_run", 10)
    gates = [
        stage.close_gate("before", "cut_short ", nth=2),
        stage.close_gate("after", "cut_in_doubt ", nth=2),
        stage.close_gate("after", "cut_and_resumed ", nth=2),
    ]
    dagster = stage.dagster

    runs = {
        asset: dagster.materialize(asset, partition="berlin")
        for asset in ("cut_short", "cut_in_doubt", "cut_and_resumed")
    }
    runs["cut_in_the_run"] = dagster.materialize(
        "cut_in_the_run", partition="berlin", run_config=WAIT_IN_THE_RUN
    )
    for gate in gates:
        stage.wait_until_reached(gate)
    _wait_until_said(stage, runs["cut_in_the_run"], "next look in")
    stage.simulator.advance(timedelta(hours=1))
    stage.cancel(*runs.values())
    for gate in gates:
        gate.open()
    return runs


@pytest.fixture(scope="module")
def resumed(stage: Stage, cut: dict[str, str]) -> list[str]:
    """The statuses of the run that resumes what was cut, and of the one it leaves, in their order.

    It is launched right away.
    """
    assert cut
    resuming = stage.dagster.materialize("cut_and_resumed", partition="berlin")
    stage.succeed(resuming)
    return [stage.dagster.run(resuming).status, stage.see_through(resuming).status]


def test_a_run_terminated_between_two_batches_ends_with_its_batches_cancelled_and_no_held_run(
    stage: Stage, cut: dict[str, str]
) -> None:
    first_batches = {asset: stage.batches_of(asset)[0] for asset in cut}

    assert [batch.cancel_initiated_at is not None for batch in first_batches.values()] == [True] * 4
    assert {asset: stage.held_runs_of(run_id) for asset, run_id in cut.items()} == {
        asset: [] for asset in cut
    }
    assert {asset: len(stage.batches_of(asset)) for asset in cut} == {
        "cut_short": 1,
        "cut_in_doubt": 2,
        "cut_and_resumed": 2,
        "cut_in_the_run": 1,
    }


def test_materializing_right_away_takes_over_what_is_out_and_sends_only_rows_without_an_answer(
    stage: Stage, resumed: list[str]
) -> None:
    assert resumed == ["SUCCESS", "SUCCESS"]
    assert stage.dagster.partition_statuses("cut_and_resumed")["berlin"] == "materialized"
    assert stage.sql("SELECT count(*), count(DISTINCT review_id) FROM cut_and_resumed") == [
        (30, 30)
    ]
    sent = Counter(stage.sent("cut_and_resumed"))
    assert (len(sent), Counter(sent.values())) == (30, {1: 25, 2: 5})
    assert _paid_for(stage, "cut_and_resumed") == 30


def test_what_was_answered_is_landed_although_nobody_materializes_and_nothing_more_is_sent(
    stage: Stage, cut: dict[str, str], resumed: list[str]
) -> None:
    assert resumed  # which has ended the batch in doubt

    stage.wait_until_landed("cut_short", "cut_in_doubt", "cut_in_the_run")
    stage.wait_for_ticks("impatient_sensor")

    rows = {asset: stage.sql(f"SELECT count(*) FROM {asset}")[0][0] for asset in cut}
    assert rows == {"cut_short": 5, "cut_in_doubt": 15, "cut_in_the_run": 5, "cut_and_resumed": 30}
    batches = {asset: len(stage.batches_of(asset)) for asset in cut if asset != "cut_and_resumed"}
    assert batches == {"cut_short": 1, "cut_in_doubt": 2, "cut_in_the_run": 1}
    for asset in batches:
        assert "berlin" in stage.dagster.failed_and_missing(asset)


def test_what_was_cut_short_is_completed_by_materializing_again(
    stage: Stage, cut: dict[str, str]
) -> None:
    stage.wait_until_landed("cut_short")

    run = stage.see_through(stage.dagster.materialize("cut_short", partition="berlin"))

    assert (stage.dagster.run(cut["cut_short"]).status, run.status) == ("CANCELED", "SUCCESS")
    assert len(stage.sent("cut_short", after=1)) == 25
    assert stage.sql("SELECT count(*) FROM cut_short") == [(30,)]
    assert _paid_for(stage, "cut_short") == 30


def test_a_run_terminated_while_it_collects_loses_nothing_and_nothing_is_sent_again(
    stage: Stage,
) -> None:
    stage.ask("cut_while_collecting", 10)
    dagster = stage.dagster
    held = stage.held_by(dagster.materialize("cut_while_collecting", partition="berlin"))
    (batch,) = stage.batches_of("cut_while_collecting")
    gate = stage.close_gate("before", f"{batch.id}/results", method="GET")

    stage.simulator.end_batches()
    stage.wait_until_reached(gate)
    stage.cancel(held.run_id)
    gate.open()
    again = dagster.materialize("cut_while_collecting", partition="berlin")
    stage.succeed(again)

    assert len(stage.batches_of("cut_while_collecting")) == 1
    assert dagster.partition_statuses("cut_while_collecting")["berlin"] == "materialized"
    assert stage.sql("SELECT count(*) FROM cut_while_collecting") == [(10,)]
    assert stage.held_runs_of(again) == []


def test_a_terminated_refresh_is_not_gone_on_with_by_a_launch_that_asks_for_none(
    stage: Stage,
) -> None:
    stage.ask("refreshed", 20)
    dagster = stage.dagster
    stage.see_through(dagster.materialize("refreshed", partition="berlin"))
    gate = stage.close_gate("before", "refreshed ", nth=2)

    refresh = dagster.materialize("refreshed", partition="berlin", run_config=REFRESH)
    stage.wait_until_reached(gate)
    stage.simulator.advance(timedelta(hours=1))
    stage.cancel(refresh)
    gate.open()
    run = stage.see_through(dagster.materialize("refreshed", partition="berlin"))

    assert run.status == "SUCCESS"
    assert len(stage.batches_of("refreshed")) == 3
    assert stage.sql("SELECT count(*) FROM refreshed") == [(20,)]
    assert stage.sql("SELECT count(*) FROM refreshed_failures") == [(0,)]


def test_runs_terminated_while_they_plan_have_sent_nothing_and_leave_nothing_behind(
    stage: Stage,
) -> None:
    stage.ask("planning_long", 10)
    stage.ask("locked_out", 10)
    stage.sql("ALTER TABLE planning_long_source RENAME TO all_reviews")
    stage.sql(
        "CREATE VIEW planning_long_source AS SELECT * FROM all_reviews "
        "WHERE (SELECT sum(hash(i)) FROM range(1000000000000) AS numbers(i)) > 0"
    )
    dagster = stage.dagster

    planning = dagster.materialize("planning_long", partition="berlin")
    dagster.wait_for(
        lambda: dagster.run(planning).status == "STARTED" and stage.is_locked(),
        timeout=600,
        what="the run to plan",
    )
    locked_out = dagster.materialize("locked_out", partition="berlin")
    _wait_until_said(stage, locked_out, "is locked by")
    stage.cancel(locked_out, planning)
    held = [*stage.held_runs_of(planning), *stage.held_runs_of(locked_out)]
    sent = stage.sent("planning_long") + stage.sent("locked_out")
    stage.sql("DROP VIEW planning_long_source")
    stage.sql("ALTER TABLE all_reviews RENAME TO planning_long_source")
    again = [
        dagster.materialize(each, partition="berlin") for each in ("planning_long", "locked_out")
    ]
    ended = [stage.see_through(run_id) for run_id in again]

    assert (held, sent) == ([], [])
    assert [run.status for run in ended] == ["SUCCESS", "SUCCESS"]
    for asset in ("planning_long", "locked_out"):
        assert stage.sent(asset) == sorted(f"{asset} berlin {number}" for number in range(10))
        assert dagster.partition_statuses(asset)["berlin"] == "materialized"


def test_a_run_that_is_interrupted_but_that_nobody_terminated_cancels_nothing_and_is_gone_on_with(
    stage: Stage,
) -> None:
    stage.ask("interrupted", 20)
    dagster = stage.dagster
    gate = stage.close_gate("before", "interrupted ", nth=2)

    run_id = dagster.materialize("interrupted", partition="berlin")
    stage.wait_until_reached(gate)
    os.kill(stage.pid_of(run_id), signal.SIGINT)
    interrupted = dagster.wait_for_run(run_id)
    gate.open()
    (batch,) = stage.batches_of("interrupted")
    stage.simulator.advance(timedelta(hours=1))  # the second batch would have been seen by now
    run = stage.see_through(run_id)

    assert interrupted.status == "FAILURE"
    assert batch.cancel_initiated_at is None
    assert run.status == "SUCCESS"
    sent = stage.sent("interrupted")
    assert len(sent) == len(set(sent)) == 20
    assert dagster.partition_statuses("interrupted")["berlin"] == "materialized"


@pytest.mark.exhaustive
def test_a_run_that_cannot_cancel_because_the_database_is_locked_ends_as_cancelled_soon(
    stage: Stage,
) -> None:
    stage.ask("cut_while_locked", 20)
    dagster = stage.dagster
    gate = stage.close_gate("after", "cut_while_locked ")

    run_id = dagster.materialize("cut_while_locked", partition="berlin")
    stage.wait_until_reached(gate)
    with stage.locked():
        stage.cancel(run_id)
    gate.open()
    stage.simulator.advance(timedelta(hours=1))  # a second batch of that call would be seen by now
    (first,) = stage.batches_of("cut_while_locked")
    held = stage.held_runs_of(run_id)
    run = stage.see_through(dagster.materialize("cut_while_locked", partition="berlin"))

    assert (held, first.cancel_initiated_at) == ([], None)
    assert run.status == "SUCCESS"
    sent = stage.sent("cut_while_locked")
    assert len(sent) == len(set(sent)) == 20
    assert stage.sql("SELECT count(*) FROM cut_while_locked") == [(20,)]


def test_batches_of_a_terminated_held_run_are_cancelled_and_what_was_answered_is_landed(
    stage: Stage,
) -> None:
    stage.fill("terminated", FORTY_OF_BERLIN)
    dagster, simulator = stage.dagster, stage.simulator
    before = len(simulator.batches())

    run_id = dagster.materialize("terminated", partition="berlin")
    dagster.wait_for(lambda: len(simulator.batches()) > before, timeout=600, what="a batch")
    dagster.stop_sensor("impatient_sensor")  # or it might see the run before it is terminated
    held = stage.held_by(run_id)
    simulator.advance(timedelta(hours=1))
    dagster.terminate(held.run_id)
    dagster.start_sensor("impatient_sensor")
    dagster.wait_for(
        lambda: simulator.batches()[-1].ended_at is not None, timeout=600, what="the batch to end"
    )
    stage.wait_until_landed("terminated")

    counts = simulator.batches()[-1].request_counts
    assert (counts.succeeded, counts.canceled) == (20, 20)
    assert dagster.run(held.run_id).status == "CANCELED"
    assert stage.sql("SELECT count(*) FROM terminated") == [(20,)]
    assert stage.sql("SELECT _error_type, count(*) FROM terminated_failures GROUP BY 1") == [
        ("canceled", 20)
    ]
    assert "berlin" in dagster.failed_and_missing("terminated")


def test_materializing_right_after_a_held_run_was_terminated_takes_over_what_is_out(
    stage: Stage,
) -> None:
    stage.fill("joined", FORTY_OF_BERLIN)
    before = len(stage.simulator.batches())

    held = stage.held_by(stage.dagster.materialize("joined", partition="berlin"))
    stage.dagster.terminate(held.run_id)
    again = stage.held_by(stage.dagster.materialize("joined", partition="berlin"))
    stage.simulator.end_batches()
    stage.succeed(again.run_id)

    assert len(stage.simulator.batches()) == before + 1
    assert stage.dagster.run(held.run_id).status == "CANCELED"
    assert stage.dagster.partition_statuses("joined")["berlin"] == "materialized"
    assert stage.sql("SELECT count(*) FROM joined") == [(40,)]
    states = "SELECT state FROM claude_batch.materializations WHERE asset = 'joined' ORDER BY "
    assert stage.sql(f"{states} started_at") == [("cancelled",), ("done",)]


def _wait_until_said(stage: Stage, run_id: str, said: str) -> None:
    stage.dagster.wait_for(
        lambda: any(said in message for message in stage.dagster.run_messages(run_id)),
        timeout=600,
        what=f"the run to say: {said}",
    )


def _paid_for(stage: Stage, asset: str) -> int:
    of_asset = {batch.id for batch in stage.batches_of(asset)}
    return sum(billed.batch_id in of_asset for billed in stage.simulator.bill())
