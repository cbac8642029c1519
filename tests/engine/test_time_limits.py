"""`max_wait_hours`: a materialization ends in time, with what it has."""

from collections.abc import Callable
from datetime import timedelta

import httpx2
from kit import Project

Make = Callable[..., Project]
CREATE = "POST /v1/messages/batches"
CANCEL = "POST /v1/messages/batches/…/cancel"


def test_what_is_still_out_at_the_deadline_is_cancelled_and_expires(project: Make) -> None:
    made = project(max_wait_hours=1)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    assert run.waiting is not None
    assert run.waiting.not_before == run.materializations[0].started_at + timedelta(hours=1)
    made.claude.simulator.advance(timedelta(minutes=61))

    waiting = run.advance()

    assert waiting is not None
    (batch,) = made.claude.simulator.batches()
    assert batch.cancel_initiated_at is not None
    made.end_batches()
    assert run.advance() is None
    answered = len(made.answers())
    assert 0 < answered < 10
    assert made.failures("DISTINCT _error_type, _retryable, _attempts") == [("expired", True, 1)]
    assert len(made.failures()) == 10 - answered
    assert len(made.materialize().rows) == 10 - answered


def test_a_garbled_answer_to_the_cancel_keeps_no_other_batch_from_landing(project: Make) -> None:
    made = project(max_wait_hours=1, chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    first, _ = made.claude.simulator.batches()
    running = made.claude.retrieve(first.id).model_dump_json().encode()
    made.end_batches()
    made.claude.simulator.advance(timedelta(minutes=61))
    made.wire.change_answer(f"GET /v1/messages/batches/{first.id}", lambda _: running)
    garbled = httpx2.Response(200, content=b"<", headers={"content-type": "application/json"})
    made.wire.faults.append((CANCEL, lambda _: garbled))

    run.advance()

    assert made.wire.faults == []
    assert len(made.answers()) == 10


def test_what_could_not_be_sent_in_time_expires_unsent(project: Make) -> None:
    made = project(max_wait_hours=1, chunk_size=5, claude={"max_in_flight_requests": 5})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    made.claude.simulator.advance(timedelta(minutes=61))
    run.advance()
    made.end_batches()

    assert run.advance() is None

    unsent = made.failures("id, _error_type, _attempts, _cost_usd, _batch_id")[-5:]
    assert unsent == [(f"t{n}", "expired", 0, 0, None) for n in range(5, 10)]
    assert made.wire.posts() == 1


def test_when_the_time_is_up_while_something_is_being_sent_the_materialization_ends(
    project: Make,
) -> None:
    made = project(max_wait_hours=1)
    made.load([("tweets", "t1", "x")])

    def refuse(_: httpx2.Request) -> httpx2.Response:
        made.claude.simulator.advance(timedelta(minutes=61))
        error = {"type": "rate_limit_error", "message": "The queue is full."}
        return httpx2.Response(429, json={"type": "error", "error": error})

    made.wire.faults.append((CREATE, refuse))

    assert made.start().waiting is None

    assert made.failures("id, _error_type, _attempts") == [("t1", "expired", 0)]
    assert made.sql("SELECT state FROM claude_batch.materializations") == [("done",)]
    assert len(made.materialize().rows) == 1


def test_a_changed_row_that_was_not_asked_in_time_does_not_keep_its_old_answer(
    project: Make,
) -> None:
    made = project(max_wait_hours=1, claude={"max_in_flight_requests": 1})
    made.load([("tweets", "t1", "x"), ("reviews", "r1", "x")])
    made.materialize("tweets")
    made.change("t1", "changed")
    made.start("reviews")
    run = made.start("tweets")
    made.claude.simulator.advance(timedelta(minutes=61))

    assert run.advance() is None

    assert made.sql("SELECT id FROM main.sentiment WHERE _partition = 'tweets'") == []
    assert made.failures() == [("t1", "expired")]
    assert made.sql("SELECT count(*) FROM claude_batch.departed") == [(1,)]


def test_no_retry_is_planned_after_the_deadline(project: Make) -> None:
    made = project(max_wait_hours=4)
    made.load([("tweets", "t1", "x"), ("tweets", "t2", "y")])
    made.script.ends_with("t2", "errored:api_error", None)
    run = made.start()
    made.claude.simulator.advance(timedelta(hours=5))

    assert run.advance() is None

    assert made.failures() == [("t2", "api_error")]
    assert made.materialize().rows == ["t2"]


def test_nobody_waits_longer_for_what_others_have_out(project: Make) -> None:
    made = project(prompt="Rate it now: {{ text }}", max_attempts=1)
    made.load([("tweets", "t1", "good"), ("reviews", "r1", "good"), ("reviews", "r2", "bad")])
    made.start("tweets")
    made.declare(prompt="Rate it now: {{ text }}", max_attempts=1, max_wait_hours=1)
    reviews = made.start("reviews")
    made.claude.simulator.advance(timedelta(hours=1, minutes=1))
    reviews.advance()  # cancels its own batch
    made.claude.simulator.advance(timedelta(minutes=20))

    assert reviews.advance() is None
    assert made.failures() == [("r1", "expired"), ("r2", "expired")]


def test_what_was_cancelled_in_time_has_expired_whoever_lands_it(project: Make) -> None:
    made = project(prompt="Rate it now: {{ text }}", max_wait_hours=1, max_attempts=1)
    made.load([("tweets", "t1", "good"), ("reviews", "r1", "good")])
    tweets = made.start("tweets")
    made.claude.simulator.advance(timedelta(minutes=50))
    reviews = made.start("reviews")
    made.claude.simulator.advance(timedelta(minutes=11))
    tweets.advance()  # cancels its own batch
    made.claude.simulator.advance(timedelta(minutes=20))

    reviews.advance()

    assert made.failures() == [("t1", "expired")]
