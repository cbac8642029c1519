"""Runs that ask some rows, or none, before all of them are paid for."""

import json
from collections.abc import Callable
from typing import Any

import dagster as dg
import httpx2
import pytest
from kit import Project

from dagster_claude_batch.errors import (
    DuplicateRowKeyError,
    ModelUnavailableError,
    RequestRefusedError,
    SourceNotFoundError,
)
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.rehearsal import RehearsedPartition
from dagster_claude_batch.trial import describe_rehearsal

Make = Callable[..., Project]
TEN = [f"t{n}" for n in range(10)]


def _tables(project: Project) -> dict[str, object]:
    """All tables with their rows."""
    names = project.sql("SELECT schema_name || '.' || table_name FROM duckdb_tables() ORDER BY ALL")
    return {name: project.sql(f"SELECT * FROM {name} ORDER BY ALL") for (name,) in names}


def test_at_most_so_many_rows_are_sent_and_the_rest_when_there_is_no_limit(
    tweets: Project,
) -> None:
    limited = tweets.materialize(limit=3)
    rest = tweets.materialize()

    assert len(limited.rows) == 3
    assert sorted(limited.rows + rest.rows) == TEN
    assert tweets.answers() == TEN


def test_another_limited_run_asks_the_next_rows(tweets: Project) -> None:
    first, second = tweets.materialize(limit=3), tweets.materialize(limit=4)

    assert (len(first.rows), len(second.rows)) == (3, 4)
    assert len(set(first.rows + second.rows)) == 7


def test_the_limit_is_for_all_partitions_of_a_run_together(project: Make) -> None:
    made = project()
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in ("tweets", "reviews") for n in range(4)])

    assert len(made.materialize("tweets", "reviews", limit=5).rows) == 5


def test_a_run_without_limit_takes_over_what_a_limited_one_has_out(tweets: Project) -> None:
    limited = tweets.start(run_id="limited", limit=3)
    everything = tweets.start(run_id="everything")

    simulator = tweets.claude.simulator
    sent = [len(list(simulator.requests(batch.id))) for batch in simulator.batches()]
    assert sorted(sent) == [3, 7]
    assert everything.waiting is not None
    assert len(everything.waiting.batch_ids) == 2
    assert limited.advance() is None
    tweets.end_batches()
    assert everything.advance() is None
    assert tweets.answers() == TEN
    assert tweets.wire.posts() == 2


def test_rows_that_a_limited_run_had_only_planned_are_asked_once(project: Make) -> None:
    made = project(chunk_size=2, claude={"max_in_flight_requests": 2})
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    limited = made.start(run_id="limited", limit=4)
    everything = made.start(run_id="everything")

    for _ in range(10):
        made.end_batches()
        limited.advance()
        if everything.advance() is None:
            break

    sent = [
        params["messages"][0]["content"]
        for batch in made.claude.simulator.batches()
        for _, params in made.claude.simulator.requests(batch.id)
    ]
    assert len(sent) == len(set(sent)) == 10
    assert made.answers() == TEN


def test_a_limited_run_joins_one_that_asks_everything(tweets: Project) -> None:
    everything = tweets.start(run_id="everything")
    limited = tweets.start(run_id="limited", limit=3)

    assert limited.waiting == everything.waiting
    tweets.end_batches()
    assert (limited.advance(), everything.advance()) == (None, None)
    assert tweets.wire.posts() == 1
    assert tweets.answers() == TEN


def test_limited_runs_at_once_send_once(tweets: Project) -> None:
    first = tweets.start(run_id="first", limit=3)
    second = tweets.start(run_id="second", limit=3)
    tweets.end_batches()

    assert (first.advance(), second.advance()) == (None, None)
    assert tweets.wire.posts() == 1
    assert len(tweets.answers()) == 3


@pytest.mark.parametrize("is_known", [False, True], ids=["at first", "later"])
def test_a_dry_run_says_what_would_be_sent_and_changes_nothing(
    tweets: Project, *, is_known: bool
) -> None:
    if is_known:
        tweets.materialize(limit=4)
    tweets.change("t9", None)
    posts, before = tweets.wire.posts(), _tables(tweets)

    rehearsal = tweets.engine().rehearse(["tweets", "reviews"], MaterializationConfig())

    due = 5 if is_known else 9
    (part, empty) = rehearsal.partitions
    assert (part.rows, part.invalid, rehearsal.rows, rehearsal.chunks) == (due, 1, due, 1)
    assert len(part.examples) == 3
    asked = {(key, json.loads(params)["messages"][0]["content"]) for key, params in part.examples}
    assert asked < {(f"t{n}", f"Rate t{n} now: Tweet number {n}") for n in range(9)}
    assert empty == RehearsedPartition("reviews", 0, 0, 0, 0, 0, [])
    assert _tables(tweets) == before
    assert tweets.wire.posts() == posts


def test_a_dry_run_keeps_the_limit(tweets: Project) -> None:
    rehearsal = tweets.engine().rehearse(["tweets"], MaterializationConfig(limit=2))

    assert (rehearsal.rows, len(rehearsal.partitions[0].examples)) == (2, 2)


def test_a_dry_run_fails_for_a_model_that_does_not_exist(tweets: Project) -> None:
    tweets.declare(model="claude-haiku-99")
    before = _tables(tweets)

    with pytest.raises(ModelUnavailableError, match="does not exist"):
        tweets.engine().rehearse(["tweets"], MaterializationConfig())

    assert _tables(tweets) == before


