from e2e_stage import Stage


def test_a_held_run_whose_database_was_moved_away_fails_and_what_was_sent_is_collected_later(
    stage: Stage,
) -> None:
    stage.ask("moved_away", 10)
    dagster = stage.dagster
    held = stage.held_by(dagster.materialize("moved_away", partition="berlin"))
    elsewhere = stage.warehouse.with_suffix(".elsewhere")

    stage.warehouse.rename(elsewhere)
    stage.simulator.end_batches()
    lost = dagster.wait_for_run(held.run_id)
    (next_try,) = stage.held_runs_of(held.run_id)
    lost_again = dagster.wait_for_run(next_try.run_id)
    is_made_anew = stage.warehouse.exists()
    elsewhere.rename(stage.warehouse)
    again = dagster.materialize("moved_away", partition="berlin")
    stage.succeed(again)

    assert (lost.status, lost_again.status) == ("FAILURE", "FAILURE")
    assert not is_made_anew
    message = "\n".join(dagster.run_messages(held.run_id))
    assert "The ledger of this run is not in the DuckDB database" in message
    assert "what was sent is found and collected" in message
    assert len(stage.batches_of("moved_away")) == 1
    assert dagster.partition_statuses("moved_away")["berlin"] == "materialized"
    assert stage.sql("SELECT count(*) FROM moved_away") == [(10,)]
