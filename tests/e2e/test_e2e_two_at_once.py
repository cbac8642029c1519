"""Several runs of the same partitions: at once, again, and one after another's end."""

from datetime import timedelta

from e2e_stage import Stage

from dagster_claude_batch import held_run

TEN = 10


def test_overlapping_backfills_both_end_well_and_send_each_row_once(stage: Stage) -> None:
    stage.ask("backfilled_twice", TEN, cities=("amsterdam", "berlin"))
    dagster = stage.dagster

    first = dagster.launch_backfill(["backfilled_twice"], ["amsterdam", "berlin"])
    second = dagster.launch_backfill(["backfilled_twice"], ["berlin"])
    dagster.wait_for(
        lambda: (
            [len(dagster.backfill_runs(each, statuses=["SUCCESS"])) for each in (first, second)]
            == [2, 1]
        ),
        timeout=600,
        what="the three runs that submit, or join",
    )
    out = len(stage.batches_of("backfilled_twice"))
    stage.simulator.end_batches()
    ended = [dagster.wait_for_backfill(each) for each in (first, second)]

    assert [backfill.status for backfill in ended] == ["COMPLETED_SUCCESS", "COMPLETED_SUCCESS"]
    assert [(backfill.materialized, backfill.failed) for backfill in ended] == [(2, 0), (1, 0)]
    assert out == len(stage.batches_of("backfilled_twice")) == 2
    sent = stage.sent("backfilled_twice")
    assert len(sent) == len(set(sent)) == 2 * TEN
    assert stage.sql("SELECT count(*) FROM backfilled_twice") == [(2 * TEN,)]


def test_executing_runs_again_sends_nothing_and_a_terminated_one_does_not_cancel_for_the_others(
    stage: Stage,
) -> None:
    stage.ask("executed_again", TEN)
    dagster = stage.dagster
    submitting = dagster.materialize("executed_again", partition="berlin")
    held = stage.held_by(submitting)

    while_out = stage.held_by(dagster.reexecute(submitting))
    stage.cancel(held.run_id)
    dagster.wait_for(
        lambda: dagster.run(held.run_id).tags[held_run.SHORT_TAG] == "ended without results",
        timeout=600,
        what="the landing job to look after the cancelled run",
    )
    (batch,) = stage.batches_of("executed_again")
    stage.simulator.end_batches()
    stage.succeed(while_out.run_id)
    again = [dagster.reexecute(run_id) for run_id in (submitting, while_out.run_id)]
    for run_id in again:
        stage.succeed(run_id)

    assert batch.cancel_initiated_at is None
    assert len(stage.batches_of("executed_again")) == 1
    assert [stage.held_runs_of(run_id) for run_id in again] == [[], []]
    assert dagster.partition_statuses("executed_again")["berlin"] == "materialized"
    assert [event.run_id for event in dagster.asset_materializations("executed_again")] == [
        *reversed(again),
        while_out.run_id,
    ]


def test_a_retry_by_dagster_of_a_run_whose_materialization_is_done_sends_nothing_and_says_so(
    stage: Stage,
) -> None:
    stage.fill(
        "retried_by_dagster",
        "SELECT 'berlin' AS city, i AS review_id, 'refused ' || i AS review FROM range(10) AS r(i)",
    )
    dagster = stage.dagster
    before = len(stage.simulator.batches())

    held = stage.held_by(
        dagster.materialize(
            "retried_by_dagster", partition="berlin", tags={"dagster/max_retries": "1"}
        )
    )
    stage.simulator.end_batches()
    failed = dagster.wait_for_run(held.run_id)
    (retry,) = dagster.wait_for(
        lambda: dagster.runs(tags={"dagster/parent_run_id": held.run_id}),
        timeout=600,
        what="the retry",
    )
    retried = dagster.wait_for_run(retry.run_id)

    assert (failed.status, retried.status) == ("FAILURE", "FAILURE")
    message = "\n".join(dagster.run_messages(retry.run_id))
    assert f"This run is an automatic retry of run {held.run_id}, whose materialization" in message
    assert "so nothing was sent" in message
    assert len(stage.simulator.batches()) == before + 1
    stage.wait_for_ticks("claude_batch_sensor")
    assert stage.held_runs_of(retry.run_id) == []
    assert dagster.partition_statuses("retried_by_dagster")["berlin"] == "failed"


def test_a_run_that_fails_between_two_batches_leaves_the_rest_to_the_run_that_it_held(
    stage: Stage,
) -> None:
    stage.ask("broken_off", 2 * TEN)
    dagster = stage.dagster
    second = stage.close_gate("before", "broken_off ", nth=2)

    run_id = dagster.materialize("broken_off", partition="berlin")
    stage.wait_until_reached(second)
    (batch,) = stage.batches_of("broken_off")
    stage.close_gate("refused", "broken_off ", status=413)
    stage.close_gate("refused", batch.id, method="GET", status=401)
    second.open()
    failed = dagster.wait_for_run(run_id)
    run = stage.see_through(run_id)

    assert failed.status == "FAILURE"
    assert run.status == "SUCCESS"
    sent = stage.sent("broken_off")
    assert len(sent) == len(set(sent)) == 2 * TEN
    assert dagster.partition_statuses("broken_off")["berlin"] == "materialized"
    assert stage.sql("SELECT count(*) FROM broken_off") == [(2 * TEN,)]


def test_terminating_the_run_that_sends_does_not_cancel_what_another_waits_for(
    stage: Stage,
) -> None:
    stage.ask("maker_cancelled", 2 * TEN)
    dagster = stage.dagster
    gate = stage.close_gate("before", "maker_cancelled ", nth=2)

    sending = dagster.materialize("maker_cancelled", partition="berlin")
    stage.wait_until_reached(gate)
    joining = stage.held_by(dagster.materialize("maker_cancelled", partition="berlin"))
    stage.cancel(sending)
    gate.open()
    (first,) = stage.batches_of("maker_cancelled")
    stage.simulator.advance(timedelta(hours=1))  # the second batch would have been seen by now
    run = stage.see_through(joining.run_id)

    assert first.cancel_initiated_at is None
    assert run.status == "SUCCESS"
    assert stage.held_runs_of(sending) == []
    sent = stage.sent("maker_cancelled")
    assert len(sent) == len(set(sent)) == 2 * TEN
    assert stage.sql("SELECT count(*) FROM maker_cancelled") == [(2 * TEN,)]
