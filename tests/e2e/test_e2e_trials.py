"""Runs that ask some rows, or none: from the launchpad, and refused in a backfill."""

import pytest
from e2e_situations import Shown, record
from e2e_stage import Stage


def _config(**config: object) -> dict[str, object]:
    return {"ops": {"tried": {"config": config}}}


def test_what_is_tried_first_materializes_nothing_and_is_refused_in_a_backfill(
    stage: Stage,
) -> None:
    stage.ask("tried", 10)
    dagster = stage.dagster

    refused = dagster.launch_backfill(["tried"], ["berlin"], run_config=_config(limit=3))
    backfill = dagster.wait_for_backfill(refused)
    assert backfill.status == "COMPLETED_FAILED"
    (run,) = dagster.backfill_runs(refused)
    said = "\n".join(dagster.run_messages(run.run_id))
    assert "Asset 'tried' was asked for with 'limit' in a backfill" in said
    assert stage.batches_of("tried") == []

    dry = dagster.materialize("tried", partition="berlin", run_config=_config(dry_run=True))
    stage.succeed(dry)
    after_dry_run = stage.shown("tried")
    assert after_dry_run == Shown({"missing": 3})
    (told,) = dagster.asset_observations("tried")
    assert told.metadata["rows_to_send"] == 10
    assert "tried" in str(told.metadata["requests"])
    assert stage.batches_of("tried") == []

    held = stage.held_by(
        dagster.materialize("tried", partition="berlin", run_config=_config(limit=3))
    )
    waiting = stage.shown("tried")
    assert waiting == Shown({"materializing": 1, "missing": 2}, queued=1, batches_out=1)
    stage.simulator.end_batches()
    stage.succeed(held.run_id)
    at_the_end = stage.shown("tried")
    assert at_the_end == Shown({"missing": 3})
    assert dagster.asset_materializations("tried") == []
    assert stage.sql("SELECT count(*) FROM tried") == [(3,)]
    assert len(stage.sent("tried")) == 3

    whole = stage.see_through(dagster.materialize("tried", partition="berlin"))
    assert whole.status == "SUCCESS"
    assert dagster.partition_statuses("tried")["berlin"] == "materialized"
    sent = stage.sent("tried")
    assert len(sent) == len(set(sent)) == 10

    record("limit and dry_run: a limit from the launchpad", waiting, at_the_end)
    record("limit and dry_run: a dry run", after_dry_run, after_dry_run)


def test_after_a_pilot_the_rest_is_sent_without_anybody(stage: Stage) -> None:
    stage.ask("piloted", 10)
    dagster = stage.dagster

    first = dagster.materialize("piloted", partition="berlin")
    held = stage.held_by(first)
    waiting = stage.shown("piloted")
    assert waiting == Shown({"materializing": 1, "missing": 2}, queued=1, batches_out=1)
    assert len(stage.sent("piloted")) == 3

    stage.simulator.end_batches()
    dagster.wait_for_run(held.run_id)
    waiting_again = stage.shown("piloted")
    assert waiting_again == Shown({"materializing": 1, "missing": 2}, queued=1, batches_out=1)
    assert len(stage.sent("piloted")) == 10
    assert stage.see_through(held.run_id).status == "SUCCESS"

    at_the_end = stage.shown("piloted")
    assert at_the_end == Shown({"materialized": 1, "missing": 2})
    (made,) = dagster.asset_materializations("piloted")
    assert made.metadata["answered"] == 10
    record("pilot: it comes back well", waiting_again, at_the_end)


@pytest.mark.exhaustive
def test_after_a_pilot_that_failed_nothing_more_is_sent(stage: Stage) -> None:
    stage.ask("pilot_fails", 10)
    stage.sql("UPDATE pilot_fails_source SET review = review || ' refused'")
    dagster = stage.dagster

    held = stage.held_by(dagster.materialize("pilot_fails", partition="berlin"))
    waiting = stage.shown("pilot_fails")
    stage.simulator.end_batches()
    ended = dagster.wait_for_run(held.run_id)

    assert ended.status == "FAILURE"
    said = "\n".join(dagster.run_messages(held.run_id))
    assert "of the pilot, 3 of its 3 rows failed (refusal); 7 rows were not sent" in said
    assert len(stage.sent("pilot_fails")) == 3
    at_the_end = stage.shown("pilot_fails")
    assert at_the_end == Shown({"failed": 1, "missing": 2})
    record("pilot: too many of its rows fail", waiting, at_the_end)
