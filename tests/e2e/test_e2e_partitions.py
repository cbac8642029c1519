import pytest
from e2e_situations import Shown, record
from e2e_stage import Stage

SITUATIONS = {
    "unpartitioned": "backfill policy: an asset without partitions",
    "daily": "partitions: one",
    "by_city_and_day": "backfill policy: a multi-partition",
}

OF_ITS_DIMENSIONS = {"dagster/partition/city": "berlin", "dagster/partition/day": "2026-03-02"}
"""What the UI puts on a run of a multi-partition; before 1.13 an IO manager needs it."""


@pytest.fixture(scope="module", autouse=True)
def shown(stage: Stage) -> dict[str, tuple[Shown, Shown]]:
    """What is shown of one partition of each asset, while it waits and at the end.

    Each is materialized together with what reads it downstream.
    """
    stage.fill(
        "unpartitioned",
        "SELECT i AS review_id, 'unpartitioned ' || i AS review FROM range(3) AS r(i)",
    )
    stage.fill(
        "daily",
        "FROM (VALUES "
        "(1, 'daily before', TIMESTAMP '2026-03-01 23:59:59.999'), "
        "(2, 'daily midnight', TIMESTAMP '2026-03-02 00:00:00'), "
        "(3, 'daily evening', TIMESTAMP '2026-03-02 23:59:59.999'), "
        "(4, 'daily after', TIMESTAMP '2026-03-03 00:00:00')"
        ") AS v(review_id, review, written_at)",
    )
    stage.fill(
        "by_city_and_day",
        "FROM (VALUES "
        "(1, 'by_city_and_day other day', 'berlin', TIMESTAMP '2026-03-01 12:00:00'), "
        "(2, 'by_city_and_day this one', 'berlin', TIMESTAMP '2026-03-02 12:00:00'), "
        "(3, 'by_city_and_day other city', 'amsterdam', TIMESTAMP '2026-03-02 12:00:00')"
        ") AS v(review_id, review, city, written_at)",
    )
    launched = [
        stage.dagster.materialize(asset, f"{asset}_read", partition=partition, tags=tags)
        for asset, partition, tags in (
            ("unpartitioned", None, {}),
            ("daily", "2026-03-02", {}),
            ("by_city_and_day", "berlin|2026-03-02", OF_ITS_DIMENSIONS),
        )
    ]
    held = [stage.held_by(run_id) for run_id in launched]
    waiting = {asset: stage.shown(asset) for asset in SITUATIONS}
    stage.simulator.end_batches()
    for run in held:
        stage.succeed(run.run_id)
    return {asset: (waiting[asset], stage.shown(asset)) for asset in SITUATIONS}


@pytest.mark.parametrize(
    ("asset", "others"), [("unpartitioned", 0), ("daily", 2), ("by_city_and_day", 8)]
)
def test_one_partition_is_materializing_until_its_results_are_there(
    shown: dict[str, tuple[Shown, Shown]], asset: str, others: int
) -> None:
    waiting, at_the_end = shown[asset]

    missing = {"missing": others} if others else {}
    assert waiting == Shown({"materializing": 1, **missing}, queued=1, batches_out=1)
    assert at_the_end == Shown({"materialized": 1, **missing})

    record(SITUATIONS[asset], waiting, at_the_end)


def test_an_asset_without_partitions_is_read_downstream(stage: Stage) -> None:
    assert stage.sql("FROM unpartitioned_read ORDER BY review_id") == [
        (None, 0, "UNPARTITIONED 0"),
        (None, 1, "UNPARTITIONED 1"),
        (None, 2, "UNPARTITIONED 2"),
    ]


def test_the_rows_of_a_day_are_read_downstream(stage: Stage) -> None:
    assert stage.dagster.partition_statuses("daily_read") == {
        "2026-03-01": "missing",
        "2026-03-02": "materialized",
        "2026-03-03": "missing",
    }
    assert stage.sql("FROM daily_read ORDER BY review_id") == [
        ("2026-03-02", 2, "DAILY MIDNIGHT"),
        ("2026-03-02", 3, "DAILY EVENING"),
    ]


def test_the_rows_of_a_city_on_a_day_are_read_downstream(stage: Stage) -> None:
    statuses = stage.dagster.partition_statuses("by_city_and_day_read")
    assert [key for key, status in statuses.items() if status == "materialized"] == [
        "berlin|2026-03-02"
    ]
    assert stage.sql("FROM by_city_and_day_read ORDER BY review_id") == [
        ("berlin|2026-03-02", 2, "BY_CITY_AND_DAY THIS ONE")
    ]
