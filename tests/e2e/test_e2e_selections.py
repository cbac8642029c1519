"""What people select, how Dagster cuts it into runs, and what else is in a run or downstream."""

from datetime import timedelta

import pytest
from e2e_situations import Shown, record
from e2e_stage import Stage

from dagster_claude_batch import dagster_internals

SHOPS = [f"shop_{number}" for number in range(10)]
HOUR = 3600.0
BAD_SHOPS = {"shop_2", "shop_3", "shop_7"}
WEEK = [f"2026-03-0{day}" for day in range(1, 8)]
CROSSED = ["amsterdam|2026-03-01", "berlin|2026-03-02"]
HELD_RUNS = {
    "several": 2,
    "crossed": 2,
    "thrice": 3,
    "of_customers": 1,
    "twin_one": 1,
    "summed": 2,
    "partly": 1,
    "year": 1,
    "staggered": 2,
}

ALL_OR_NONE = not dagster_internals.ends_stalled_backfills()
"""Whether a backfill would never end that counted a part of a run's partitions."""

Snapshot = dict[str, Shown]


@pytest.fixture(scope="module")
def backfills(stage: Stage) -> dict[str, str]:
    """Everything is launched, and nothing has ended; one batch is an hour older than the others."""
    for asset in ("twin_one", "twin_two", "of_customers"):
        stage.ask(asset, 2, cities=("anna",))
    for asset in ("summed", "staggered", "thrice"):
        stage.ask(asset, 3, cities=("amsterdam", "berlin"))
    stage.fill(
        "crossed",
        "SELECT city, day AS written_at, i AS review_id, concat_ws(' ', 'crossed', city, i) AS "
        "review FROM (VALUES ('amsterdam'), ('berlin')) AS c(city), range(2) AS r(i), "
        "(VALUES (TIMESTAMP '2026-03-01'), (TIMESTAMP '2026-03-02 12:00:00')) AS d(day)",
    )
    stage.ask("several", 1, cities=tuple(WEEK))
    stage.fill(
        "year",
        "SELECT day::DATE AS city, dayofyear(day) AS review_id, 'year ' || day::DATE AS review "
        "FROM range(TIMESTAMP '2025-01-01', TIMESTAMP '2026-01-01', INTERVAL 1 DAY) AS d(day)",
    )
    stage.fill(
        "partly",
        f"SELECT shop AS city, i AS review_id, 'partly ' || i || ' ' || if(i = 0 AND shop IN "
        f"{tuple(sorted(BAD_SHOPS))}, 'refused', 'nice') AS review "
        f"FROM (SELECT unnest({SHOPS}) AS shop), range(4) AS r(i)",
    )
    dagster = stage.dagster

    dagster.materialize("staggered", partition="amsterdam")
    stage.wait_until_it_waits("staggered")
    stage.simulator.advance(timedelta(hours=1))
    dagster.materialize("staggered", partition="berlin")
    dagster.add_partition("customers", "anna")
    dagster.materialize("of_customers", partition="anna")
    dagster.materialize("twin_one", "twin_two")
    dagster.materialize("thrice", partition="berlin")
    dagster.materialize("thrice", partition="berlin")
    days = [WEEK[0], WEEK[1], WEEK[3]]
    return {
        "thrice": dagster.launch_backfill(["thrice"], ["berlin"]),
        "several": dagster.launch_backfill(["several", "several_count"], days),
        "crossed": dagster.launch_backfill(["crossed"], CROSSED),
        "summed": dagster.launch_backfill(["summed", "summed_count"], ["amsterdam", "berlin"]),
        "partly": dagster.launch_backfill(["partly", "partly_count"], SHOPS),
        "year": dagster.launch_backfill(["year"], sorted(dagster.partition_statuses("year"))),
    }


def _shown(stage: Stage, backfills: dict[str, str]) -> Snapshot:
    downstream = {
        "several_count": "several",
        "summed_count": "summed",
        "partly_count": "partly",
        "twin_two": "twin_one",
    }
    return {
        asset: stage.shown(asset, backfills.get(downstream.get(asset, asset)))
        for asset in (*HELD_RUNS, *downstream)
    }


