"""Sending exactly once, whatever happens on the wire."""

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import httpx2
import pytest
from kit import Project

from dagster_claude_batch.errors import AccountHaltedError, SubmissionRefusedError
from dagster_claude_batch.ledger import MaterializationConfig

Make = Callable[..., Project]
CREATE = "POST /v1/messages/batches"
LONG_ENOUGH = timedelta(minutes=36)


def test_a_lost_answer_is_not_a_reason_to_send_again(tweets: Project) -> None:
    tweets.wire.lose_answer(CREATE)

    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    run.advance()

    assert tweets.wire.posts() == 1
    assert tweets.chunk_states() == {"sending": 1}


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
def test_an_error_that_may_hide_a_batch_is_not_a_reason_to_send_again(
    tweets: Project, status: int
) -> None:
    tweets.wire.answer(CREATE, status, _error("api_error", "try again"), **{"retry-after": "1"})

    tweets.start()

    assert tweets.wire.posts() == 1
    assert tweets.chunk_states() == {"sending": 1}


def test_a_batch_whose_creation_was_in_doubt_is_found_by_its_nonce(tweets: Project) -> None:
    tweets.wire.lose_answer(CREATE)
    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    tweets.end_batches()

    assert run.advance() is None
    assert tweets.wire.posts() == 1
    assert len(tweets.answers()) == 10


def test_a_batch_of_somebody_else_with_as_many_requests_is_not_taken(tweets: Project) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadTimeout)
    run = tweets.start()
    tweets.send_as_a_stranger(10)
    tweets.end_batches()
    tweets.claude.simulator.advance(LONG_ENOUGH)

    run.advance()
    tweets.end_batches()

    assert run.advance() is None
    assert tweets.sql("SELECT count(DISTINCT batch_id) FROM claude_batch.chunks") == [(1,)]
    assert len(tweets.answers()) == 10


def test_what_surely_never_arrived_is_sent_once_it_has_settled(tweets: Project) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadError)
    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)

    run.advance()

    assert len(tweets.claude.simulator.batches()) == 1
    assert tweets.chunk_states() == {"given_up": 1, "submitted": 1}


def test_before_it_has_settled_nothing_is_sent_again(tweets: Project) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadError)
    run = tweets.start()
    tweets.claude.simulator.advance(timedelta(minutes=9))

    waiting = run.advance()

    assert tweets.wire.posts() == 1
    assert waiting is not None
    assert waiting.not_before is not None


@pytest.mark.parametrize("error", [httpx2.ConnectError, httpx2.ConnectTimeout])
def test_a_connection_that_was_never_made_is_tried_again_at_once(
    tweets: Project, error: type[httpx2.TransportError]
) -> None:
    tweets.wire.lose_call(CREATE, error)

    tweets.start()

    assert tweets.wire.posts() == 2
    assert tweets.chunk_states() == {"submitted": 1}


def test_a_connection_that_cannot_be_made_for_long_is_waited_for_in_the_queue(
    tweets: Project,
) -> None:
    for _ in range(20):
        tweets.wire.lose_call(CREATE, httpx2.ConnectError)

    run = tweets.start()

    assert tweets.wire.posts() < 12
    assert tweets.chunk_states() == {"planned": 1}
    assert run.waiting is not None
    assert run.waiting.is_for_room
    assert run.waiting.send_after is not None
    assert run.waiting.send_after - tweets.claude.now() <= timedelta(minutes=5)


def test_a_crash_between_intent_and_sending_sends_once(tweets: Project) -> None:
    class CrashError(BaseException):
        pass

    tweets.wire.faults.append((CREATE, _raising(CrashError)))
    with pytest.raises(CrashError):
        tweets.start(run_id="crashed")
    tweets.claude.simulator.advance(LONG_ENOUGH)

    assert len(tweets.materialize().rows) == 10
    assert len(tweets.answers()) == 10


def test_a_crash_after_sending_does_not_send_again(tweets: Project) -> None:
    class CrashError(BaseException):
        pass

    def crash(request: httpx2.Request) -> httpx2.Response:
        tweets.wire.transport.handle_request(request).read()
        raise CrashError

    tweets.wire.faults.append((CREATE, crash))
    with pytest.raises(CrashError):
        tweets.start(run_id="crashed")
    tweets.claude.simulator.advance(LONG_ENOUGH)
    tweets.end_batches()

    assert tweets.materialize().rows == []
    assert len(tweets.answers()) == 10


def _raising(error: type[BaseException]) -> Callable[[httpx2.Request], httpx2.Response]:
    def fault(request: httpx2.Request) -> httpx2.Response:
        del request
        raise error

    return fault


def test_a_full_queue_is_waited_for(project: Make) -> None:
    made = project(chunk_size=5, claude={"max_queued_requests": 8})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])

    run = made.start()

    assert made.chunk_states() == {"submitted": 1, "planned": 1}
    assert run.waiting is not None
    assert run.waiting.not_before is not None
    assert made.materialize().batches == [["t5", "t6", "t7", "t8", "t9"]]


