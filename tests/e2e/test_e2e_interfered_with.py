"""What people do to a held run, its pool or its backfill, and what becomes of what was paid for."""

from dataclasses import dataclass

import pytest
from dagster_driver import Run
from e2e_situations import Shown, record
from e2e_stage import Stage

from dagster_claude_batch import held_run

AGAIN = ", then materialized again"
SITUATIONS = {
    "all_terminated": f"terminate all: on the queue{AGAIN}",
    "held_run_cancelled": f"cancelled: held run{AGAIN}",
    "held_run_deleted": f"cancelled: held run deleted{AGAIN}",
    "backfill_cancelled": f"cancelled: backfill{AGAIN}",
    "pool_limit_deleted": "cancelled: pool limit deleted by an administrator",
    "pool_limit_edited": "cancelled: pool limit edited by an administrator",
}
GIVEN_UP = ("all_terminated", "held_run_cancelled", "held_run_deleted", "backfill_cancelled")
OPENED = ("pool_limit_deleted", "pool_limit_edited")


@dataclass(frozen=True)
class Seen:
    """What was shown of each asset, before and after somebody interfered, and at the end."""

    waiting: dict[str, Shown]
    interfered_with: dict[str, Shown]
    waiting_again: dict[str, Shown]
    at_the_end: dict[str, Shown]
    started_early: dict[str, Run]
    collecting: dict[str, str]


@pytest.fixture(scope="module")
def seen(stage: Stage) -> Seen:
    """All situations side by side, for each is mostly a matter of waiting."""
    dagster = stage.dagster
    launched, backfill = _launch(stage)
    held = {asset: stage.held_by(run_id) for asset, run_id in launched.items()}

    def shown() -> dict[str, Shown]:
        backfills = {"backfill_cancelled": backfill}
        return {asset: stage.shown(asset, backfills.get(asset)) for asset in SITUATIONS}

    waiting = shown()
    dagster.terminate(held["held_run_cancelled"].run_id)
    dagster.delete_run(held["held_run_deleted"].run_id)
    dagster.cancel_backfill(backfill)
    dagster.wait_for_backfill(backfill)
    queued = dagster.runs(statuses=["QUEUED"])
    dagster.terminate_all([run for run in queued if "all_terminated" in run.assets])
    dagster.delete_pool_limit(held_run.pool_of(held["pool_limit_deleted"].run_id))
    dagster.set_pool_limit(held_run.pool_of(held["pool_limit_edited"].run_id), 5)
    early = {asset: dagster.wait_for_run(held[asset].run_id) for asset in OPENED}
    interfered_with = shown()
    again = {asset: _materialize(stage, asset) for asset in GIVEN_UP}
    collecting = {asset: stage.held_by(run_id).run_id for asset, run_id in again.items()}
    for asset, run in early.items():
        collecting[asset] = stage.held_by(run.run_id).run_id
    waiting_again = shown()
    stage.simulator.end_batches()
    for run_id in collecting.values():
        stage.succeed(run_id)
    return Seen(waiting, interfered_with, waiting_again, shown(), early, collecting)


def _launch(stage: Stage) -> tuple[dict[str, str], str]:
    """Launch all of it; the runs, and the backfill that one of them is of."""
    for asset in SITUATIONS:
        stage.ask(asset, 2, cities=_cities(asset))
    backfill = stage.dagster.launch_backfill(["backfill_cancelled"], ["berlin"])
    runs = {
        asset: _materialize(stage, asset) for asset in SITUATIONS if asset != "backfill_cancelled"
    }
    (submitting,) = stage.dagster.wait_for(
        lambda: stage.dagster.backfill_runs(backfill), timeout=600, what="the backfill's run"
    )
    return {**runs, "backfill_cancelled": submitting.run_id}, backfill


def _cities(asset: str) -> tuple[str, ...]:
    return ("amsterdam", "berlin") if asset == "all_terminated" else ("berlin",)


def _materialize(stage: Stage, asset: str) -> str:
    cities = _cities(asset)
    return stage.dagster.materialize(asset, partition_range=(cities[0], cities[-1]))


@pytest.mark.parametrize("asset", GIVEN_UP)
def test_who_materializes_again_after_the_wait_was_ended_gets_what_was_paid_for(
    stage: Stage, seen: Seen, asset: str
) -> None:
    cities = len(_cities(asset))
    in_progress = {"materializing": cities, "missing": 3 - cities}
    before, after = {"backfill_cancelled": ("REQUESTED", "CANCELED")}.get(asset, (None, None))

    assert seen.waiting[asset] == Shown(in_progress, before, queued=1, batches_out=1)
    assert seen.interfered_with[asset] == Shown({"missing": 3}, after, batches_out=1)
    assert seen.waiting_again[asset] == Shown(in_progress, after, queued=1, batches_out=1)
    done = {"materialized": cities, "missing": 3 - cities}
    assert seen.at_the_end[asset] == Shown(done, after)
    _assert_each_row_was_sent_once(stage, asset)
    given_up = SITUATIONS[asset].removesuffix(AGAIN)
    record(given_up, seen.waiting[asset], seen.interfered_with[asset])
    record(SITUATIONS[asset], seen.waiting_again[asset], seen.at_the_end[asset])


@pytest.mark.parametrize("asset", OPENED)
def test_a_held_run_whose_pool_somebody_opened_collects_nothing_and_waits_again(
    stage: Stage, seen: Seen, asset: str
) -> None:
    early, collecting = seen.started_early[asset], seen.collecting[asset]
    said = "\n".join(stage.dagster.run_messages(early.run_id))
    waits = Shown({"materializing": 1, "missing": 2}, queued=1, batches_out=1)

    assert early.status == "SUCCESS"
    assert f"run {collecting} waits in the queue and will collect the results" in said
    assert seen.waiting[asset] == seen.interfered_with[asset] == seen.waiting_again[asset] == waits
    assert seen.at_the_end[asset] == Shown({"materialized": 1, "missing": 2})
    made_by = [event.run_id for event in stage.dagster.asset_materializations(asset)]
    assert made_by == [collecting]
    _assert_each_row_was_sent_once(stage, asset)
    record(SITUATIONS[asset], seen.waiting_again[asset], seen.at_the_end[asset])


def _assert_each_row_was_sent_once(stage: Stage, asset: str) -> None:
    sent = stage.sent(asset)
    assert len(sent) == len(set(sent)) == 2 * len(_cities(asset))
    assert stage.sql(f"SELECT count(*) FROM {asset}") == [(len(sent),)]
