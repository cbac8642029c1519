from e2e_stage import Stage

CITIES = ("amsterdam", "berlin", "copenhagen")


def test_a_backfill_waits_without_a_run_in_progress_and_then_materializes_everything(
    stage: Stage,
) -> None:
    stage.fill(
        "backfilled",
        [
            (city, i, f"{'refused' if i < 2 else 'nice'} {city} {i}")
            for city in CITIES
            for i in range(40)
        ],
    )
    dagster = stage.dagster

    backfill_id = dagster.launch_backfill(["backfilled", "backfilled_read"], CITIES)
    dagster.wait_for(
        lambda: "3 runs wait for 3 batches" in (dagster.ticks("claude_batch_sensor", limit=1)[0].skip_reason or ""),
        timeout=120,
        what="three runs to wait",
    )

    materializing = dict.fromkeys(CITIES, "materializing")
    assert dagster.partition_statuses("backfilled") == materializing
    assert dagster.partition_statuses("backfilled_read") == materializing
    assert dagster.failed_and_missing("backfilled") == []
    assert dagster.backfill(backfill_id).status == "REQUESTED"
    assert dagster.runs(statuses=["STARTING", "STARTED"]) == []
    queued = dagster.runs(statuses=["QUEUED"])
    assert sorted(run.partition for run in queued) == list(CITIES)

    stage.simulator.end_batches()
    backfill = dagster.wait_for_backfill(backfill_id, timeout=150)

    assert (backfill.status, backfill.materialized, backfill.failed) == ("COMPLETED_SUCCESS", 6, 0)
    assert dagster.partition_statuses("backfilled") == dict.fromkeys(CITIES, "materialized")
    assert dagster.partition_statuses("backfilled_read") == dict.fromkeys(CITIES, "materialized")
    assert stage.sql(
        "SELECT _partition, count(*), count(DISTINCT review_id) FROM backfilled GROUP BY ALL ORDER BY ALL"
    ) == [(city, 38, 38) for city in CITIES]