def test_a_short_retry_after_is_honoured_in_the_run(tweets: Project) -> None:
    tweets.wire.answer(CREATE, 429, _error("rate_limit_error", "slow down"), **{"retry-after": "7"})

    before = tweets.claude.now()
    tweets.start()

    assert tweets.wire.posts() == 2
    assert timedelta(seconds=7) <= tweets.claude.now() - before < timedelta(seconds=30)


def test_a_long_retry_after_is_waited_for_in_the_queue(tweets: Project) -> None:
    slow_down = _error("rate_limit_error", "slow down")
    tweets.wire.answer(CREATE, 429, slow_down, **{"retry-after": "700"})

    before = tweets.claude.now()
    run = tweets.start()

    assert tweets.wire.posts() == 1
    assert run.waiting is not None
    assert run.waiting.send_after is not None
    pause = run.waiting.send_after - before
    assert timedelta(seconds=700) <= pause < timedelta(seconds=730)


def test_no_more_requests_are_out_than_the_window_holds(project: Make) -> None:
    made = project(chunk_size=4, claude={"max_in_flight_requests": 9})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])

    run = made.start()

    assert made.chunk_states() == {"submitted": 2, "planned": 1}
    assert run.waiting is not None
    assert (run.waiting.unsent, run.waiting.needs) == (1, 2)
    made.end_batches()
    run.advance()
    assert made.chunk_states() == {"landed": 2, "submitted": 1}


def test_all_assets_of_a_claude_resource_share_its_window(project: Make) -> None:
    made = project(claude={"max_in_flight_requests": 10})
    made.load([("tweets", f"t{n}", "x") for n in range(6)])
    made.start()
    made.declare(key="anger")

    run = made.start()
    assert made.chunk_states() == {"submitted": 1, "planned": 1}
    assert made.wire.posts() == 1
    made.declare(key="joy", claude_resource="another_claude")
    made.start()
    assert made.chunk_states() == {"submitted": 2, "planned": 1}

    made.end_batches()
    made.declare()
    made.materialize()
    run.advance()
    assert made.chunk_states() == {"submitted": 2, "landed": 1}


def test_a_chunk_larger_than_the_window_goes_alone(project: Make) -> None:
    made = project(chunk_size=4, claude={"max_in_flight_requests": 2})
    made.load([("tweets", f"t{n}", "x") for n in range(8)])

    made.start()

    assert made.chunk_states() == {"submitted": 1, "planned": 1}


@pytest.mark.parametrize(
    ("status", "error_type", "message", "code"),
    [
        (401, "authentication_error", "invalid x-api-key", None),
        (402, "billing_error", "pay first", None),
        (400, "invalid_request_error", "Your credit balance is too low to access the API", None),
        (400, "invalid_request_error", "You have reached your API usage limits.", None),
        (429, "rate_limit_error", "enough for this month", "enforced_spend_limit_reached"),
        (429, "rate_limit_error", "enough for this year", "contract_spend_limit_reached"),
        (400, "invalid_request_error", "This organization is disabled.", "organization_on_hold"),
        (400, "invalid_request_error", "The key is disabled.", "cmek_key_disabled"),
    ],
)
def test_a_halted_account_stops_the_sending_and_says_so(
    tweets: Project, status: int, error_type: str, message: str, code: str | None
) -> None:
    tweets.wire.answer(CREATE, status, _error(error_type, message, code))

    with pytest.raises(AccountHaltedError, match=message):
        tweets.start()
    assert tweets.wire.posts() == 1
    assert tweets.failures() == []
    assert len(tweets.materialize().rows) == 10


def test_what_was_sent_before_the_account_was_halted_is_collected(project: Make) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    halted = _error("billing_error", "pay first")
    made.wire.faults.append((CREATE, _passing(made)))
    made.wire.answer(CREATE, 402, halted)

    first = made.start(run_id="halted")
    assert first.waiting is not None
    assert made.chunk_states() == {"submitted": 1, "planned": 1}
    made.end_batches()
    made.wire.answer(CREATE, 402, halted)

    with pytest.raises(AccountHaltedError, match="5 rows were not sent"):
        first.advance()
    assert len(made.answers()) == 5


def _passing(project: Project) -> Callable[[httpx2.Request], httpx2.Response]:
    return project.wire.transport.handle_request


def test_a_batch_that_the_api_refuses_is_an_error_that_names_the_reason(tweets: Project) -> None:
    tweets.wire.answer(CREATE, 400, _error("invalid_request_error", "requests: too odd"))

    with pytest.raises(SubmissionRefusedError, match="requests: too odd"):
        tweets.start()
    assert len(tweets.materialize().rows) == 10


def _error(error_type: str, message: str, code: str | None = None) -> dict[str, object]:
    details = {"details": {"error_code": code}} if code else {}
    return {"type": "error", "error": {"type": error_type, "message": message, **details}}


