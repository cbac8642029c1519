"""Each row ends as one outcome; failures that may pass are tried again."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from kit import Project, RunOfTest

from dagster_claude_batch.metadata import metadata_of

Make = Callable[..., Project]
RESULTS = "GET /v1/messages/batches/…/results"


@pytest.mark.parametrize(
    ("end", "error_type", "retryable"),
    [
        ("errored:invalid_request_error", "invalid_request_error", False),
        ("errored:not_found_error", "not_found_error", False),
        ("errored:permission_error", "permission_error", False),
        ("errored:authentication_error", "authentication_error", False),
        ("errored:api_error", "api_error", True),
        ("errored:overloaded_error", "overloaded_error", True),
        ("errored:timeout_error", "timeout_error", True),
        ("errored:rate_limit_error", "rate_limit_error", True),
        ("expired", "expired", True),
        ("canceled", "canceled", True),
        ("missing", "missing", True),
        ("refusal", "refusal", False),
        ("max_tokens", "max_tokens", True),
        ("pause_turn", "pause_turn", False),
        ("model_context_window_exceeded", "model_context_window_exceeded", False),
        ("invalid_output", "invalid_output", True),
        ("unknown", "unrecognized_result", False),
    ],
)
def test_each_way_to_fail_is_told_apart(
    project: Make, end: str, error_type: str, *, retryable: bool
) -> None:
    made = project(max_attempts=1)
    made.load([("tweets", "t1", "x"), ("tweets", "t2", "y")])
    made.script.ends_with("t2", end)

    made.materialize()

    assert made.answers() == ["t1"]
    assert made.failures("id, _error_type, _retryable, _attempts") == [
        ("t2", error_type, retryable, 1)
    ]


def test_a_failure_keeps_the_raw_result_and_the_request_id(project: Make) -> None:
    made = project()
    made.load([("tweets", "t2", "y")])
    made.script.ends_with("t2", "errored:invalid_request_error")

    made.materialize()

    ((response, request_id, message),) = made.failures("_response, _request_id, _error_message")
    assert '"type": "errored"' in response
    assert request_id.startswith("req_")
    assert message


def test_a_failure_that_was_billed_carries_its_cost(project: Make) -> None:
    made = project()
    made.load([("tweets", "t2", "y"), ("tweets", "t3", "z")])
    made.script.ends_with("t2", "refusal")
    made.script.ends_with("t3", "errored:invalid_request_error")

    made.materialize()

    assert made.failures("id, _stop_reason, _cost_usd > 0, _input_tokens > 0") == [
        ("t2", "refusal", True, True),
        ("t3", None, False, False),
    ]


def test_a_failure_that_may_pass_is_asked_again_in_the_same_materialization(
    tweets: Project,
) -> None:
    tweets.script.ends_with("t4", "errored:overloaded_error", None)

    assert tweets.materialize().batches[1:] == [["t4"]]
    assert tweets.failures() == []
    assert tweets.sql("SELECT _attempts FROM sentiment WHERE id = 't4'") == [(2,)]


def test_after_max_attempts_a_failure_stays(tweets: Project) -> None:
    tweets.script.ends_with("t4", "expired")

    assert tweets.materialize().batches[1:] == [["t4"], ["t4"]]
    assert tweets.failures("id, _error_type, _attempts") == [("t4", "expired", 3)]


def test_a_new_materialization_asks_again_what_may_pass_with_attempts_of_its_own(
    tweets: Project,
) -> None:
    tweets.script.ends_with("t4", "expired", "expired", "expired", "expired", None)
    tweets.materialize()

    assert tweets.materialize().batches == [["t4"], ["t4"]]
    assert tweets.failures() == []


def test_what_cannot_pass_is_not_asked_again(tweets: Project) -> None:
    tweets.script.ends_with("t4", "refusal")
    tweets.materialize()

    assert tweets.materialize().rows == []
    assert tweets.materialize(retry_failed="all").rows == ["t4"]


def test_retry_failed_none_asks_no_failure_again(tweets: Project) -> None:
    tweets.script.ends_with("t4", "expired")
    tweets.materialize()

    assert tweets.materialize(retry_failed="none").rows == []


def test_a_truncated_answer_is_asked_again_with_twice_the_room(tweets: Project) -> None:
    tweets.script.ends_with("t4", "max_tokens", "max_tokens", None)

    tweets.materialize()

    limits = [
        params["max_tokens"]
        for batch in tweets.claude.simulator.batches()
        for _, params in tweets.claude.simulator.requests(batch.id)
        if "t4" in params["messages"][-1]["content"]
    ]
    assert limits == [1024, 2048, 4096]
    assert "t4" in tweets.answers()


def test_the_room_for_an_answer_ends_at_the_models_own_limit(project: Make) -> None:
    made = project(model="claude-haiku-4-5", max_tokens=40_000)
    made.load([("tweets", "t4", "x")])
    made.script.ends_with("t4", "max_tokens")

    made.materialize()

    assert made.sql("SELECT max_tokens FROM claude_batch.chunks ORDER BY attempt") == [
        (40_000,),
        (64_000,),
    ]
    assert made.failures("_error_type, _retryable") == [("max_tokens", False)]


def test_usage_is_summed_over_the_attempts_of_a_row(tweets: Project) -> None:
    tweets.script.ends_with("t4", "invalid_output", "invalid_output", None)

    tweets.materialize()

    billed = [b for b in tweets.claude.simulator.bill() if b.batch_id]
    attempts = [
        (b.usage["input_tokens"], b.usage["output_tokens"])
        for b in billed
        if b.custom_id in _custom_ids_of(tweets, "t4")
    ]
    assert len(attempts) == 3
    assert tweets.sql("SELECT _input_tokens, _output_tokens FROM sentiment WHERE id = 't4'") == [
        (sum(i for i, _ in attempts), sum(o for _, o in attempts))
    ]


def _custom_ids_of(project: Project, row: str) -> set[str]:
    simulator = project.claude.simulator
    return {
        custom_id
        for batch in simulator.batches()
        for custom_id, params in simulator.requests(batch.id)
        if row in params["messages"][-1]["content"].split()
    }


def test_the_usage_of_a_row_that_changed_and_then_failed_is_summed_too(project: Make) -> None:
    made = project(max_wait_hours=10)
    made.load([("tweets", "t1", "First")])
    made.materialize()
    made.change("t1", "Changed")
    made.script.replies_with("t1", "no JSON")
    run = made.start()
    made.end_batches()
    run.advance()

    made.claude.simulator.advance(timedelta(hours=11))
    made.end_batches()

    assert run.advance() is None
    (usage,) = made.sql(
        "SELECT count(*), sum(_input_tokens), sum(_output_tokens), sum(_cost_usd) "
        "FROM claude_batch.requests_1 WHERE _outcome = 'invalid_output'"
    )
    assert usage[0] == 2
    assert made.failures("_attempts, _input_tokens, _output_tokens, _cost_usd") == [usage]


def test_the_ledger_knows_the_cost_of_all_attempts(tweets: Project) -> None:
    tweets.script.ends_with("t4", "invalid_output")
    tweets.script.ends_with("t5", "refusal")

    tweets.materialize()

    billed = tweets.claude.simulator.bill()
    ((tokens_in, tokens_out),) = tweets.sql(
        "SELECT sum(input_tokens), sum(output_tokens) FROM claude_batch.requests"
    )
    assert tokens_in == sum(b.usage["input_tokens"] for b in billed)
    assert tokens_out == sum(b.usage["output_tokens"] for b in billed)


def test_the_cost_of_a_model_without_a_known_price_is_null_and_never_zero(project: Make) -> None:
    made = project(model="claude-novel-1")
    made.load([("tweets", "t1", "x")])
    made.wire.answer("GET /v1/models/claude-novel-1", 200, _model_info("claude-novel-1"))
    made.wire.change_call(
        "POST /v1/messages/batches",
        lambda body: body.replace(b"claude-novel-1", b"claude-haiku-5-5"),
    )
    run = made.start()
    made.end_batches()

    run.advance()

    assert made.answers("_cost_usd") == [None]
    assert _cost_said(made, run) == "unknown: no batch price is known for this model"


def _cost_said(project: Project, run: RunOfTest) -> object:
    return metadata_of(project.asset.declaration, run.report())["cost_usd"]


@pytest.mark.parametrize("lost", ["results_expired", "missing"])
def test_the_cost_is_unknown_where_an_attempt_may_have_been_billed_without_a_result(
    tweets: Project, lost: str
) -> None:
    run = tweets.start()
    tweets.end_batches()
    if lost == "missing":
        tweets.claude.simulator.advance(timedelta(hours=1))
        for _ in range(3):
            tweets.wire.change_answer(RESULTS, lambda body: body.splitlines(keepends=True)[0])
    else:
        tweets.claude.simulator.advance(timedelta(days=30))
    run.advance()
    while run.waiting is not None:
        tweets.end_batches()
        run.advance()

    asked_twice = 10 if lost == "results_expired" else 9
    assert len(tweets.answers()) == 10
    assert tweets.answers("_cost_usd IS NULL, _attempts").count((True, 2)) == asked_twice
    assert _cost_said(tweets, run) == (
        f"unknown: no result that could be read says what {asked_twice} requests cost"
    )


def _model_info(model: str) -> dict[str, object]:
    return {
        "id": model,
        "type": "model",
        "display_name": model,
        "created_at": "2024-03-07T00:00:00Z",
        "lifecycle": "active",
        "max_tokens": 4096,
    }


def test_rows_that_a_person_cancelled_are_not_sent_again_by_themselves(tweets: Project) -> None:
    run = tweets.start()
    (batch,) = tweets.claude.simulator.batches()
    tweets.claude.cancel(batch.id)
    tweets.end_batches()

    assert run.advance() is None
    assert len(tweets.failures()) == 10
    assert tweets.wire.posts() == 1


def test_a_new_materialization_sends_what_a_person_cancelled(tweets: Project) -> None:
    run = tweets.start()
    (batch,) = tweets.claude.simulator.batches()
    tweets.claude.cancel(batch.id)
    tweets.end_batches()
    run.advance()

    assert len(tweets.materialize().rows) == 10
    assert tweets.failures() == []


def test_retries_go_in_smaller_batches(project: Make) -> None:
    made = project(chunk_size=8)
    made.load([("tweets", f"t{n}", "x") for n in range(8)])
    for n in range(8):
        made.script.ends_with(f"t{n}", "expired", None)

    assert [len(batch) for batch in made.materialize().batches] == [8, 4, 4]
