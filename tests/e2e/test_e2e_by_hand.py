"""The jobs that a person starts in the UI, while a sensor looks at its batches once a day."""

from collections.abc import Mapping
from typing import Any

import pytest
from e2e_situations import Shown
from e2e_stage import Stage

WAITS = Shown({"materializing": 1, "missing": 2}, queued=1, batches_out=1)


def _start(stage: Stage, job: str, config: Mapping[str, Any] | None = None) -> None:
    """Press *Launch run*, twice, one run after the other."""
    job = f"by_hand_{job}"
    run_config = {"ops": {f"{job}_op": {"config": config}}} if config else {}
    for _ in range(2):
        stage.succeed(stage.dagster.launch_job(job, run_config=run_config))


def test_collecting_by_hand_lets_a_run_go_that_the_sensor_would_look_at_tomorrow(
    stage: Stage,
) -> None:
    stage.ask("collected_by_hand", 3)
    held = stage.held_by(stage.dagster.materialize("collected_by_hand", partition="berlin"))
    stage.wait_for_ticks("drowsy_sensor", count=1)  # its first look is at once
    stage.simulator.end_batches()
    stage.wait_for_ticks("drowsy_sensor", count=1)
    assert stage.dagster.run(held.run_id).status == "QUEUED"

    _start(stage, "collect")

    stage.succeed(held.run_id)
    assert stage.shown("collected_by_hand") == Shown({"materialized": 1, "missing": 2})
    assert stage.sql("SELECT count(*) FROM collected_by_hand") == [(3,)]


@pytest.mark.exhaustive
def test_cancelling_by_hand_ends_the_batch_and_the_wait_and_what_was_answered_is_kept(
    stage: Stage,
) -> None:
    stage.ask("cancelled_by_hand", 3)
    held = stage.held_by(stage.dagster.materialize("cancelled_by_hand", partition="berlin"))
    assert stage.shown("cancelled_by_hand") == WAITS

    _start(stage, "cancel", {"assets": ["cancelled_by_hand"]})

    (batch,) = stage.batches_of("cancelled_by_hand")
    assert batch.cancel_initiated_at is not None
    stage.simulator.end_batches()
    _start(stage, "collect")
    ended = stage.dagster.wait_for_run(held.run_id)
    assert ended.status == "FAILURE"
    assert stage.shown("cancelled_by_hand") == Shown({"failed": 1, "missing": 2})
    assert "cancelled" in "\n".join(stage.dagster.run_messages(held.run_id))