def test_rows_that_change_before_their_chunk_is_sent_are_asked_as_they_are(project: Make) -> None:
    made = project(chunk_size=5, claude={"max_in_flight_requests": 5})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    made.change("t7", "changed meanwhile")
    made.remove("t8")
    made.change("t9", None)
    made.end_batches()

    run.advance()

    assert sorted(made.sent().batches[1]) == ["t5", "t6", "t7"]
    made.end_batches()
    assert run.advance() is None
    assert made.materialize().rows == []
    assert made.failures() == [("t9", "invalid_row")]


def test_a_source_in_another_order_than_it_was_planned_in_is_sent_whole(project: Make) -> None:
    made = project(chunk_size=5, claude={"max_in_flight_requests": 5})
    made.load([("tweets", f"t{n}", f"It is {n}.") for n in range(15)])
    run = made.start()
    made.sql("CREATE TABLE other AS FROM texts ORDER BY hash(id)")
    made.sql("DROP TABLE texts")
    made.sql("ALTER TABLE other RENAME TO texts")
    made.end_batches()
    run.advance()
    made.end_batches()
    run.advance()

    batches = made.claude.simulator.batches()
    numbers = [
        [custom_id.rpartition("-")[2] for custom_id, _ in made.claude.simulator.requests(batch.id)]
        for batch in batches
    ]
    assert numbers == [[str(n) for n in range(5)]] * 3
    assert sorted(made.sent().batches[-1]) == [f"t{n}" for n in range(10, 15)]


def test_the_body_that_was_sent_is_the_one_in_the_ledger(tweets: Project) -> None:
    tweets.start()

    (batch,) = tweets.claude.simulator.batches()
    ((size, requests, nonce),) = tweets.sql(
        "SELECT bytes, requests, nonce FROM claude_batch.chunks"
    )
    ids = [custom_id for custom_id, _ in tweets.claude.simulator.requests(batch.id)]
    assert requests == 10
    assert size > 1_000
    assert ids == [f"{nonce}-{n}" for n in range(10)]


@pytest.mark.opens_anew
def test_the_database_is_free_while_something_is_sent_or_downloaded(tweets: Project) -> None:
    opened: list[str] = []

    def open_elsewhere(request: httpx2.Request) -> httpx2.Response:
        script = "import duckdb, sys; duckdb.connect(sys.argv[1])"
        elsewhere = subprocess.run([sys.executable, "-c", script, str(tweets.path)], check=False)
        opened.append(f"{request.method} {elsewhere.returncode}")
        return tweets.wire.transport.handle_request(request)

    for call in (CREATE, "GET /v1/models/claude-haiku-5-5", "GET /v1/messages/batches/…/results"):
        tweets.wire.faults.append((call, open_elsewhere))

    tweets.materialize()

    assert opened == ["GET 0", "POST 0", "GET 0"]


def test_an_error_after_something_was_sent_still_knows_that_it_is_out(project: Make) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    made.wire.faults.append((CREATE, _passing(made)))
    made.wire.faults.append((CREATE, _raising(ZeroDivisionError)))
    engine = made.engine()
    materializations = engine.attach(["tweets"], MaterializationConfig())
    assert not engine.may_be_out(materializations)

    engine.advance(materializations)

    assert engine.may_be_out(materializations)
    made.path.rename(made.path.with_suffix(".moved"))
    assert engine.may_be_out(materializations)


@pytest.mark.parametrize("minutes", [14, 19, 60])
def test_a_batch_that_is_created_late_in_a_long_call_is_found(
    tweets: Project, minutes: float
) -> None:
    def late(request: httpx2.Request) -> httpx2.Response:
        tweets.claude.simulator.advance(timedelta(minutes=minutes))
        tweets.wire.transport.handle_request(request).read()
        raise httpx2.ReadTimeout("the answer was lost", request=request)

    tweets.wire.faults.append((CREATE, late))

    tweets.materialize()

    assert tweets.wire.posts() == 1
    assert len(tweets.answers()) == 10


def test_whose_call_nobody_saw_to_end_is_looked_for_as_long_as_a_call_can_take(
    tweets: Project,
) -> None:
    """The API may be silent for as long again as the upload may take."""

    def late(request: httpx2.Request) -> httpx2.Response:
        tweets.claude.simulator.advance(timedelta(minutes=19))
        tweets.wire.transport.handle_request(request).read()
        raise KeyboardInterrupt

    tweets.wire.faults.append((CREATE, late))
    with pytest.raises(KeyboardInterrupt):
        tweets.start()

    tweets.materialize()

    assert tweets.wire.posts() == 1


@pytest.mark.parametrize("answer", ["{}", '{"data": null}', '{"data": []}', "[]", "null"])
def test_what_is_no_page_of_batches_does_not_show_that_there_is_none(
    tweets: Project, answer: str
) -> None:
    tweets.wire.lose_answer(CREATE)
    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    page = httpx2.Response(200, text=answer, headers={"content-type": "application/json"})
    tweets.wire.faults.append(("GET /v1/messages/batches", lambda _: page))

    run.advance()

    assert tweets.wire.posts() == 1
    assert tweets.chunk_states() == {"sending": 1}
