"""`delete_remote_results`: what has landed is deleted at Anthropic, and nothing else is."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import httpx2
import pytest
from kit import Holder, Project

from dagster_claude_batch import LocalClaudeBatchResource
from dagster_claude_batch.deleting import delete_as_declared, delete_landed
from dagster_claude_batch.errors import DatabaseLockedError

Make = Callable[..., Project]
DELETE = "DELETE /v1/messages/batches/…"


@pytest.fixture
def private(project: Make) -> Project:
    made = project(delete_remote_results=True, chunk_size=2)
    made.load([("tweets", f"t{n}", "x") for n in range(4)])
    return made


def delete(
    made: Project, *, alive: frozenset[str] = frozenset(), patience: float = 30, run: str = "last"
) -> int:
    """As a run does at its end."""
    engine = made.engine(run_id=run)
    return delete_landed(engine, is_alive=alive.__contains__, patience_seconds=patience).count


def remote(made: Project) -> list[str]:
    return [batch.id for batch in made.claude.simulator.batches()]


def test_what_has_landed_is_deleted_once(private: Project) -> None:
    private.materialize()

    assert delete(private) == 2

    assert remote(private) == []
    assert private.answers() == ["t0", "t1", "t2", "t3"]
    assert len(private.claude.simulator.bill()) == 4
    calls = len(private.wire.calls)
    assert delete(private) == 0
    assert len(private.wire.calls) == calls
    assert private.sql("SELECT count(deleted_at) FROM claude_batch.chunks") == [(2,)]


def test_nothing_is_deleted_unless_it_is_declared(project: Make) -> None:
    made = project()
    made.load([("tweets", "t0", "x")])
    made.materialize()

    delete_as_declared(made.engine(), is_alive=lambda _: False)

    assert len(remote(made)) == 1


def test_what_is_out_and_what_is_not_ours_stays(project: Make) -> None:
    made = project(delete_remote_results=True, chunk_size=2, claude={"max_in_flight_requests": 2})
    made.load([("tweets", f"t{n}", "x") for n in range(4)])
    run = made.start()
    made.send_as_a_stranger(1)
    made.end_batches()
    first, stranger = remote(made)
    assert run.advance() is not None

    assert delete(made) == 1

    stay, second = remote(made)
    assert stay == stranger
    assert made.chunk_states() == {"landed": 1, "submitted": 1}
    assert second != first


def test_it_stays_as_long_as_another_run_of_the_materialization_waits(private: Project) -> None:
    first = private.start(run_id="first")
    private.start(run_id="second")
    private.end_batches()
    assert first.advance() is None

    assert delete(private, alive=frozenset({"first", "second"}), run="first") == 0
    assert len(remote(private)) == 2

    assert delete(private, alive=frozenset({"second"}), run="second") == 2
    assert remote(private) == []


def test_it_stays_as_long_as_a_run_of_a_later_materialization_awaits_it(private: Project) -> None:
    private.declare(delete_remote_results=True, prompt="Rate {{ text }}")
    private.load([("tweets", "t0", "x"), ("reviews", "r0", "x")])
    first = private.start("tweets", run_id="first")
    private.start("reviews", run_id="later")
    awaits = "SELECT len(awaits) FROM claude_batch.materializations ORDER BY started_at"
    assert private.sql(awaits) == [(0,), (1,)]
    private.end_batches()
    assert first.advance() is None

    assert delete(private, alive=frozenset({"later"}), run="first") == 0

    assert delete(private, run="first") == 1


@pytest.mark.parametrize("status", [401, 429, 500])
def test_what_could_not_be_deleted_is_deleted_by_the_next_run(
    private: Project, status: int
) -> None:
    private.materialize()
    private.wire.answer(DELETE, status, {"type": "error", "error": {"type": "api_error"}})

    assert delete(private) == 0
    assert private.wire.faults == []  # not tried again within this run

    assert delete(private) == 2
    assert remote(private) == []


def test_an_api_that_is_silent_keeps_nobody_waiting(private: Project) -> None:
    private.materialize()
    private.wire.lose_call(DELETE, httpx2.ConnectError)

    assert delete(private) == 0

    assert sum(call.startswith("DELETE") for call in private.wire.calls) == 1
    assert private.answers() == ["t0", "t1", "t2", "t3"]


@pytest.mark.opens_anew
def test_a_locked_database_is_an_error_for_who_deletes_by_hand_and_none_of_the_run(
    private: Project,
) -> None:
    private.materialize()
    engine = private.engine()
    engine.warehouse = replace(engine.warehouse, lock_timeout_seconds=0)
    holder = Holder(private.path)

    delete_as_declared(engine, is_alive=lambda _: False)
    with pytest.raises(DatabaseLockedError):
        delete_landed(engine, is_alive=lambda _: False)

    holder.let_go()
    assert len(remote(private)) == 2


def test_a_batch_that_the_api_does_not_show_stops_no_other(private: Project) -> None:
    private.materialize()
    private.wire.answer(DELETE, 404, {"type": "error", "error": {"type": "not_found_error"}})

    assert delete(private) == 1

    assert len(remote(private)) == 1
    assert delete(private) == 1


def test_what_time_did_not_suffice_for_is_left_to_the_next_run(private: Project) -> None:
    private.materialize()

    assert delete(private, patience=-1) == 0

    assert delete(private) == 2


@pytest.mark.parametrize("outcome", ["missing", "unknown"])
def test_a_batch_of_which_a_result_was_not_read_stays(private: Project, outcome: str) -> None:
    private.declare(delete_remote_results=True, chunk_size=2, max_attempts=1)
    private.script.ends_with("t0", outcome)
    private.materialize()
    assert [identity for identity, _ in private.failures()] == ["t0"]

    assert delete(private) == 1

    (left,) = remote(private)
    assert "t0" in [
        params["messages"][-1]["content"].split()[1]
        for _, params in private.claude.simulator.requests(left)
    ]


def test_what_was_given_up_unread_is_not_asked_for(private: Project) -> None:
    run = private.start()
    private.end_batches()
    private.claude.simulator.advance(timedelta(days=30))
    run.advance()
    calls = len(private.wire.calls)

    assert delete(private) == 0

    assert len(private.wire.calls) == calls


def test_a_run_deletes_at_its_end(private: Project) -> None:
    claude = LocalClaudeBatchResource(
        path=private.claude.path, processing_seconds=[0, 0], poll_interval_seconds=0.01
    )

    result = dg.materialize(
        [private.assets_def],
        partition_key="tweets",
        resources={"duckdb": private.duckdb, "claude_batch": claude},
    )

    assert result.success
    assert private.answers() == ["t0", "t1", "t2", "t3"]
    assert remote(private) == []


def test_what_was_answered_for_a_cancelled_run_is_deleted_too(private: Project) -> None:
    private.start(run_id="cancelled")
    private.end_batches()
    private.engine().settle(["cancelled"], is_alive=lambda _: False)

    assert delete(private, run="landing job") == 2

    assert len(private.answers()) == 4
