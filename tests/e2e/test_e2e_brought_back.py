"""Collecting runs that fail, and that nobody looks after: another one tries again."""

import os
import signal

from e2e_stage import Stage

from dagster_claude_batch import held_run


def test_a_collecting_run_that_fails_leaves_another_one_that_tries_again(stage: Stage) -> None:
    stage.ask("brought_back", 10)
    dagster = stage.dagster
    backfill = dagster.launch_backfill(["brought_back"], ["berlin"])
    (batch,) = stage.wait_for_batches("brought_back", 1)
    (submitting,) = dagster.backfill_runs(backfill, statuses=["STARTED", "SUCCESS"])
    held = stage.held_by(submitting.run_id)

    stage.close_gate("refused", f"{batch.id}/results", method="GET", status=401)
    stage.simulator.end_batches()
    failed = dagster.wait_for_run(held.run_id)
    (again,) = stage.held_runs_of(held.run_id)
    meanwhile = dagster.partition_statuses("brought_back")["berlin"]
    is_open = not dagster.backfill(backfill).is_ended
    stage.succeed(again.run_id)

    assert failed.status == "FAILURE"
    assert (meanwhile, is_open) == ("materializing", True)
    assert again.tags[held_run.SHORT_TAG].startswith("again at ")
    assert failed.tags[held_run.SHORT_TAG] == f"again by run {again.run_id[:8]}"
    assert dagster.wait_for_backfill(backfill).status == "COMPLETED_SUCCESS"
    assert dagster.partition_statuses("brought_back")["berlin"] == "materialized"
    assert len(stage.batches_of("brought_back")) == 1
    assert stage.sql("SELECT count(*) FROM brought_back") == [(10,)]


def test_a_collecting_run_that_is_killed_is_gone_on_with_and_its_backfill_stays_open(
    stage: Stage,
) -> None:
    asset, cities, dagster = "brought_back_by_the_sensor", ("amsterdam", "berlin"), stage.dagster
    stage.ask(asset, 10, cities=cities)
    by_itself = stage.held_by(dagster.materialize(asset, partition="amsterdam"))
    backfill = dagster.launch_backfill([asset], ["berlin"])
    batches = stage.wait_for_batches(asset, 2)
    (submitting,) = dagster.backfill_runs(backfill, statuses=["STARTED", "SUCCESS"])
    held = [by_itself, stage.held_by(submitting.run_id)]
    gates = [stage.close_gate("before", f"{batch.id}/results", method="GET") for batch in batches]

    stage.simulator.end_batches()
    for gate, run in zip(gates, held, strict=True):
        stage.wait_until_reached(gate)
        os.kill(stage.pid_of(run.run_id), signal.SIGKILL)
        gate.open()
    killed = [dagster.wait_for_run(run.run_id) for run in held]
    for run in held:
        (again,) = dagster.wait_for(
            lambda run=run: stage.held_runs_of(run.run_id), timeout=180, what="the next run"
        )
        stage.succeed(again.run_id)

    assert [run.status for run in killed] == ["FAILURE", "FAILURE"]
    assert dagster.wait_for_backfill(backfill).status == "COMPLETED_SUCCESS"
    for run in killed:
        assert dagster.run(run.run_id).tags[held_run.SHORT_TAG].startswith("again by run ")
    for city in cities:
        assert dagster.partition_statuses(asset)[city] == "materialized"
    assert len(stage.batches_of(asset)) == 2
    assert stage.sql(f"SELECT count(*) FROM {asset}") == [(20,)]
