"""What was spent, as the ledger and the metadata show it, beside the simulator's bill."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from kit import Project

from dagster_claude_batch import ledger
from dagster_claude_batch.metadata import SHOWN, metadata_of
from dagster_claude_batch.simulator import Reply

Make = Callable[..., Project]
ANSWER = [{"type": "text", "text": '{"label": "positive", "score": 0.5}'}]


def billed(project: Project, model: str = "claude-haiku-5-5", kind: str = "batch") -> Decimal:
    """What the simulator's bill comes to, by a price list that is not ours."""
    return sum(
        (_price(each.usage, model, kind) for each in project.claude.simulator.bill()), Decimal(0)
    )


def _price(usage: dict[str, Any], model: str, kind: str) -> Decimal:
    read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    for_an_hour = (usage["cache_creation"] or {}).get("ephemeral_1h_input_tokens", 0)
    searches = (usage.get("server_tool_use") or {}).get("web_search_requests", 0)
    counted = Usage(
        input_tokens=usage["input_tokens"] + read + written,
        output_tokens=usage["output_tokens"],
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_5m_tokens=written - for_an_hour,
        cache_write_1h_tokens=for_an_hour,
        web_searches=searches,
    )
    context = {"processing": "batch"} if kind == "batch" else {}
    found = calc_price(counted, model_ref=model, provider_id="anthropic", price_context=context)
    return found.total_price


def _metadata(project: Project, **config: Any) -> dict[str, Any]:
    run = project.start(**config)
    for _ in range(10):
        if run.waiting is None:
            return metadata_of(project.asset.declaration, run.report())
        project.end_batches()
        run.advance()
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("model", ["claude-haiku-5-5", "claude-sonnet-5-5", "claude-haiku-4-5"])
def test_cost_saving_and_standard_price_are_those_of_the_bill(project: Make, model: str) -> None:
    made = project(model=model)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    made.script.ends_with("t3", "invalid_output", None)
    made.script.ends_with("t4", "refusal")

    said = _metadata(made)

    cost, standard = billed(made, model), billed(made, model, "standard")
    assert said["cost_usd"] == pytest.approx(float(cost), abs=1e-12)
    assert said["cost_usd_standard_price"] == pytest.approx(float(standard), abs=1e-12)
    assert said["saving_usd"] == pytest.approx(float(standard - cost), abs=1e-12)
    assert said["cost_usd_per_1000_rows"] == pytest.approx(float(cost) / 9 * 1_000)
    assert 0 < said["output_tokens_median"] <= said["output_tokens_p99"] < said["max_tokens"]


def test_searches_cost_the_same_within_batches_and_without(tweets: Project) -> None:
    searched = {"server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 0}}
    tweets.script.replies_with("t1", Reply(ANSWER, usage=searched))

    said = _metadata(tweets)

    cost, standard = billed(tweets), billed(tweets, kind="standard")
    assert cost > Decimal("0.03")
    assert said["cost_usd"] == pytest.approx(float(cost), abs=1e-12)
    assert said["cost_usd_standard_price"] == pytest.approx(float(standard), abs=1e-12)


def test_the_cache_hit_rate_is_shown_where_something_may_be_cached(project: Make) -> None:
    made = project(system="Rate with care what follows. " * 200, cache="1h")
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])

    said = _metadata(made)

    usages = [each.usage for each in made.claude.simulator.bill()]
    read = sum(usage["cache_read_input_tokens"] for usage in usages)
    written = sum(usage["cache_creation_input_tokens"] for usage in usages)
    prompts = read + written + sum(usage["input_tokens"] for usage in usages)
    assert said["cache_hit_rate"] == read / prompts > 0
    assert said["cost_usd"] == pytest.approx(float(billed(made)), abs=1e-12)


def test_every_key_that_is_shown_is_described_and_failures_come_with_their_query(
    project: Make,
) -> None:
    made = project(system="Rate with care what follows. " * 200, cache="1h")
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    made.script.ends_with("t4", "refusal")

    said = _metadata(made)

    keys = ["failed/<error type>" if key.startswith("failed/") else key for key in said]
    sometimes = {"rows_deduplicated", "earlier_answers_kept", "advice"}
    assert {*keys} <= set(SHOWN) <= {*keys} | sometimes
    assert keys == [key for key in SHOWN if key in keys]
    assert keys.index("cost_usd") < keys.index("preview") < keys.index("requests_sent")
    query = str(said["failures_sql"].value).removeprefix("```sql\n").removesuffix("\n```")
    assert len(made.sql(query)) == said["failed"] == 1


def test_nothing_is_said_of_a_cache_that_nobody_asked_for(tweets: Project) -> None:
    assert "cache_hit_rate" not in _metadata(tweets)


def test_all_that_was_billed_is_in_the_view_of_spending(tweets: Project) -> None:
    tweets.script.ends_with("t3", "invalid_output")
    tweets.script.ends_with("t4", "refusal")
    tweets.script.ends_with("t5", "expired", None)
    tweets.materialize()
    tweets.materialize(refresh=True)

    found = dict(
        tweets.sql("SELECT outcome, sum(cost_usd) FROM claude_batch.spending GROUP BY ALL")
    )

    assert sum(found.values(), Decimal(0)) == billed(tweets)
    assert found.keys() == {"answer", "invalid_output", "refusal", "expired"}
    assert found["expired"] == 0
    assert tweets.sql("SELECT DISTINCT asset, partition, model FROM claude_batch.spending") == [
        ("sentiment", "tweets", "claude-haiku-5-5")
    ]
    assert tweets.sql("SELECT DISTINCT day FROM claude_batch.spending ORDER BY ALL") == tweets.sql(
        "SELECT DISTINCT timezone('UTC', sending_at)::DATE FROM claude_batch.chunks ORDER BY ALL"
    )
    assert tweets.sql("SELECT sum(requests) FROM claude_batch.spending") == tweets.sql(
        "SELECT count(*) FROM claude_batch.requests"
    )


def test_what_the_tables_show_is_the_last_materializations_part_of_it(tweets: Project) -> None:
    tweets.materialize()
    before = billed(tweets)
    tweets.materialize(refresh=True)

    ((shown,),) = tweets.sql("SELECT sum(_cost_usd) FROM main.sentiment")
    assert shown == billed(tweets) - before
    assert tweets.sql("SELECT sum(cost_usd) FROM claude_batch.chunks") == [(billed(tweets),)]


def test_a_row_of_unknown_cost_makes_the_sum_unknown_and_is_counted(tweets: Project) -> None:
    run = tweets.start()
    tweets.end_batches()
    tweets.claude.simulator.advance(timedelta(days=30))
    run.advance()

    assert tweets.sql(
        "SELECT outcome, cost_usd, rows_of_unknown_cost FROM claude_batch.spending"
    ) == [("results_expired", None, 10)]


def test_an_older_ledger_gets_the_view_too(tweets: Project) -> None:
    tweets.materialize()
    tweets.take_ledger_back_to(4)

    tweets.change("t1", "Another text")
    tweets.materialize()

    assert tweets.sql("SELECT version FROM claude_batch.ledger") == [(ledger.VERSION,)]
    assert tweets.sql("SELECT sum(cost_usd) FROM claude_batch.spending") == [(billed(tweets),)]
