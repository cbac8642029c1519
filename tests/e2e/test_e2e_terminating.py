from datetime import timedelta

from e2e_stage import Stage

from dagster_claude_batch.landing_job import LEFT_TAG

FORTY_OF_BERLIN = (
    "SELECT 'berlin' AS city, i AS review_id, 'nice ' || i AS review FROM range(40) AS r(i)"
)


def test_batches_of_a_terminated_run_are_cancelled_and_what_was_answered_is_landed(
    stage: Stage,
) -> None:
    stage.fill("terminated", FORTY_OF_BERLIN)
    dagster, simulator = stage.dagster, stage.simulator
    before = len(simulator.batches())

    run_id = dagster.materialize("terminated", partition="berlin")
    dagster.wait_for(lambda: len(simulator.batches()) > before, timeout=180, what="a batch")
    dagster.stop_sensor("impatient_sensor")  # or it might see the run before it is terminated
    held = stage.held_by(run_id)
    simulator.advance(timedelta(hours=1))
    dagster.terminate(held.run_id)
    dagster.start_sensor("impatient_sensor")
    dagster.wait_for(
        lambda: simulator.batches()[-1].ended_at is not None, timeout=180, what="the batch to end"
    )
    dagster.wait_for(
        lambda: any(run.is_ended for run in dagster.runs(tags={LEFT_TAG: "0"})),
        timeout=180,
        what="the landing job",
    )

    counts = simulator.batches()[-1].request_counts
    assert (counts.succeeded, counts.canceled) == (20, 20)
    assert dagster.run(held.run_id).status == "CANCELED"
    assert stage.sql("SELECT count(*) FROM terminated") == [(20,)]
    assert stage.sql("SELECT _error_type, count(*) FROM terminated_failures GROUP BY 1") == [
        ("canceled", 20)
    ]
    assert "berlin" in dagster.failed_and_missing("terminated")


def test_materializing_right_after_a_termination_joins_the_batches_that_are_out(
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
