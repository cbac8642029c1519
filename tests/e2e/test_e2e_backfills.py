from e2e_stage import Stage

CITIES = ("amsterdam", "berlin", "copenhagen")


def test_a_backfill_waits_without_a_run_in_progress_and_then_materializes_everything(
    stage: Stage,
) -> None:
    stage.fill(
        "backfilled",
        "SELECT city, i AS review_id, if(i < 2, 'refused', 'nice') || ' in ' || city AS review "
        "FROM (VALUES ('amsterdam'), ('berlin'), ('copenhagen')) AS c(city), range(40) AS r(i)",
    )
    dagster = stage.dagster

    backfill_id = dagster.launch_backfill(["backfilled", "backfilled_read"], CITIES)
    dagster.wait_for(
        lambda: len(dagster.backfill_runs(backfill_id, statuses=["SUCCESS"])) == 3,
        timeout=180,
        what="the three runs that submit",
    )
    stage.wait_until_seen("3 runs with 3 partitions wait for 3 batches")

    materializing = dict.fromkeys(CITIES, "materializing")
    assert dagster.partition_statuses("backfilled") == materializing
    assert dagster.partition_statuses("backfilled_read") == materializing
    assert dagster.failed_and_missing("backfilled") == []
    assert dagster.backfill(backfill_id).status == "REQUESTED"
    assert dagster.runs(statuses=["STARTING", "STARTED"]) == []
    queued = dagster.runs(statuses=["QUEUED"])
    assert sorted(str(run.partition) for run in queued) == list(CITIES)

    stage.simulator.end_batches()
    backfill = dagster.wait_for_backfill(backfill_id)

    materialized = dict.fromkeys(CITIES, "materialized")
    assert (backfill.status, backfill.materialized, backfill.failed) == ("COMPLETED_SUCCESS", 6, 0)
    assert dagster.partition_statuses("backfilled") == materialized
    assert dagster.partition_statuses("backfilled_read") == materialized
    counts = "SELECT _partition, count(*), count(DISTINCT review_id) FROM {} GROUP BY 1 ORDER BY 1"
    assert stage.sql(counts.format("backfilled")) == [(city, 38, 38) for city in CITIES]
    assert stage.sql(counts.format("backfilled_failures")) == [(city, 2, 2) for city in CITIES]
    assert stage.sql(counts.format("backfilled_read")) == [(city, 38, 38) for city in CITIES]
    assert stage.sql("SELECT DISTINCT _partition, response FROM backfilled_read ORDER BY ALL") == [
        ("amsterdam", "NICE IN AMSTERDAM"),
        ("berlin", "NICE IN BERLIN"),
        ("copenhagen", "NICE IN COPENHAGEN"),
    ]


def test_a_partition_fails_above_the_failure_rate_and_only_its_failed_rows_are_sent_to_cure_it(
    stage: Stage,
) -> None:
    stage.fill(
        "failing",
        "SELECT city, i AS review_id, "
        "if(city = 'berlin' AND i < 2, 'doomed ', 'nice ') || i AS review "
        "FROM (VALUES ('amsterdam'), ('berlin')) AS c(city), range(100) AS r(i)",
    )
    dagster = stage.dagster

    run = stage.see_through(dagster.materialize("failing", partition_range=("amsterdam", "berlin")))

    assert run.status == "FAILURE"
    assert dagster.partition_statuses("failing") == {
        "amsterdam": "materialized",
        "berlin": "failed",
        "copenhagen": "missing",
    }
    message = "\n".join(dagster.run_messages(run.run_id))
    assert (
        "2 of 100 rows of partition 'berlin' failed (2.00%, tolerated are 1.00%): "
        "2 overloaded_error." in message
    )
    assert "All answers are in main.failing, the failed rows with their reasons in " in message
    assert "main.failing_failures. Materializing again sends only the failures" in message
    assert stage.sql("SELECT _partition, count(*) FROM failing GROUP BY 1 ORDER BY 1") == [
        ("amsterdam", 100),
        ("berlin", 98),
    ]
    assert stage.sql("SELECT review_id, _attempts FROM failing_failures ORDER BY 1") == [
        (0, 2),
        (1, 2),
    ]

    stage.cure()
    batches = len(stage.simulator.batches())
    dagster.launch_failed_and_missing("failing")
    dagster.wait_for(
        lambda: len(stage.simulator.batches()) > batches, timeout=180, what="another batch"
    )
    stage.simulator.end_batches()
    dagster.wait_for_statuses(
        "failing", dict.fromkeys(("amsterdam", "berlin", "copenhagen"), "materialized")
    )

    assert stage.questions(after=batches) == ["doomed 0", "doomed 1"]
    assert stage.sql("SELECT count(*) FROM failing WHERE _partition = 'berlin'") == [(100,)]
    assert stage.sql("SELECT count(*) FROM failing_failures") == [(0,)]


def test_a_range_of_partitions_is_materialized_by_one_run(stage: Stage) -> None:
    stage.fill(
        "in_one_run",
        "SELECT city, i AS review_id, 'nice ' || i AS review "
        "FROM (VALUES ('amsterdam'), ('berlin'), ('copenhagen')) AS c(city), range(10) AS r(i)",
    )
    dagster = stage.dagster

    held = stage.held_by(
        dagster.materialize("in_one_run", partition_range=("amsterdam", "copenhagen"))
    )
    waiting = dagster.partition_statuses("in_one_run")
    stage.simulator.end_batches()
    stage.succeed(held.run_id)

    assert waiting == dict.fromkeys(CITIES, "materializing")
    assert dagster.partition_statuses("in_one_run") == dict.fromkeys(CITIES, "materialized")
    assert stage.sql("SELECT _partition, count(*) FROM in_one_run GROUP BY 1 ORDER BY 1") == [
        (city, 10) for city in CITIES
    ]
