"""What goes wrong on the first day says so: credentials, proxies, uploads that take too long."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta

import httpx2
import pytest
from kit import Project, RunOfTest, WiredClaude

from dagster_claude_batch.errors import (
    ClockError,
    NoCredentialsError,
    RequestRefusedError,
    UnreadableAnswerError,
)
from dagster_claude_batch.ledger import MaterializationConfig

Make = Callable[..., Project]
CREATE = "POST /v1/messages/batches"
MODEL = "GET /v1/models/claude-haiku-5-5"
COUNT = "POST /v1/messages/count_tokens"


class _WithoutKey(WiredClaude):
    def _credential(self) -> str | None:
        return None


def test_missing_credentials_are_an_error_that_says_where_to_put_them(
    tweets: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tweets.directory))
    tweets.claude = _WithoutKey(path=tweets.claude.path)

    with pytest.raises(NoCredentialsError, match="ANTHROPIC_API_KEY"):
        tweets.start()

    assert tweets.wire.posts() == 0


@pytest.mark.parametrize("text", ["<html>Sign in</html>", "{}", "null", '{"id": 5}'])
def test_a_page_of_a_proxy_instead_of_the_model_stops_nothing(tweets: Project, text: str) -> None:
    page = httpx2.Response(200, text=text, headers={"content-type": "application/json"})
    tweets.wire.faults.append((MODEL, lambda _: page))

    assert len(tweets.materialize().rows) == 10


@pytest.mark.parametrize("verb", ["retrieve", "cancel", "delete", "results"])
def test_a_page_of_a_proxy_instead_of_a_batch_is_an_error_that_says_so(
    tweets: Project, verb: str
) -> None:
    tweets.start()
    (batch,) = tweets.claude.simulator.batches()
    page = httpx2.Response(200, text="<html>Sign in</html>")
    path = f"/v1/messages/batches/{batch.id}"
    for call in (f"GET {path}", f"POST {path}/cancel", f"DELETE {path}"):
        tweets.wire.faults.append((call, lambda _: page))

    with pytest.raises(UnreadableAnswerError, match="base_url"):
        getattr(tweets.claude, verb)(batch.id)


def test_an_upload_that_takes_too_long_is_a_doubt(project: Make) -> None:
    made = project(claude={"timeout_seconds": 1e-9})
    made.load([("tweets", "t1", "x")])

    made.start()

    assert made.chunk_states() == {"sending": 1}
    assert made.claude.simulator.batches() == []


def test_results_without_an_address_are_waited_for_until_they_are_archived(
    tweets: Project,
) -> None:
    run = tweets.start()
    (batch,) = tweets.claude.simulator.batches()
    tweets.end_batches()

    def without_address(body: bytes) -> bytes:
        return json.dumps({**json.loads(body), "results_url": None}).encode()

    for _ in range(2):
        tweets.wire.change_answer(f"GET /v1/messages/batches/{batch.id}", without_address)
    waiting = run.advance()

    assert waiting is not None
    assert waiting.not_before is not None
    assert waiting.not_before - tweets.claude.now() < timedelta(minutes=11)
    assert tweets.chunk_states() == {"submitted": 1}
    assert run.advance() is None
    assert len(tweets.answers()) == 10


def test_batches_that_nobody_can_collect_do_not_fill_the_window_for_ever(project: Make) -> None:
    made = project(claude={"max_in_flight_requests": 10})
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in ("tweets", "reviews") for n in range(8)])
    made.start("tweets")

    waiting = made.start("reviews").waiting
    assert waiting is not None
    assert waiting.is_for_room
    assert waiting.not_before is not None
    assert waiting.not_before <= made.claude.now() + timedelta(hours=25)
    assert made.wire.posts() == 1
    made.claude.simulator.advance(timedelta(hours=26))

    made.start("reviews")

    assert made.wire.posts() == 2


class _OfAnotherTime(WiredClaude):
    minutes: float

    def now(self) -> datetime:
        return super().now() + timedelta(minutes=self.minutes)


@pytest.mark.parametrize(("minutes", "said"), [(10, "10 minutes ahead"), (-25, "25 minutes behi")])
def test_a_clock_that_is_wrong_is_an_error_before_anything_is_sent(
    tweets: Project, minutes: float, said: str
) -> None:
    tweets.claude = _OfAnotherTime(path=tweets.claude.path, minutes=minutes)

    with pytest.raises(ClockError, match=said):
        tweets.start()

    assert tweets.wire.posts() == 0
    assert tweets.chunk_states() == {"dissolved": 1}


@pytest.mark.parametrize("minutes", [-4, 4])
def test_a_clock_that_is_a_little_wrong_pays_for_nothing_twice(
    tweets: Project, minutes: float
) -> None:
    tweets.claude = _OfAnotherTime(path=tweets.claude.path, minutes=minutes)
    tweets.wire.lose_answer(CREATE)

    tweets.materialize()

    assert tweets.wire.posts() == 1


@pytest.mark.parametrize("date", ["", "yesterday", "Sun, 22 Nov 2026 12:00:00 -0000"])
def test_an_answer_without_a_time_stops_nothing(tweets: Project, date: str) -> None:
    answer = tweets.claude.client.models.retrieve("claude-haiku-5-5").model_dump(mode="json")
    tweets.wire.answer(MODEL, 200, answer, date=date)

    assert len(tweets.materialize().rows) == 10


def test_a_slow_answer_is_no_wrong_clock(tweets: Project) -> None:
    def slow(request: httpx2.Request) -> httpx2.Response:
        answer = tweets.wire.transport.handle_request(request)
        tweets.claude.simulator.advance(timedelta(minutes=20))
        return answer

    tweets.wire.faults.append((MODEL, slow))

    assert len(tweets.materialize().rows) == 10


# --- one request, looked at before any is sent --------------------------------------------------


@pytest.mark.parametrize("rows", [2, 10])
def test_requests_that_the_api_would_refuse_stop_all_before_anything_is_sent(
    project: Make, rows: int
) -> None:
    made = project(params={"thinking": {"type": "enabled", "budget_tokens": 2_000}})
    made.load([("tweets", f"t{n}", f"x{n}") for n in range(rows)])

    with pytest.raises(RequestRefusedError, match=r"'sentiment': thinking\.type") as raised:
        made.start()

    assert "Nothing was sent" in str(raised.value)
    assert made.wire.posts() == 0
    assert made.chunk_states() == {"dissolved": 1}
    made.declare()
    assert len(made.materialize().rows) == rows


@pytest.mark.parametrize("rows", [1, 5])
def test_a_row_that_the_api_would_refuse_fails_alone_wherever_it_stands(
    project: Make, rows: int
) -> None:
    made = project(max_failure_rate=0.5)
    made.load([("tweets", f"t{n}", "x") for n in range(rows)])
    made.sql("UPDATE texts SET text = repeat('x ', 3000000) WHERE id = 't0'")

    made.materialize()

    assert made.failures() == [("t0", "invalid_request_error")]
    assert len(made.answers()) == rows - 1


def test_what_would_be_refused_is_sent_by_no_other_run_either(project: Make) -> None:
    made = project(params={"thinking": {"type": "enabled", "budget_tokens": 2_000}})
    made.load([("tweets", f"t{n}", f"x{n}") for n in range(5)])
    runs = [RunOfTest(made, made.engine()) for _ in range(2)]
    for run in runs:
        run.materializations = run.engine.attach(["tweets"], MaterializationConfig())

    for run in runs:
        with pytest.raises(RequestRefusedError):
            run.advance()

    assert made.wire.posts() == 0


def test_each_materialization_has_a_few_requests_looked_at(tweets: Project) -> None:
    tweets.declare(chunk_size=4)
    looked_at: list[dict[str, object]] = []

    def note(body: bytes) -> bytes:
        looked_at.append(json.loads(body))
        return body

    tweets.wire.change_call(COUNT, note)

    tweets.materialize()

    assert tweets.wire.calls.count(COUNT) == 3
    (asked,) = looked_at
    assert asked["messages"] == [{"role": "user", "content": "Rate t0 now: Tweet number 0"}]
    assert "max_tokens" not in asked


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(404, text="<html>Not here</html>"),
        httpx2.Response(429, json={"type": "error", "error": {"type": "rate_limit_error"}}),
        httpx2.Response(200, text="<html>Sign in</html>"),
        httpx2.Response(200, json={"input_tokens": "many"}),
        httpx2.Response(
            400,
            json={
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "Your credit balance is too low to access the Anthropic API.",
                },
            },
        ),
    ],
    ids=["no such endpoint", "too many", "proxy", "no number", "account"],
)
def test_an_api_that_counts_no_tokens_stops_nothing(
    tweets: Project, answer: httpx2.Response
) -> None:
    for _ in range(3):
        tweets.wire.faults.append((COUNT, lambda _: answer))

    assert len(tweets.materialize().rows) == 10


def test_an_api_that_cannot_be_reached_to_count_tokens_stops_nothing(tweets: Project) -> None:
    for _ in range(3):
        tweets.wire.lose_call(COUNT, httpx2.ConnectError)

    assert len(tweets.materialize().rows) == 10
