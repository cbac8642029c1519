"""Pruning the ledger: what ended long ago goes, and nothing that anybody still needs."""

from datetime import timedelta

import pytest
from kit import Project

from dagster_claude_batch import by_hand

SPENDING = "SELECT * FROM claude_batch.spending ORDER BY ALL"


def pruned(made: Project, *, days: float) -> int:
    """Prune what ended so many days ago."""
    return by_hand.forget(made.engine(), timedelta(days=days))


def pass_days(made: Project, days: int) -> None:
    made.claude.simulator.advance(timedelta(days=days))


def requests(made: Project) -> int:
    ((count,),) = made.sql("SELECT count(*) FROM claude_batch.requests")
    return count


def test_what_is_pruned_takes_nothing_from_answers_or_spending(tweets: Project) -> None:
    tweets.script.ends_with("t3", "invalid_output")
    tweets.script.ends_with("t4", "refusal")
    tweets.materialize()
    tweets.materialize(refresh=True)
    spent, answers, failures = tweets.sql(SPENDING), tweets.answers("*"), tweets.failures("*")
    pass_days(tweets, 10)

    assert pruned(tweets, days=5) == requests_before(tweets)

    assert requests(tweets) == 0
    assert tweets.sql(SPENDING) == spent
    assert (tweets.answers("*"), tweets.failures("*")) == (answers, failures)


def requests_before(made: Project) -> int:
    """All that was asked twice: ten rows, and two more attempts of the one that is retryable."""
    ((count,),) = made.sql("SELECT sum(rows)::BIGINT FROM claude_batch.spending")
    return count


def test_pruning_twice_prunes_once_and_what_comes_later_is_added(tweets: Project) -> None:
    tweets.materialize()
    pass_days(tweets, 10)
    assert pruned(tweets, days=5) == 10
    spent = tweets.sql(SPENDING)

    assert pruned(tweets, days=5) == 0
    assert tweets.sql(SPENDING) == spent

    tweets.materialize(refresh=True)
    ((rows,),) = tweets.sql("SELECT sum(rows)::BIGINT FROM claude_batch.spending")
    assert rows == 20


def test_what_has_ended_since_stays(tweets: Project) -> None:
    tweets.materialize()
    pass_days(tweets, 3)

    assert pruned(tweets, days=5) == 0

    assert requests(tweets) == 10


def test_nothing_is_asked_again_after_pruning(tweets: Project) -> None:
    tweets.materialize()
    pass_days(tweets, 10)
    pruned(tweets, days=5)
    tweets.change("t1", "changed")

    assert tweets.materialize().rows == ["t1"]


@pytest.mark.parametrize("landed_first", [False, True])
def test_what_an_open_materialization_works_on_stays(
    tweets: Project, *, landed_first: bool
) -> None:
    tweets.script.ends_with("t3", "expired", None)
    run = tweets.start()
    if landed_first:
        tweets.end_batches()
        run.advance()  # t3 is asked once more
    pass_days(tweets, 10)

    assert pruned(tweets, days=5) == 0

    tweets.end_batches()
    while run.waiting is not None:
        tweets.end_batches()
        run.advance()
    assert len(tweets.answers()) + len(tweets.failures()) == 10


def test_what_an_open_materialization_awaits_of_another_stays(tweets: Project) -> None:
    tweets.declare(prompt="Rate {{ text }}")
    tweets.load([("tweets", "t0", "x"), ("reviews", "r0", "x")])
    first = tweets.start("tweets")
    later = tweets.start("reviews")
    awaits = "SELECT len(awaits) FROM claude_batch.materializations ORDER BY started_at"
    assert tweets.sql(awaits) == [(0,), (1,)]
    tweets.end_batches()
    assert first.advance() is None
    pass_days(tweets, 10)

    assert pruned(tweets, days=5) == 0

    while later.advance() is not None:
        tweets.end_batches()
    pass_days(tweets, 10)
    assert pruned(tweets, days=5) > 0


def test_what_keeps_a_batch_from_being_deleted_stays_as_long_as_the_batch(tweets: Project) -> None:
    tweets.declare(max_attempts=1)
    tweets.script.ends_with("t3", "missing")
    tweets.materialize()
    pass_days(tweets, 10)

    assert pruned(tweets, days=5) == 0

    pass_days(tweets, 20)
    assert pruned(tweets, days=5) == 10


def test_where_nothing_was_ever_asked_there_is_nothing_to_prune(tweets: Project) -> None:
    assert pruned(tweets, days=5) == 0
