"""The same question is asked once, and its answer serves all rows that ask it."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from kit import Project, RunOfTest
from pydantic import BaseModel

from dagster_claude_batch.ledger import MaterializationConfig

Make = Callable[..., Project]
BOTH = ("tweets", "reviews")


@pytest.fixture
def same(project: Make) -> Project:
    """Rows of two partitions, of which several ask the same."""
    made = project(prompt="Rate it now: {{ text }}")
    made.load(
        [
            ("tweets", "t1", "good"),
            ("tweets", "t2", "bad"),
            ("tweets", "t3", "good"),
            ("reviews", "r1", "bad"),
            ("reviews", "r2", "fine"),
        ]
    )
    return made


def _billed(project: Project) -> int:
    return len(project.claude.simulator.bill())


def _to_the_end(*runs: RunOfTest) -> None:
    for _ in range(10):
        for run in runs:
            if run.waiting is not None:
                run.advance()
        if all(run.waiting is None for run in runs):
            return
        runs[0].project.end_batches()
    raise AssertionError("it never came to an end")


def test_rows_of_a_run_that_ask_the_same_are_sent_once(same: Project) -> None:
    same.materialize(*BOTH)

    assert _billed(same) == 3
    assert same.answers("id") == ["r1", "r2", "t1", "t2", "t3"]
    assert same.sql(
        "SELECT count(*), count(DISTINCT _custom_id) FROM main.sentiment WHERE id IN ('t1', 't3')"
    ) == [(2, 1)]


def test_shares_of_tokens_and_costs_come_to_what_was_billed(same: Project) -> None:
    same.materialize(*BOTH)

    bill = [each.usage for each in same.claude.simulator.bill()]
    columns = ("input_tokens", "output_tokens")
    sums = same.sql(
        "SELECT sum(_input_tokens)::INT, sum(_output_tokens)::INT, sum(_cost_usd) "
        "FROM main.sentiment"
    )
    tokens = [sum(usage[column] for usage in bill) for column in columns]
    cost = Decimal("0.05e-6") * tokens[0] + Decimal("0.25e-6") * tokens[1]
    assert sums == [(*tokens, cost)]
    shares = same.sql("SELECT _cost_usd FROM main.sentiment WHERE id IN ('t1', 't3')")
    assert all(share > 0 for (share,) in shares)


def test_a_later_materialization_uses_the_answers_of_others(same: Project) -> None:
    same.materialize("tweets")

    assert same.materialize("reviews").batches == [["it"]]
    (served,) = same.sql(
        "SELECT label, _attempts, _input_tokens, _cost_usd, _batch_id = (SELECT _batch_id FROM "
        "main.sentiment WHERE id = 't2'), _answered_at > (SELECT _answered_at FROM main.sentiment "
        "WHERE id = 't2') FROM main.sentiment WHERE id = 'r1'"
    )
    assert served == ("positive", 0, 0, 0, True, True)


def test_a_new_row_and_a_changed_one_use_the_answers_of_others(same: Project) -> None:
    same.materialize("tweets")
    same.sql("INSERT INTO texts VALUES ('tweets', 't4', 'good')")
    same.change("t2", "good")

    assert same.materialize("tweets").rows == []
    assert same.answers("id") == ["t1", "t2", "t3", "t4"]
    assert same.sql("SELECT count(DISTINCT _request_hash) FROM main.sentiment") == [(1,)]
    assert same.sql("SELECT row_key FROM claude_batch.departed") == [('["t2"]',)]


def test_a_failed_row_uses_the_answer_that_another_has_come_to(same: Project) -> None:
    same.script.ends_with("bad", "refusal")
    same.materialize("tweets")
    same.script.ends_with("bad", None)
    assert same.failures() == [("t2", "refusal")]

    same.materialize("reviews")
    assert same.materialize("tweets").rows == []

    assert same.failures() == []


def test_what_was_not_paid_for_again_is_reported(same: Project) -> None:
    tweets = same.start("tweets")
    _to_the_end(tweets)
    reviews = same.start("reviews")
    _to_the_end(reviews)

    of_tweets, of_reviews = tweets.report(), reviews.report("reviews")
    assert (of_tweets.sent, of_tweets.deduplicated, of_tweets.rows) == (2, 1, 3)
    assert (of_reviews.sent, of_reviews.deduplicated, of_reviews.rows) == (1, 1, 2)


def test_a_refresh_asks_again_and_only_once(same: Project) -> None:
    same.materialize(*BOTH)

    assert len(same.materialize(*BOTH, refresh=True).rows) == 3
    assert _billed(same) == 6


def test_without_it_each_row_is_asked(same: Project) -> None:
    same.declare(prompt="Rate it now: {{ text }}", deduplicate=False)

    same.materialize("tweets")
    same.materialize("reviews")

    assert _billed(same) == 5


def test_rows_that_fail_together_are_asked_again_together(same: Project) -> None:
    same.script.ends_with("good", "expired", None)

    same.materialize("tweets")

    assert same.sql("SELECT id, _attempts FROM main.sentiment ORDER BY id") == [
        ("t1", 2),
        ("t2", 1),
        ("t3", 2),
    ]
    assert len(same.sent().rows) == 3


def test_a_row_that_changes_before_it_is_sent_leaves_the_others_theirs(project: Make) -> None:
    made = project(prompt="Rate it now: {{ text }}", claude={"max_in_flight_requests": 1})
    made.load([("tweets", "t0", "first"), ("tweets", "t1", "good"), ("tweets", "t2", "good")])
    made.declare(prompt="Rate it now: {{ text }}", chunk_size=1)
    run = made.start()
    made.change("t1", "worse")
    made.end_batches()

    run.advance()
    _to_the_end(run)

    assert made.answers() == ["t0", "t1", "t2"]
    assert _billed(made) == 3


def test_a_row_under_a_new_key_uses_the_answer_that_its_old_one_has_left(same: Project) -> None:
    same.materialize("tweets")
    same.load([("tweets", "x1", "good")])
    same.materialize("tweets")
    same.load([("tweets", "y1", "bad")])

    assert same.materialize("tweets").rows == []
    assert same.answers("id, _attempts") == [("y1", 0)]


class Odd(BaseModel):
    """Its fields are called as columns of a selected relation are."""

    partition: str
    k0: str
    i0: str


def test_names_of_the_output_do_not_get_in_the_way(project: Make) -> None:
    made = project(prompt="Rate it now: {{ text }}", output=Odd, include=["text"])
    made.load([("tweets", "t1", "good"), ("reviews", "r1", "good")])
    made.script.replies_with("good", '{"partition": "P", "k0": "K", "i0": "I"}')

    made.materialize("tweets")
    made.materialize("reviews")

    assert made.answers('id, "partition", k0, i0') == [("r1", "P", "K", "I"), ("t1", "P", "K", "I")]


@pytest.mark.parametrize("name", ["n", "answer", "packed", "elsewhere", "max_tokens", "place"])
def test_names_of_carried_columns_do_not_get_in_the_way(project: Make, name: str) -> None:
    made = project(source="odd", prompt="Rate it now: {{ text }}", include=[name])
    made.sql(f"CREATE TABLE odd (corpus VARCHAR, id VARCHAR, text VARCHAR, {name} VARCHAR)")
    for key, text in (("a", "good"), ("b", "good"), ("c", "bad")):
        made.sql("INSERT INTO odd VALUES ('tweets', $key, $text, $key)", key=key, text=text)
    made.script.ends_with("bad", "expired", None)

    made.materialize()

    assert made.answers(f"id, {name}") == [("a", "a"), ("b", "b"), ("c", "c")]


def test_an_answer_that_serves_a_row_stands_although_the_row_had_failed_before(
    project: Make,
) -> None:
    made = project(prompt="Rate it now: {{ text }}")
    made.load([("tweets", "t1", "bad"), ("reviews", "r1", "good")])
    made.materialize("reviews")
    made.script.ends_with("bad", "expired")
    run = made.start("tweets")
    made.change("t1", "good")

    _to_the_end(run)

    assert made.failures() == []
    assert made.answers() == ["r1", "t1"]


def test_a_row_that_is_served_after_an_attempt_carries_what_that_cost(same: Project) -> None:
    same.script.ends_with("bad", "invalid_output", None)
    reviews = same.start("reviews")
    same.end_batches()
    tweets = same.start("tweets")
    same.end_batches()
    tweets.advance()

    _to_the_end(reviews, tweets)

    bill = sum(each.usage["input_tokens"] for each in same.claude.simulator.bill())
    assert same.sql("SELECT sum(_input_tokens)::INT FROM main.sentiment") == [(bill,)]
    assert reviews.report("reviews").kept_despite_failure == 0


def test_a_request_counts_for_one_of_the_partitions_that_share_it(project: Make) -> None:
    made = project(prompt="Rate it now: {{ text }}")
    made.load([("tweets", "t1", "good"), ("reviews", "r1", "good")])
    (first, second) = made.engine().rehearse(BOTH, MaterializationConfig()).partitions
    run = made.start(*BOTH)
    _to_the_end(run)

    tweets, reviews = run.report("tweets"), run.report("reviews")
    assert (tweets.sent, reviews.sent) == (first.requests, second.requests) == (0, 1)
    assert (tweets.deduplicated, reviews.deduplicated) == (1, 0)


# --- several materializations at once -----------------------------------------------------------


def test_what_another_materialization_has_out_is_awaited(same: Project) -> None:
    tweets, reviews = same.start("tweets"), same.start("reviews")

    assert [len(batch) for batch in same.sent().batches] == [2, 1]
    _to_the_end(reviews, tweets)
    assert same.answers() == ["r1", "r2", "t1", "t2", "t3"]
    assert _billed(same) == 3


def test_cancelling_one_takes_nothing_from_the_others(same: Project) -> None:
    tweets, reviews = same.start("tweets"), same.start("reviews")

    tweets.engine.cancel(tweets.materializations[0])
    _to_the_end(reviews)

    assert same.answers("id, _partition")[:2] == [("r1", "reviews"), ("r2", "reviews")]
    assert same.sql("SELECT state FROM claude_batch.chunks WHERE state <> 'elsewhere'") == [
        ("landed",),
        ("landed",),
    ]
    assert _billed(same) == 3


def test_a_row_whose_question_failed_for_others_is_asked_itself(same: Project) -> None:
    same.script.ends_with("bad", "refusal", None)
    tweets, reviews = same.start("tweets"), same.start("reviews")

    _to_the_end(tweets, reviews)

    assert same.failures() == [("t2", "refusal")]
    assert same.answers() == ["r1", "r2", "t1", "t3"]


@pytest.mark.parametrize("last", [None, "refusal"], ids=["answered", "failed"])
def test_a_row_that_was_left_to_others_twice_has_one_outcome(
    same: Project, last: str | None
) -> None:
    same.script.ends_with("bad", "expired", "refusal", last)
    tweets, reviews = same.start("tweets"), same.start("reviews")

    _to_the_end(tweets, reviews)

    left = [] if last is None else [("r1", "refusal")]
    assert same.failures() == [*left, ("t2", "refusal")]
    assert same.answers() == [*(["r1"] if last is None else []), "r2", "t1", "t3"]


def test_two_that_plan_at_the_same_moment_send_once(same: Project) -> None:
    planned = [RunOfTest(same, same.engine()) for _ in BOTH]
    for run, partition in zip(planned, BOTH, strict=True):
        run.materializations = run.engine.attach([partition], MaterializationConfig())

    for run in planned:
        run.advance()
    assert [len(batch) for batch in same.sent().batches] == [2, 1]
    _to_the_end(*planned)

    assert same.answers() == ["r1", "r2", "t1", "t2", "t3"]
    assert _billed(same) == 3


def test_one_that_had_planned_uses_what_was_answered_before_it_was_sent(same: Project) -> None:
    late = RunOfTest(same, same.engine())
    late.materializations = late.engine.attach(["reviews"], MaterializationConfig())
    same.materialize("tweets")

    late.advance()
    _to_the_end(late)

    assert [len(batch) for batch in same.sent().batches] == [2, 1]
    assert same.answers() == ["r1", "r2", "t1", "t2", "t3"]