@pytest.fixture(scope="module")
def waiting(stage: Stage, backfills: dict[str, str]) -> Snapshot:
    """What is shown when everything has been sent."""
    for asset, runs in HELD_RUNS.items():
        stage.wait_until_it_waits(asset, runs)
    return _shown(stage, backfills)


@pytest.fixture(scope="module")
def an_hour_before(stage: Stage, waiting: Snapshot) -> Snapshot:
    """What is shown of two partitions when the batch of one has ended, and that of the other not.

    Meanwhile a dynamic key of another asset is deleted.
    """
    assert waiting
    stage.dagster.delete_partition("customers", "anna")
    stage.simulator.advance(timedelta(hours=1))
    stage.dagster.wait_for(
        lambda: stage.shown("staggered").queued == 1 and not stage.shown("staggered").started,
        timeout=240,
        what="the older batch to be collected",
    )
    return {"staggered": stage.shown("staggered"), "year": stage.shown("year")}


@pytest.fixture(scope="module")
def at_the_end(stage: Stage, backfills: dict[str, str], an_hour_before: Snapshot) -> Snapshot:
    """What is shown when all has been collected."""
    assert an_hour_before
    stage.simulator.end_batches()
    for asset in HELD_RUNS:
        stage.wait_until_over(asset, backfills.get(asset))
    return _shown(stage, backfills)


