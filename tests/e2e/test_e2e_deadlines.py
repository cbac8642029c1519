from datetime import timedelta

from e2e_stage import Stage


def test_at_its_deadline_a_run_stops_waiting_and_what_had_no_answer_has_expired(
    stage: Stage,
) -> None:
    dagster = stage.dagster
    assets = ("hurried", "hurried_and_tolerant")
    for asset in assets:
        stage.ask(asset, 10)

    launched = [dagster.materialize(asset, partition="berlin") for asset in assets]
    held = [stage.held_by(run_id) for run_id in launched]
    stage.simulator.advance(timedelta(hours=1))
    for run in held:
        dagster.wait_for_run(run.run_id)
    ended = {asset: _last_of(stage, run_id) for asset, run_id in zip(assets, launched, strict=True)}

    assert ended == {"hurried": "FAILURE", "hurried_and_tolerant": "SUCCESS"}
    assert dagster.partition_statuses("hurried")["berlin"] == "failed"
    assert dagster.partition_statuses("hurried_and_tolerant")["berlin"] == "materialized"
    for asset in assets:
        (batch,) = stage.batches_of(asset)
        assert batch.cancel_initiated_at is not None
        assert stage.sql(f"SELECT count(*) FROM {asset}") == [(5,)]
        assert stage.sql(f"SELECT _error_type, count(*) FROM {asset}_failures GROUP BY 1") == [
            ("expired", 5)
        ]


def _last_of(stage: Stage, run_id: str) -> str:
    """How the last of a chain of runs ended, without ending any batch."""
    run = stage.dagster.wait_for_run(run_id)
    while held := stage.held_runs_of(run.run_id):
        run = stage.dagster.wait_for_run(held[0].run_id)
    return run.status
