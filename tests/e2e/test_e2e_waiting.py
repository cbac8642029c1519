from e2e_situations import Shown, record
from e2e_stage import Stage

TEN_OF_BERLIN = (
    "SELECT 'berlin' AS city, i AS review_id, 'nice ' || i AS review FROM range(10) AS r(i)"
)


def test_a_run_that_no_sensor_would_let_go_fails_before_anything_is_sent(stage: Stage) -> None:
    stage.fill("unwatched", TEN_OF_BERLIN)
    before = stage.simulator.batches()

    run_id = stage.dagster.materialize("unwatched", partition="berlin")
    run = stage.dagster.wait_for_run(run_id)

    assert run.status == "FAILURE"
    message = "\n".join(stage.dagster.run_messages(run_id))
    assert "this code location has no sensor for the resource 'claude_unwatched'" in message
    assert "Nothing was submitted. Add `claude_batch_sensor` to the `sensors`" in message
    assert stage.simulator.batches() == before
    assert [run.run_id for run in stage.dagster.runs_of("unwatched")] == [run_id]


def test_a_run_fails_before_anything_is_sent_while_the_sensor_is_off_and_works_when_it_is_on(
    stage: Stage,
) -> None:
    stage.fill("switched_off", TEN_OF_BERLIN)
    before = stage.simulator.batches()

    stage.dagster.stop_sensor("claude_batch_sensor")
    run_id = stage.dagster.materialize("switched_off", partition="berlin")
    run = stage.dagster.wait_for_run(run_id)
    stage.dagster.start_sensor("claude_batch_sensor")

    assert run.status == "FAILURE"
    message = "\n".join(stage.dagster.run_messages(run_id))
    assert "the sensor 'claude_batch_sensor' is switched off." in message
    assert stage.simulator.batches() == before

    again = stage.see_through(stage.dagster.materialize("switched_off", partition="berlin"))

    assert again.status == "SUCCESS"
    assert len(stage.simulator.batches()) == len(before) + 1


def test_with_wait_run_the_run_itself_waits_and_nothing_is_queued(stage: Stage) -> None:
    stage.fill("waiting_in_the_run", TEN_OF_BERLIN)
    before = len(stage.simulator.batches())

    run_id = stage.dagster.materialize(
        "waiting_in_the_run",
        partition="berlin",
        run_config={"ops": {"waiting_in_the_run": {"config": {"wait": "run"}}}},
    )
    stage.dagster.wait_for(
        lambda: len(stage.simulator.batches()) > before, timeout=600, what="a batch"
    )
    waiting = [run for run in stage.dagster.runs_of("waiting_in_the_run") if not run.is_ended]
    stage.simulator.end_batches()
    stage.succeed(run_id)

    assert [(run.run_id, run.status) for run in waiting] == [(run_id, "STARTED")]
    assert stage.dagster.partition_statuses("waiting_in_the_run")["berlin"] == "materialized"
    assert stage.sql("SELECT count(*) FROM waiting_in_the_run") == [(10,)]


def test_what_else_was_selected_runs_once_and_what_is_downstream_runs_after_the_answers(
    stage: Stage,
) -> None:
    dagster = stage.dagster

    at_once, later = ("source", "sibling", "stranger"), ("read", "summary")
    run_id = dagster.materialize("mixed", *(f"mixed_{each}" for each in (*at_once, *later)))
    held = stage.held_by(run_id)
    waiting = stage.shown("mixed")
    others = {each: stage.dagster.asset_status(f"mixed_{each}") for each in (*at_once, *later)}
    stage.simulator.end_batches()
    stage.succeed(held.run_id)

    assert waiting == Shown({"materializing": 1}, queued=1, batches_out=1)
    assert others == {
        **dict.fromkeys(at_once, "materialized"),
        **dict.fromkeys(later, "materializing"),
    }
    assert stage.shown("mixed") == Shown({"materialized": 1})
    assert sorted(held.assets) == ["mixed", "mixed_read", "mixed_summary"]
    assert {
        asset: [event.run_id for event in dagster.asset_materializations(asset)]
        for asset in ("mixed", *(f"mixed_{each}" for each in (*at_once, *later)))
    } == {
        "mixed": [held.run_id],
        **{f"mixed_{each}": [run_id] for each in at_once},
        **{f"mixed_{each}": [held.run_id] for each in later},
    }
    assert stage.sql("SELECT response FROM mixed_read ORDER BY review_id") == [
        (f"MIXED {number}",) for number in range(10)
    ]

    record("in one run: upstream, two downstreams, siblings", waiting, stage.shown("mixed"))


def test_a_batch_asset_asks_about_the_answers_of_another_and_nothing_runs_twice(
    stage: Stage,
) -> None:
    stage.fill("translated", "SELECT 1 AS review_id, 'translated 1' AS review")

    run_id = stage.dagster.materialize("translated", "translated_sibling", "rated")
    first = stage.held_by(run_id)
    while_the_first_is_out = [stage.shown(asset) for asset in ("translated", "rated")]
    stage.simulator.end_batches()
    stage.held_by(first.run_id)
    while_the_second_is_out = [stage.shown(asset) for asset in ("translated", "rated")]
    run = stage.see_through(first.run_id)
    at_the_end = [stage.shown(asset) for asset in ("translated", "rated")]

    assert while_the_first_is_out == [
        Shown({"materializing": 1}, queued=1, batches_out=1),
        Shown({"materializing": 1}, queued=1),
    ]
    assert while_the_second_is_out == [
        Shown({"materialized": 1}),
        Shown({"materializing": 1}, queued=1, batches_out=1),
    ]
    assert at_the_end == [Shown({"materialized": 1}), Shown({"materialized": 1})]
    assert run.status == "SUCCESS"
    assert stage.sql("SELECT response FROM rated") == [("RATED TRANSLATED 1",)]
    assert {
        asset: len(stage.dagster.asset_materializations(asset))
        for asset in ("translated", "translated_sibling", "rated")
    } == {"translated": 1, "translated_sibling": 1, "rated": 1}

    record("in one run: a batch asset", while_the_first_is_out[0], at_the_end[0])
    record("in one run: a batch asset downstream of it", while_the_second_is_out[1], at_the_end[1])
