from e2e_situations import Shown, record
from e2e_stage import Stage

CITIES = ("amsterdam", "berlin", "copenhagen")


def test_a_backfill_waits_without_a_run_in_progress_and_then_materializes_everything(
    stage: Stage,
) -> None:
    stage.fill(
        "backfilled",
        "SELECT city, i AS review_id, 'backfilled ' || if(i < 2, 'refused', 'nice') AS review "
        "FROM (VALUES ('amsterdam'), ('berlin'), ('copenhagen')) AS c(city), range(40) AS r(i)",
    )
    dagster = stage.dagster

    backfill_id = dagster.launch_backfill(["backfilled", "backfilled_read"], CITIES)
    dagster.wait_for(
        lambda: len(dagster.backfill_runs(backfill_id, statuses=["SUCCESS"])) == 3,
        timeout=600,
        what="the three runs that submit",
    )
    stage.wait_until_seen("3 runs with 3 partitions wait for 3 batches")

    waiting = stage.shown("backfilled", backfill_id)
    assert waiting == Shown({"materializing": 3}, "REQUESTED", queued=3, batches_out=3)
    assert stage.shown("backfilled_read") == Shown({"materializing": 3}, queued=3)
    assert dagster.failed_and_missing("backfilled") == []
    assert [run for run in dagster.runs_of("backfilled") if run.is_in_progress] == []
    queued = [run for run in dagster.runs_of("backfilled") if run.status == "QUEUED"]
    assert sorted(str(run.partition) for run in queued) == list(CITIES)

    stage.simulator.end_batches()
    backfill = dagster.wait_for_backfill(backfill_id)

    at_the_end = stage.shown("backfilled", backfill_id)
    assert at_the_end == Shown({"materialized": 3}, "COMPLETED_SUCCESS")
    assert stage.shown("backfilled_read") == Shown({"materialized": 3})
    assert (backfill.materialized, backfill.failed) == (6, 0)
    (newest,) = dagster.check_executions("backfilled", "failure_rate", limit=1)
    assert newest.status == "SUCCEEDED"
    events = dagster.asset_materializations("backfilled")
    assert [event.metadata["waiting_for_batches"] for event in events] == [0, 0, 0]
    counts = "SELECT _partition, count(*), count(DISTINCT review_id) FROM {} GROUP BY 1 ORDER BY 1"
    assert stage.sql(counts.format("backfilled")) == [(city, 38, 38) for city in CITIES]
    assert stage.sql(counts.format("backfilled_failures")) == [(city, 2, 2) for city in CITIES]
    assert stage.sql(counts.format("backfilled_read")) == [(city, 38, 38) for city in CITIES]
    assert stage.sql("SELECT DISTINCT _partition, response FROM backfilled_read ORDER BY ALL") == [
        (city, "BACKFILLED NICE") for city in CITIES
    ]

    record("partitions: all, one run each", waiting, at_the_end)


def test_a_partition_fails_above_the_failure_rate_and_only_its_failed_rows_are_sent_to_cure_it(
    stage: Stage,
) -> None:
    stage.fill(
        "failing",
        "SELECT city, i AS review_id, "
        "'failing ' || if(city <> 'berlin' AND i < 2, 'doomed ', 'nice ') || i AS review "
        f"FROM (SELECT unnest({list(CITIES)}) AS city), range(100) AS r(i)",
    )
    dagster = stage.dagster

    run = stage.see_through(
        dagster.materialize("failing", partition_range=("amsterdam", "copenhagen"))
    )

    assert run.status == "FAILURE"
    assert dagster.partition_statuses("failing") == {
        "amsterdam": "failed",
        "berlin": "materialized",
        "copenhagen": "failed",
    }
    message = "\n".join(dagster.run_messages(run.run_id))
    assert (
        "2 of 100 rows of partition 'copenhagen' failed (2.00%, tolerated are 1.00%): "
        "2 overloaded_error." in message
    )
    assert "All answers are in main.failing, the failed rows with their reasons in " in message
    assert "main.failing_failures. Materializing again sends only the failures" in message
    assert stage.sql("SELECT _partition, count(*) FROM failing GROUP BY 1 ORDER BY 1") == [
        ("amsterdam", 98),
        ("berlin", 100),
        ("copenhagen", 98),
    ]
    assert stage.sql(
        "SELECT _partition, review_id, _attempts FROM failing_failures ORDER BY ALL"
    ) == [
        ("amsterdam", 0, 2),
        ("amsterdam", 1, 2),
        ("copenhagen", 0, 2),
        ("copenhagen", 1, 2),
    ]

    stage.cure()
    batches = len(stage.batches_of("failing"))
    backfill_id = dagster.launch_failed_and_missing("failing")
    stage.wait_until_it_waits("failing", runs=2)
    waiting = stage.shown("failing", backfill_id)
    stage.simulator.end_batches()
    stage.wait_until_over("failing", backfill_id)
    at_the_end = stage.shown("failing", backfill_id)

    assert waiting == Shown(
        {"materializing": 2, "materialized": 1}, "REQUESTED", queued=2, batches_out=2
    )
    assert at_the_end == Shown({"materialized": 3}, "COMPLETED_SUCCESS")
    assert stage.sent("failing", after=batches) == 2 * ["failing doomed 0"] + 2 * [
        "failing doomed 1"
    ]
    assert stage.sql("SELECT count(*) FROM failing") == [(300,)]
    assert stage.sql("SELECT count(*) FROM failing_failures") == [(0,)]

    record("partitions: scattered failed ones", waiting, at_the_end)


def test_a_range_of_partitions_is_materialized_by_one_run(stage: Stage) -> None:
    stage.fill(
        "in_one_run",
        "SELECT city, i AS review_id, 'in_one_run ' || i AS review "
        "FROM (VALUES ('amsterdam'), ('berlin'), ('copenhagen')) AS c(city), range(10) AS r(i)",
    )
    dagster = stage.dagster

    held = stage.held_by(
        dagster.materialize("in_one_run", partition_range=("amsterdam", "copenhagen"))
    )
    waiting = stage.shown("in_one_run")
    stage.simulator.end_batches()
    stage.succeed(held.run_id)
    at_the_end = stage.shown("in_one_run")

    assert waiting == Shown({"materializing": 3}, queued=1, batches_out=1)
    assert at_the_end == Shown({"materialized": 3})
    assert stage.sql("SELECT _partition, count(*) FROM in_one_run GROUP BY 1 ORDER BY 1") == [
        (city, 10) for city in CITIES
    ]

    record("partitions: a range, in one run", waiting, at_the_end)