def test_several_partitions_wait_in_one_run_for_each_range_that_the_policy_makes(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["several"] == Shown(
        {"materializing": 3, "missing": 4}, "REQUESTED", queued=2, batches_out=2
    )
    assert at_the_end["several"] == Shown({"materialized": 3, "missing": 4}, "COMPLETED_SUCCESS")
    assert len(stage.sent("several")) == 3

    record(
        "backfill policy: multi run, several partitions", waiting["several"], at_the_end["several"]
    )


def test_a_downstream_with_other_partitions_runs_when_all_of_its_own_have_their_results(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["several_count"] == Shown({"missing": 1}, "REQUESTED")
    assert at_the_end["several_count"] == Shown({"materialized": 1}, "COMPLETED_SUCCESS")
    (event,) = stage.dagster.asset_materializations("several_count")
    assert event.metadata["rows"] == 3

    record(
        "in one run: a downstream with other partitions, in the same backfill",
        waiting["several_count"],
        at_the_end["several_count"],
    )


def test_multi_partitions_of_a_backfill_wait_in_a_run_each(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["crossed"] == Shown(
        {"materializing": 2, "missing": 19}, "REQUESTED", queued=2, batches_out=2
    )
    assert at_the_end["crossed"] == Shown({"materialized": 2, "missing": 19}, "COMPLETED_SUCCESS")
    assert stage.sql("SELECT _partition, count(*) FROM crossed GROUP BY 1 ORDER BY 1") == [
        (key, 2) for key in CROSSED
    ]

    record("backfill policy: multi-partitions", waiting["crossed"], at_the_end["crossed"])


def test_three_launches_of_a_partition_at_once_send_it_once_and_all_end_well(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["thrice"] == Shown(
        {"materializing": 1, "missing": 2}, "REQUESTED", queued=3, batches_out=1
    )
    assert at_the_end["thrice"] == Shown({"materialized": 1, "missing": 2}, "COMPLETED_SUCCESS")
    assert {run.status for run in stage.dagster.runs_of("thrice")} == {"SUCCESS"}
    assert stage.sent("thrice") == [f"thrice berlin {number}" for number in range(3)]
    assert stage.sql("SELECT count(*), count(DISTINCT review_id) FROM thrice") == [(3, 3)]

    record("at once: three launches, one a backfill", waiting["thrice"], at_the_end["thrice"])


def test_what_was_asked_of_a_dynamic_key_that_is_deleted_meanwhile_is_landed(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["of_customers"] == Shown({"materializing": 1}, queued=1, batches_out=1)
    assert at_the_end["of_customers"] == Shown({"materialized": 1})
    assert stage.sql("SELECT _partition, count(*) FROM of_customers GROUP BY 1") == [("anna", 2)]
    collecting, submitting = stage.dagster.runs_of("of_customers")
    assert (submitting.status, collecting.status) == ("SUCCESS", "SUCCESS")
    message = "\n".join(stage.dagster.run_messages(collecting.run_id))
    assert "no partitions of the asset any more: 'anna'. What was answered is in " in message

    record(
        "backfill policy: a dynamic key deleted during the wait",
        waiting["of_customers"],
        at_the_end["of_customers"],
    )


def test_two_batch_assets_in_one_run_are_collected_by_one_run(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    for asset in ("twin_one", "twin_two"):
        assert waiting[asset] == Shown({"materializing": 1}, queued=1, batches_out=1)
        assert at_the_end[asset] == Shown({"materialized": 1})
        assert stage.sql(f"SELECT count(*) FROM {asset}") == [(2,)]
    assert [run.status for run in stage.dagster.runs_of("twin_one")] == ["SUCCESS", "SUCCESS"]

    record("in one run: two batch assets", waiting["twin_one"], at_the_end["twin_one"])


def test_an_unpartitioned_downstream_of_a_backfill_runs_when_all_partitions_have_their_results(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["summed"] == Shown(
        {"materializing": 2, "missing": 1}, "REQUESTED", queued=2, batches_out=2
    )
    assert waiting["summed_count"] == Shown({"missing": 1}, "REQUESTED")
    assert at_the_end["summed"] == Shown({"materialized": 2, "missing": 1}, "COMPLETED_SUCCESS")
    assert at_the_end["summed_count"] == Shown({"materialized": 1}, "COMPLETED_SUCCESS")
    (event,) = stage.dagster.asset_materializations("summed_count")
    assert event.metadata["rows"] == 6

    record("in one run: partitions", waiting["summed"], at_the_end["summed"])
    record(
        "in one run: an unpartitioned downstream of partitions, in the same backfill",
        waiting["summed_count"],
        at_the_end["summed_count"],
    )


def test_of_ten_partitions_in_one_run_the_good_ones_are_materialized_where_a_backfill_can_count_it(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["partly"] == Shown({"materializing": 10}, "REQUESTED", queued=1, batches_out=1)
    ended = {"failed": 10} if ALL_OR_NONE else {"materialized": 7, "failed": 3}
    assert at_the_end["partly"] == Shown(ended, "COMPLETED_FAILED")
    statuses = stage.dagster.partition_statuses("partly")
    failed = {shop for shop, status in statuses.items() if status == "failed"}
    assert failed == (set(SHOPS) if ALL_OR_NONE else BAD_SHOPS)
    assert stage.sql("SELECT count(*), count(DISTINCT _partition) FROM partly") == [(37, 10)]

    record("partly failing: the partitions", waiting["partly"], at_the_end["partly"])


def test_what_is_downstream_of_partitions_that_failed_in_the_same_run_does_not_run_and_it_is_said(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["partly_count"] == Shown({"materializing": 10}, "REQUESTED", queued=1)
    assert at_the_end["partly_count"] == Shown({"failed": 10}, "COMPLETED_FAILED")
    collecting, _ = stage.dagster.runs_of("partly")
    message = "\n".join(stage.dagster.run_messages(collecting.run_id))
    assert "1 of 4 rows of partition 'shop_2' failed (25.00%, tolerated are 1.00%)" in message
    if ALL_OR_NONE:
        assert "Answered too, but not materialized: shop_0, shop_1, shop_4" in message
        assert "Launch these without those that failed" in message
    else:
        assert "Materialized all the same: shop_0, shop_1, shop_4" in message
        assert "not run for any partition: partly_count. Materialize that for the " in message

    record("partly failing: downstream", waiting["partly_count"], at_the_end["partly_count"])


def test_a_year_of_days_waits_in_one_run(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["year"] == Shown({"materializing": 365}, "REQUESTED", queued=1, batches_out=1)
    assert at_the_end["year"] == Shown({"materialized": 365}, "COMPLETED_SUCCESS")
    assert stage.sql("SELECT count(*), count(DISTINCT _partition) FROM year") == [(365, 365)]
    assert len(stage.sent("year")) == 365

    record("many: 365 days in one run", waiting["year"], at_the_end["year"])


def test_a_partition_whose_batch_ends_an_hour_before_the_others_is_there_an_hour_before(
    stage: Stage, waiting: Snapshot, an_hour_before: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["staggered"] == Shown(
        {"materializing": 2, "missing": 1}, queued=2, batches_out=2
    )
    assert an_hour_before["staggered"] == Shown(
        {"materialized": 1, "materializing": 1, "missing": 1}, queued=1, batches_out=1
    )
    assert an_hour_before["year"].batches_out == 1
    assert at_the_end["staggered"] == Shown({"materialized": 2, "missing": 1})
    assert stage.sql("SELECT _partition, count(*) FROM staggered GROUP BY 1 ORDER BY 1") == [
        ("amsterdam", 3),
        ("berlin", 3),
    ]

    record(
        "many: two partitions, the batch of one has ended an hour before the other's",
        an_hour_before["staggered"],
        at_the_end["staggered"],
    )


@pytest.mark.exhaustive
def test_a_year_of_days_waits_in_a_run_for_each_day(stage: Stage) -> None:
    stage.fill(
        "year_day_by_day",
        "SELECT day::DATE AS city, dayofyear(day) AS review_id, "
        "'year_day_by_day ' || day::DATE AS review "
        "FROM range(TIMESTAMP '2025-01-01', TIMESTAMP '2026-01-01', INTERVAL 1 DAY) AS d(day)",
    )
    days = sorted(stage.dagster.partition_statuses("year_day_by_day"))

    backfill_id = stage.dagster.launch_backfill(["year_day_by_day"], days)
    waiting = stage.wait_until_shown(
        "year_day_by_day",
        Shown({"materializing": 365}, "REQUESTED", queued=365, batches_out=365),
        backfill_id,
        timeout=3 * HOUR,
    )
    stage.simulator.end_batches()
    stage.wait_until_over("year_day_by_day", backfill_id, timeout=3 * HOUR)
    at_the_end = stage.shown("year_day_by_day", backfill_id)

    assert at_the_end == Shown({"materialized": 365}, "COMPLETED_SUCCESS")
    assert len(stage.sent("year_day_by_day")) == 365

    record("many: 365 days, one run each", waiting, at_the_end)


@pytest.mark.exhaustive
def test_of_thousands_of_chunks_the_first_may_end_while_the_last_are_being_sent(
    stage: Stage,
) -> None:
    chunks, asset = 2_000, "in_thousands"
    stage.ask(asset, chunks)
    last = stage.close_gate("before", f"{asset} berlin {chunks - 1}")

    run_id = stage.dagster.materialize(asset, partition="berlin")
    stage.wait_until_reached(last, timeout=HOUR)
    stage.simulator.end_batches()
    stage.wait_for_ticks("claude_batch_sensor")
    sending = stage.shown(asset)
    last.open()
    held = stage.held_by(run_id)
    waiting = stage.shown(asset)
    stage.simulator.end_batches()
    stage.succeed(held.run_id, timeout=HOUR)
    at_the_end = stage.shown(asset)

    assert sending == Shown({"materializing": 1, "missing": 2}, started=1, queued=1)
    assert waiting == Shown({"materializing": 1, "missing": 2}, queued=1, batches_out=1)
    assert at_the_end == Shown({"materialized": 1, "missing": 2})
    assert len(stage.sent(asset)) == len(set(stage.sent(asset))) == chunks
    assert stage.sql(f"SELECT count(*) FROM {asset}") == [(chunks,)]

    record(f"many: the last of {chunks:,} chunks, while all others have ended", sending, at_the_end)