def test_a_dry_run_without_an_api_says_what_it_could_not_check(tweets: Project) -> None:
    claude = tweets.claude
    claude.__dict__["client"] = claude.client.with_options(max_retries=0)
    tweets.wire.lose_call("GET /v1/models/claude-haiku-5-5", httpx2.ConnectError)

    def said() -> str:
        found = tweets.engine().rehearse(["tweets"], MaterializationConfig())
        key, declaration = dg.AssetKey("sentiment"), tweets.asset.declaration
        (observation,) = describe_rehearsal(key, declaration, found)
        return str(observation.description)

    assert said().endswith("could not be checked, for the API gave no answer (APIConnectionError).")
    assert said().endswith("nothing is changed.")


def _metadata(project: Project) -> dict[str, Any]:
    found = project.engine().rehearse(["tweets"], MaterializationConfig())
    key, declaration = dg.AssetKey("sentiment"), project.asset.declaration
    (observation,) = describe_rehearsal(key, declaration, found)
    return {name: value.value for name, value in observation.metadata.items()}


def test_a_dry_run_says_what_it_would_take_and_a_run_takes_no_more(tweets: Project) -> None:
    said = _metadata(tweets)
    tweets.materialize()

    bill = [each.usage for each in tweets.claude.simulator.bill()]
    ((cost,),) = tweets.sql("SELECT sum(_cost_usd) FROM main.sentiment")
    assert said["estimated_by"] == "by 3 requests that the API counted, ± 0%"
    tokens = sum(usage["input_tokens"] for usage in bill)
    assert said["estimated_input_tokens"] == pytest.approx(tokens, rel=0.02)
    assert "estimated_cost_usd" not in said  # nothing was known yet
    assert said["estimated_cost_usd_at_most"] >= float(cost) > 0
    assert said["estimated_standard_price_usd_at_most"] == pytest.approx(
        2 * said["estimated_cost_usd_at_most"]
    )


def test_what_rows_probably_cost_is_known_from_the_answers_so_far(tweets: Project) -> None:
    tweets.materialize(limit=4)
    ((so_far,),) = tweets.sql("SELECT sum(_cost_usd) FROM main.sentiment")

    said = _metadata(tweets)
    tweets.materialize()

    ((cost,),) = tweets.sql("SELECT sum(_cost_usd) FROM main.sentiment")
    assert said["estimated_cost_usd"] == pytest.approx(float(so_far) * 6 / 4)
    assert said["estimated_cost_usd"] == pytest.approx(float(cost - so_far), rel=0.1)
    assert said["estimated_cost_usd"] < said["estimated_cost_usd_at_most"]


def test_a_run_says_before_it_sends_what_that_may_cost(tweets: Project) -> None:
    tweets.materialize(limit=4)

    run = tweets.start()

    (estimate,) = run.engine.estimates
    assert (estimate.requests, estimate.counted, estimate.landed) == (6, 3, 4)
    assert estimate.said().startswith("About ")
    tweets.end_batches()
    run.advance()
    billed = [each.usage for each in tweets.claude.simulator.bill()][4:]
    tokens = sum(usage["input_tokens"] for usage in billed)
    assert estimate.input_tokens == pytest.approx(tokens, rel=0.02)
    most = estimate.most_usd or 0
    assert sum(u["output_tokens"] for u in billed) * 0.25e-6 < float(most)


def test_the_error_of_an_estimate_shrinks_where_all_requests_are_alike(tweets: Project) -> None:
    run = tweets.start()
    (alike,) = run.engine.estimates
    tweets.end_batches()
    run.advance()
    tweets.load([("tweets", "a", "word " * 900), ("tweets", "b", "x"), ("tweets", "c", "é" * 40)])
    (unlike,) = tweets.start().engine.estimates

    assert alike.error == pytest.approx(0, abs=0.02)
    assert (unlike.error or 0) > 0.1


def test_where_tokens_cannot_be_counted_they_are_guessed_from_bytes(tweets: Project) -> None:
    claude = tweets.claude
    claude.__dict__["client"] = claude.client.with_options(max_retries=0)
    tweets.wire.lose_call("POST /v1/messages/count_tokens", httpx2.ConnectError)

    said = _metadata(tweets)

    assert said["estimated_by"] == "by their bytes"
    assert 10 * 50 < said["estimated_input_tokens"] < 10 * 500


def test_a_dry_run_of_a_model_without_a_known_price_says_so(tweets: Project) -> None:
    model = tweets.claude.client.models.retrieve("claude-opus-5-5").to_dict(mode="json")
    tweets.declare(model="claude-of-tomorrow")
    tweets.wire.answer(
        "GET /v1/models/claude-of-tomorrow", 200, {**model, "id": "claude-of-tomorrow"}
    )
    tweets.wire.answer("POST /v1/messages/count_tokens", 200, {"input_tokens": 7})

    assert _metadata(tweets)["estimated_cost_usd_at_most"] == "no known price"


def test_a_dry_run_fails_for_requests_that_the_api_would_refuse(tweets: Project) -> None:
    tweets.declare(params={"thinking": {"type": "enabled", "budget_tokens": 2_000}})

    with pytest.raises(RequestRefusedError, match=r"'sentiment': thinking\.type"):
        tweets.engine().rehearse(["tweets"], MaterializationConfig())


def test_a_dry_run_fails_for_what_a_run_would_fail_for(tweets: Project) -> None:
    tweets.sql("INSERT INTO texts VALUES ('tweets', 't1', 'again')")
    with pytest.raises(DuplicateRowKeyError):
        tweets.engine().rehearse(["tweets"], MaterializationConfig())

    tweets.sql("DROP TABLE texts")
    with pytest.raises(SourceNotFoundError):
        tweets.engine().rehearse(["tweets"], MaterializationConfig())
