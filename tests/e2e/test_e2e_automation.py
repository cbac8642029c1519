"""What asks by itself: automation conditions and a schedule, over several of their ticks."""

from collections.abc import Iterator

import pytest
from e2e_situations import Shown, record
from e2e_stage import Stage

ROWS = 3
HELD_RUNS = {"eager": 1, "arriving": 1, "naive": 1, "every_minute": 2, "nightly": 2}
"""At least so many, where each minute brings another."""

Snapshot = dict[str, Shown]


@pytest.fixture(scope="module")
def waiting(stage: Stage) -> Iterator[Snapshot]:
    """What is shown when everything has asked, and twice what asks each minute."""
    for asset in ("eager", "arriving", "every_minute", "nightly"):
        stage.ask(asset, ROWS)
    stage.ask("naive", ROWS, cities=("amsterdam", "berlin", "copenhagen"))
    dagster = stage.dagster

    schedule_id = dagster.start_schedule("nightly_schedule")
    dagster.start_sensor("quick_automation")
    stage.wait_for_ticks("quick_automation")
    dagster.add_partition("arrivals", "berlin")
    dagster.materialize("eager_upstream")
    dagster.wait_for(
        lambda: all(_waits(stage, asset, runs) for asset, runs in HELD_RUNS.items()),
        timeout=400,
        every=2,
        what="everything to have asked, and twice what asks each minute",
    )
    dagster.stop_schedule(schedule_id)
    stage.wait_for_ticks("quick_automation", 3)
    yield _shown(stage)
    dagster.stop_sensor("quick_automation")


def _waits(stage: Stage, asset: str, runs: int) -> bool:
    shown = stage.shown(asset)
    return shown.started == 0 and shown.queued >= runs and shown.batches_out > 0


def _shown(stage: Stage) -> Snapshot:
    backfills = {"naive": stage.dagster.runs_of("naive")[0].tags["dagster/backfill"]}
    assets = (*HELD_RUNS, "eager_count", "arriving_count")
    return {asset: stage.shown(asset, backfills.get(asset)) for asset in assets}


@pytest.fixture(scope="module")
def at_the_end(stage: Stage, waiting: Snapshot) -> Snapshot:
    """What is shown when the batches have ended, and what is downstream has run."""
    assert waiting
    stage.simulator.end_batches()
    dagster = stage.dagster
    dagster.wait_for(
        lambda: dagster.asset_materializations("arriving_count"),
        timeout=240,
        what="the asset downstream to run by itself",
    )
    stage.wait_for_ticks("quick_automation", 3)
    dagster.stop_sensor("quick_automation")
    stage.wait_for_ticks("claude_batch_sensor")  # the last tick of the other one may still ask
    for asset in HELD_RUNS:
        stage.wait_until_over(asset)
    dagster.wait_for_backfill(dagster.runs_of("naive")[0].tags["dagster/backfill"])
    return _shown(stage)


def test_eager_asks_once_and_what_is_downstream_runs_after_the_results_exist(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["eager"] == Shown({"materializing": 1}, queued=1, batches_out=1)
    assert waiting["eager_count"] == Shown({"materializing": 1}, queued=1)
    assert at_the_end["eager"] == at_the_end["eager_count"] == Shown({"materialized": 1})
    assert _submissions(stage, "eager") == (1, ROWS)
    assert [
        event.metadata["rows"] for event in stage.dagster.asset_materializations("eager_count")
    ] == [ROWS]

    record("automation: eager", waiting["eager"], at_the_end["eager"])
    record("automation: eager, downstream", waiting["eager_count"], at_the_end["eager_count"])


def test_on_missing_asks_once_and_an_eager_downstream_runs_after_the_results_exist(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["arriving"] == Shown({"materializing": 1}, queued=1, batches_out=1)
    assert waiting["arriving_count"] == Shown({"missing": 1})
    assert at_the_end["arriving"] == at_the_end["arriving_count"] == Shown({"materialized": 1})
    assert _submissions(stage, "arriving") == (1, ROWS)
    assert [
        event.metadata["rows"] for event in stage.dagster.asset_materializations("arriving_count")
    ] == [ROWS]

    record("automation: on_missing", waiting["arriving"], at_the_end["arriving"])
    record(
        "automation: on_missing, downstream in a later run",
        waiting["arriving_count"],
        at_the_end["arriving_count"],
    )


def test_a_condition_that_only_looks_for_what_is_missing_and_not_in_progress_asks_once(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot
) -> None:
    assert waiting["naive"] == Shown({"materializing": 3}, "REQUESTED", queued=1, batches_out=1)
    assert at_the_end["naive"] == Shown({"materialized": 3}, "COMPLETED_SUCCESS")
    assert _submissions(stage, "naive") == (1, 3 * ROWS)
    assert len(stage.dagster.runs_of("naive")) == 2

    record("automation: missing() & ~in_progress()", waiting["naive"], at_the_end["naive"])


@pytest.mark.parametrize(
    ("asset", "situation"),
    [
        ("every_minute", "automation: on_cron, ticking again while a batch is out"),
        ("nightly", "schedule: fires again while the last batch is out"),
    ],
)
def test_what_asks_at_fixed_times_joins_the_batch_that_is_still_out(
    stage: Stage, waiting: Snapshot, at_the_end: Snapshot, asset: str, situation: str
) -> None:
    assert (waiting[asset].partitions, waiting[asset].batches_out) == ({"materializing": 1}, 1)
    assert waiting[asset].queued >= 2
    assert at_the_end[asset] == Shown({"materialized": 1})
    assert _submissions(stage, asset) == (1, ROWS)
    assert {run.status for run in stage.dagster.runs_of(asset)} == {"SUCCESS"}

    record(situation, waiting[asset], at_the_end[asset])


def test_on_cron_runs_what_is_downstream_after_the_results_exist(
    stage: Stage, at_the_end: Snapshot
) -> None:
    assert at_the_end
    counts = stage.dagster.asset_materializations("every_minute_count")

    assert {event.metadata["rows"] for event in counts} == {ROWS}


def _submissions(stage: Stage, asset: str) -> tuple[int, int]:
    """How many batches were sent, and how many requests."""
    return len(stage.batches_of(asset)), len(stage.sent(asset))
