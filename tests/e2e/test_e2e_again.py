import pytest
from e2e_stage import Stage


@pytest.fixture(scope="module", autouse=True)
def answered(stage: Stage) -> None:
    """Fifty reviews of Berlin that have been answered."""
    stage.fill(
        "asked_again",
        "SELECT 'berlin' AS city, i AS review_id, 'nice ' || i AS review FROM range(50) AS r(i)",
    )
    stage.see_through(stage.dagster.materialize("asked_again", partition="berlin"))


def test_materializing_again_sends_nothing_and_holds_no_run(stage: Stage) -> None:
    before = stage.simulator.batches()

    run_id = stage.dagster.materialize("asked_again", partition="berlin")
    stage.succeed(run_id)

    assert stage.simulator.batches() == before
    assert all(run.is_ended for run in stage.dagster.runs_of("asked_again"))
    assert stage.dagster.asset_materializations("asked_again")[0].run_id == run_id


def test_materializing_again_sends_exactly_the_rows_that_have_changed(stage: Stage) -> None:
    before = len(stage.simulator.batches())
    stage.sql("UPDATE asked_again_source SET review = 'changed ' || review_id WHERE review_id < 5")

    run = stage.see_through(stage.dagster.materialize("asked_again", partition="berlin"))

    assert run.status == "SUCCESS"
    assert stage.questions(after=before) == [f"changed {number}" for number in range(5)]
    assert stage.sql(
        "SELECT count(*) FILTER (response LIKE 'CHANGED%'), count(*) FROM asked_again"
    ) == [(5, 50)]
