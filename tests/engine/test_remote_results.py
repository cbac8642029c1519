"""`delete_remote_results`: what has landed is deleted at Anthropic, and nothing else is."""

from collections.abc import Callable

import httpx2
import pytest
from kit import Project

Make = Callable[..., Project]
DELETE = "DELETE /v1/messages/batches/…"


@pytest.fixture
def private(project: Make) -> Project:
    made = project(delete_remote_results=True, chunk_size=2)
    made.load([("tweets", f"t{n}", "x") for n in range(4)])
    return made


def test_what_has_landed_is_deleted(private: Project) -> None:
    private.materialize()

    assert private.claude.simulator.batches() == []
    assert private.answers() == ["t0", "t1", "t2", "t3"]
    assert len(private.claude.simulator.bill()) == 4


def test_nothing_is_deleted_unless_it_is_declared(project: Make) -> None:
    made = project()
    made.load([("tweets", "t0", "x")])
    made.materialize()
    made.materialize()

    assert len(made.claude.simulator.batches()) == 1


def test_what_is_out_and_what_is_not_ours_stays(project: Make) -> None:
    made = project(delete_remote_results=True, chunk_size=2, claude={"max_in_flight_requests": 2})
    made.load([("tweets", f"t{n}", "x") for n in range(4)])
    run = made.start()
    made.send_as_a_stranger(1)
    made.end_batches()
    first, stranger = (batch.id for batch in made.claude.simulator.batches())

    assert run.advance() is not None

    stay, second = (batch.id for batch in made.claude.simulator.batches())
    assert stay == stranger
    assert made.chunk_states() == {"landed": 1, "submitted": 1}
    assert second != first


@pytest.mark.parametrize("status", [401, 500])
def test_what_could_not_be_deleted_is_deleted_by_the_next_run(
    private: Project, status: int
) -> None:
    for _ in range(6):  # the SDK tries again
        private.wire.answer(DELETE, status, {"type": "error", "error": {"type": "api_error"}})
    private.materialize()
    assert private.answers() == ["t0", "t1", "t2", "t3"]
    private.wire.faults.clear()

    assert private.materialize().rows == []

    assert private.claude.simulator.batches() == []


def test_what_a_run_left_that_ended_after_landing_is_deleted_by_the_next(private: Project) -> None:
    run = private.start()
    private.end_batches()

    def end() -> None:
        raise KeyboardInterrupt

    run.engine.after_collecting = end
    with pytest.raises(KeyboardInterrupt):
        run.advance()
    assert private.chunk_states() == {"landed": 2}
    assert len(private.claude.simulator.batches()) == 2

    private.materialize()

    assert private.claude.simulator.batches() == []
    assert len(private.claude.simulator.bill()) == 4


def test_what_was_answered_for_a_cancelled_run_is_deleted_by_the_landing_job(
    private: Project,
) -> None:
    run = private.start(run_id="cancelled")
    private.end_batches()

    private.engine().settle(["cancelled"], is_alive=lambda _: False)

    assert private.claude.simulator.batches() == []
    assert len(private.answers()) == 4
    assert run.engine.is_cancelled(run.materializations)


def test_an_api_that_is_silent_keeps_no_answer_from_its_table(private: Project) -> None:
    run = private.start()
    private.end_batches()
    for _ in range(6):
        private.wire.lose_call(DELETE, httpx2.ConnectError)

    run.advance()

    assert private.answers() == ["t0", "t1", "t2", "t3"]
