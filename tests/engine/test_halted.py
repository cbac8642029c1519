"""An account that is halted: sending stops, no attempt counts, what was sent is collected."""

from collections.abc import Callable
from datetime import timedelta

import httpx2
import pytest
from kit import Project

from dagster_claude_batch.errors import AccountHaltedError, CredentialsRefusedError

Make = Callable[..., Project]
CREATE = "POST /v1/messages/batches"
RESULTS = "GET /v1/messages/batches/…/results"
NOT_FOUND = {"type": "error", "error": {"type": "not_found_error", "message": "no such batch"}}


def test_rows_refused_for_the_account_count_no_attempt_and_the_run_says_so(
    tweets: Project,
) -> None:
    tweets.script.ends_with("t3", "halted", None)
    run = tweets.start()
    tweets.end_batches()

    with pytest.raises(AccountHaltedError, match=r"credit balance.* 1 rows were not sent"):
        run.advance()

    assert len(tweets.answers()) == 9
    assert tweets.failures("id, _error_type, _retryable, _attempts, _cost_usd = 0") == [
        ("t3", "invalid_request_error", True, 0, True)
    ]
    assert tweets.wire.posts() == 1


def test_what_rows_say_of_the_account_stays_on_one_line(tweets: Project) -> None:
    tweets.script.ends_with("t3", "halted", None)
    run = tweets.start()
    tweets.end_batches()
    said = b"credit balance is too low"
    tweets.wire.change_answer(
        RESULTS, lambda body: body.replace(said, said + rb"\nERROR all is well \u001b[31m")
    )

    with pytest.raises(AccountHaltedError, match="ERROR all is well") as caught:
        run.advance()

    assert str(caught.value).isprintable()


def test_an_account_that_is_halted_is_told_of_when_all_that_is_out_has_been_collected(
    tweets: Project,
) -> None:
    tweets.sql("INSERT INTO texts VALUES ('reviews', 'r1', 'x')")
    tweets.start("tweets")
    refusal = {"type": "error", "error": {"type": "billing_error", "message": "no credit"}}
    for _ in range(2):
        tweets.wire.answer(CREATE, 402, refusal)

    run = tweets.start("tweets", "reviews")

    assert run.waiting is not None
    assert len(run.waiting.batch_ids) == 1
    tweets.end_batches()
    with pytest.raises(AccountHaltedError, match="no credit 1 rows were not sent"):
        run.advance()
    assert len(tweets.answers()) == 10
    assert tweets.wire.posts() == 3


def test_nothing_more_is_sent_until_somebody_launches_again(project: Make) -> None:
    made = project(chunk_size=5, claude={"max_in_flight_requests": 5})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    made.script.ends_with("t3", "errored:billing_error", None)
    run = made.start()
    made.end_batches()

    for _ in range(2):
        with pytest.raises(AccountHaltedError, match="6 rows were not sent"):
            run.advance()
    assert made.wire.posts() == 1

    assert made.materialize().rows == ["t3", "t5", "t6", "t7", "t8", "t9"]
    assert len(made.answers()) == 10
    assert made.answers("DISTINCT _attempts") == [1]


def test_a_row_may_meet_a_halted_account_more_often_than_it_may_be_attempted(
    project: Make,
) -> None:
    made = project(max_attempts=2)
    made.load([("tweets", "t1", "x"), ("tweets", "t2", "y")])
    made.script.ends_with("t2", "halted", "halted", "halted", "errored:api_error", None)
    for _ in range(3):
        run = made.start()
        made.end_batches()
        with pytest.raises(AccountHaltedError):
            run.advance()

    made.materialize()

    assert made.answers("id, _attempts") == [("t1", 1), ("t2", 2)]
    assert [batch.request_counts.errored for batch in made.claude.simulator.batches()] == [
        1,
        1,
        1,
        1,
        0,
    ]


def test_what_is_out_elsewhere_is_collected_before_the_run_says_so(project: Make) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    made.script.ends_with("t3", "halted", None)
    run = made.start()
    made.end_batches()
    _, second = made.claude.simulator.batches()
    for _ in range(2):  # it looks once more after it has collected the first
        made.wire.answer(f"GET /v1/messages/batches/{second.id}", 404, NOT_FOUND)

    waiting = run.advance()
    assert waiting is not None
    assert waiting.batch_ids == (second.id,)

    with pytest.raises(AccountHaltedError, match="1 rows were not sent"):
        run.advance()
    assert len(made.answers()) == 9
    assert made.wire.posts() == 2


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_refused_while_something_is_out_lose_nothing(
    tweets: Project, status: int
) -> None:
    run = tweets.start()
    (batch,) = tweets.claude.simulator.batches()
    look = f"GET /v1/messages/batches/{batch.id}"
    tweets.end_batches()
    tweets.wire.answer(look, status, {"type": "error", "error": {"type": "x", "message": "no"}})

    with pytest.raises(CredentialsRefusedError, match="29 days"):
        run.advance()

    assert tweets.materialize().rows == []
    assert len(tweets.answers()) == 10


@pytest.mark.parametrize("status", [400, 403, 410])
def test_results_that_are_refused_keep_no_other_batch_from_landing(
    project: Make, status: int
) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    made.end_batches()
    first, _ = made.claude.simulator.batches()
    results = f"GET /v1/messages/batches/{first.id}/results"
    made.wire.answer(results, status, {"type": "error", "error": {"type": "x", "message": "no"}})

    with pytest.raises(CredentialsRefusedError, match="29 days"):
        run.advance()

    assert made.chunk_states() == {"submitted": 1, "landed": 1}
    assert len(made.answers()) == 5
    assert made.materialize().rows == []
    assert len(made.answers()) == 10


def test_refused_results_of_one_materialization_keep_no_other_from_being_settled(
    project: Make,
) -> None:
    made = project()
    made.load([(corpus, corpus, "x") for corpus in ("tweets", "reviews")])
    runs = [made.start("tweets"), made.start("reviews")]
    for run in runs:
        run.engine.cancel(run.materializations[0])
    made.end_batches()
    first, _ = made.claude.simulator.batches()
    made.wire.answer(f"GET /v1/messages/batches/{first.id}/results", 403, {})

    with pytest.raises(CredentialsRefusedError):
        made.engine().settle([], is_alive=lambda _: False)

    assert made.chunk_states() == {"submitted": 1, "landed": 1}


def test_credentials_that_are_refused_at_first_send_nothing(tweets: Project) -> None:
    refusal = {"type": "error", "error": {"type": "authentication_error", "message": "no key"}}
    tweets.wire.answer("GET /v1/models/claude-haiku-5-5", 401, refusal)

    with pytest.raises(CredentialsRefusedError, match="no key"):
        tweets.start()

    assert tweets.wire.posts() == 0
    assert len(tweets.materialize().rows) == 10


def test_an_api_that_cannot_be_asked_is_asked_again_later(tweets: Project) -> None:
    run = tweets.start()
    (batch,) = tweets.claude.simulator.batches()
    tweets.end_batches()
    for _ in range(3):
        tweets.wire.lose_call(f"GET /v1/messages/batches/{batch.id}", httpx2.ConnectError)

    waiting = run.advance()

    assert waiting is not None
    assert waiting.not_before is not None
    assert timedelta() < waiting.not_before - tweets.claude.now() < timedelta(minutes=11)
    assert run.advance() is None
    assert len(tweets.answers()) == 10
