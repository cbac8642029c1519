import pytest
from e2e_stage import Stage


@pytest.fixture(scope="module", autouse=True)
def materialized(stage: Stage) -> None:
    """One partition of each asset, together with what reads it downstream."""
    stage.fill(
        "unpartitioned", "SELECT i AS review_id, 'nice ' || i AS review FROM range(3) AS r(i)"
    )
    stage.fill(
        "daily",
        "FROM (VALUES "
        "(1, 'day before', TIMESTAMP '2026-03-01 23:59:59.999'), "
        "(2, 'midnight', TIMESTAMP '2026-03-02 00:00:00'), "
        "(3, 'evening', TIMESTAMP '2026-03-02 23:59:59.999'), "
        "(4, 'day after', TIMESTAMP '2026-03-03 00:00:00')"
        ") AS v(review_id, review, written_at)",
    )
    stage.fill(
        "by_city_and_day",
        "FROM (VALUES "
        "(1, 'other day', 'berlin', TIMESTAMP '2026-03-01 12:00:00'), "
        "(2, 'this one', 'berlin', TIMESTAMP '2026-03-02 12:00:00'), "
        "(3, 'other city', 'amsterdam', TIMESTAMP '2026-03-02 12:00:00')"
        ") AS v(review_id, review, city, written_at)",
    )
    launched = [
        stage.dagster.materialize(asset, f"{asset}_read", partition=partition)
        for asset, partition in (
            ("unpartitioned", None),
            ("daily", "2026-03-02"),
            ("by_city_and_day", "berlin|2026-03-02"),
        )
    ]
    held = [stage.held_by(run_id) for run_id in launched]
    stage.simulator.end_batches()
    for run in held:
        stage.succeed(run.run_id)


def test_an_asset_without_partitions_is_read_downstream(stage: Stage) -> None:
    assert stage.sql("FROM unpartitioned_read ORDER BY review_id") == [
        (None, 0, "NICE 0"),
        (None, 1, "NICE 1"),
        (None, 2, "NICE 2"),
    ]


def test_the_rows_of_a_day_are_read_downstream(stage: Stage) -> None:
    assert stage.dagster.partition_statuses("daily_read") == {
        "2026-03-01": "missing",
        "2026-03-02": "materialized",
        "2026-03-03": "missing",
    }
    assert stage.sql("FROM daily_read ORDER BY review_id") == [
        ("2026-03-02", 2, "MIDNIGHT"),
        ("2026-03-02", 3, "EVENING"),
    ]


def test_the_rows_of_a_city_on_a_day_are_read_downstream(stage: Stage) -> None:
    statuses = stage.dagster.partition_statuses("by_city_and_day_read")
    assert [key for key, status in statuses.items() if status == "materialized"] == [
        "berlin|2026-03-02"
    ]
    assert stage.sql("FROM by_city_and_day_read ORDER BY review_id") == [
        ("berlin|2026-03-02", 2, "THIS ONE")
    ]
