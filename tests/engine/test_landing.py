"""Collecting what was paid for, from downloads in any condition."""

import json
from collections.abc import Callable
from datetime import timedelta

import duckdb
import pytest
from kit import Project

Make = Callable[..., Project]
RESULTS = "GET /v1/messages/batches/…/results"


def _sent(project: Project) -> Project:
    project.start(run_id="the-run")
    project.end_batches()
    return project


def _land(project: Project) -> None:
    project.start(run_id="the-run")


def test_landing_twice_changes_nothing(tweets: Project) -> None:
    first, second = tweets.start(), tweets.start()
    tweets.end_batches()
    first.advance()
    before = tweets.answers("id, _answered_at")

    second.advance()

    assert tweets.answers("id, _answered_at") == before


@pytest.mark.parametrize(
    "dropped",
    [["sentiment"], ["sentiment_failures"], ["sentiment", "sentiment_failures"]],
    ids=["answers", "failures", "both"],
)
def test_a_table_that_was_dropped_during_the_wait_is_made_again(
    project: Make, dropped: list[str]
) -> None:
    made = project(row_key="n", include=["text"], prompt="Rate {{ id }} now: {{ text }}")
    made.load([("tweets", f"t{n}", f"Tweet {n}") for n in range(3)])
    made.sql("ALTER TABLE texts ADD COLUMN n SMALLINT")
    made.sql("UPDATE texts SET n = CAST(replace(id, 't', '') AS SMALLINT)")
    made.script.ends_with("t2", "canceled")
    run = made.start()
    made.end_batches()
    for table in dropped:
        made.sql(f"DROP TABLE main.{table}")

    assert run.advance() is None

    assert made.answers("n, typeof(n), text, label") == [
        (n, "SMALLINT", f"Tweet {n}", "positive") for n in range(2)
    ]
    assert made.failures("n, text, _error_type") == [(2, "Tweet 2", "canceled")]
    assert made.wire.posts() == 1


def test_a_schema_that_was_dropped_during_the_wait_is_made_again(project: Make) -> None:
    made = project(table="shop.tone")
    made.load([("tweets", "t1", "x")])
    run = made.start()
    made.end_batches()
    made.sql("DROP SCHEMA shop CASCADE")

    assert run.advance() is None

    assert made.sql("SELECT id, label FROM shop.tone") == [("t1", "positive")]


def test_a_download_that_is_short_of_lines_is_repeated(tweets: Project) -> None:
    _sent(tweets)
    tweets.wire.change_answer(RESULTS, lambda body: b"".join(body.splitlines(keepends=True)[:4]))

    _land(tweets)

    assert len(tweets.answers()) == 10


def test_lines_that_never_come_are_missing_and_asked_again(tweets: Project) -> None:
    _sent(tweets)
    tweets.claude.simulator.advance(timedelta(hours=1))
    _shorten_all_downloads(tweets)

    _land(tweets)

    assert len(tweets.answers()) == 9
    assert tweets.failures("_error_type, _cost_usd") == [("missing", None)]
    assert [len(batch) for batch in tweets.sent().batches] == [10, 1]


def test_lines_may_still_come_in_the_hour_after_the_end(tweets: Project) -> None:
    _sent(tweets)
    tweets.claude.simulator.advance(timedelta(minutes=59))
    _shorten_all_downloads(tweets)

    run = tweets.start(run_id="the-run")

    assert tweets.chunk_states() == {"submitted": 1}
    assert run.waiting is not None
    assert run.waiting.not_before is not None
    assert run.waiting.not_before > tweets.claude.now()

    assert run.advance() is None
    assert len(tweets.answers()) == 10
    assert len(tweets.sent().batches) == 1


def _shorten_all_downloads(project: Project) -> None:
    """Each try of one collecting run comes to its end, and lacks the last line."""
    for _ in range(3):
        project.wire.change_answer(
            RESULTS, lambda body: b"".join(body.splitlines(keepends=True)[:-1])
        )


def test_doubled_and_foreign_lines_are_left_out(tweets: Project) -> None:
    _sent(tweets)
    foreign = b'{"custom_id": "someone-1", "result": {"type": "expired"}}\n'
    tweets.wire.change_answer(RESULTS, lambda body: foreign + body + body)

    _land(tweets)

    assert len(tweets.answers()) == 10
    assert tweets.failures() == []


def _garble(body: bytes, garbled: bytes) -> bytes:
    """Spoil what the first line says, but not whose it is."""
    first, *rest = body.splitlines(keepends=True)
    custom_id = json.loads(first)["custom_id"].encode()
    return b'{"custom_id":"' + custom_id + b'",' + garbled + b"\n" + b"".join(rest)


LONE_SURROGATE = (
    b'"result":{"type":"succeeded","message":{"stop_reason":"end_turn","content":'
    b'[{"type":"text","text":"\\ud800"}]}}}'
)


@pytest.mark.parametrize(
    "garbled",
    [
        b'"result":{"type":"succeeded","message":{"content":[{"type":"text","text":"\xff\xfe"}]}}}',
        b'"result":{"type":"succ',
        LONE_SURROGATE,
        b'"result":7}',
        b'"result":{"type":"succeeded","type":"errored"}}',
    ],
    ids=["invalid UTF-8", "cut off", "lone surrogate", "no object", "doubled key"],
)
def test_one_bad_line_fails_one_row(project: Make, garbled: bytes) -> None:
    made = project(max_attempts=1)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    _sent(made)
    for _ in range(3):
        made.wire.change_answer(RESULTS, lambda body: _garble(body, garbled))

    _land(made)

    assert len(made.answers()) == 9
    assert len(made.failures()) == 1


@pytest.mark.parametrize(
    "text", ["a\x00b", "😀" * 10, '"quoted" \\ back', "x" * 400_000, "NULL", "{{ id }}"]
)
def test_any_text_survives_the_way_to_claude_and_back(project: Make, text: str) -> None:
    made = project(output=None, prompt="Rate {{ id }} {{ text }}", max_tokens=128_000)
    made.load([("tweets", "t1", text)])
    made.script.replies_with("t1", text)

    made.materialize()

    (batch,) = made.claude.simulator.batches()
    ((_, params),) = made.claude.simulator.requests(batch.id)
    assert params["messages"][0]["content"] == f"Rate t1 {text}"
    assert made.answers("response") == [text]


def test_an_answer_that_is_no_json_is_invalid_output(project: Make) -> None:
    made = project(max_attempts=1)
    made.load([("tweets", "t1", "x")])
    made.script.replies_with("t1", "I would rather not say.")

    made.materialize()

    assert made.failures("_error_type, _response IS NOT NULL") == [("invalid_output", True)]


def test_results_older_than_29_days_are_expired_and_asked_again(tweets: Project) -> None:
    _sent(tweets)
    tweets.claude.simulator.advance(timedelta(days=30))

    _land(tweets)

    assert tweets.failures("DISTINCT _error_type, _retryable") == [("results_expired", True)]
    assert [len(batch) for batch in tweets.sent().batches] == [10, 10]


def test_a_batch_that_the_api_does_not_show_is_waited_for(tweets: Project) -> None:
    _sent(tweets)
    (batch,) = tweets.claude.simulator.batches()
    tweets.claude.delete(batch.id)

    run = tweets.start(run_id="the-run")

    assert run.waiting is not None
    assert tweets.wire.posts() == 1


def test_what_was_answered_before_a_cancellation_is_landed(tweets: Project) -> None:
    run = tweets.start()
    tweets.claude.simulator.advance(timedelta(hours=1))
    (batch,) = tweets.claude.simulator.batches()
    tweets.claude.cancel(batch.id)
    tweets.end_batches()

    run.advance()

    answered, cancelled = len(tweets.answers()), len(tweets.failures())
    assert answered + cancelled == 10
    assert answered == len(tweets.claude.simulator.bill())


def test_an_abandoned_materialization_is_cancelled_and_its_answers_are_landed(
    tweets: Project,
) -> None:
    run = tweets.start(run_id="abandoned")
    tweets.claude.simulator.advance(timedelta(hours=1))

    left = tweets.engine().settle(["abandoned"], is_alive=lambda _: False)
    assert left == 1
    (batch,) = tweets.claude.simulator.batches()
    assert batch.cancel_initiated_at is not None
    tweets.end_batches()

    assert tweets.engine().settle([], is_alive=lambda _: False) == 0
    assert len(tweets.answers()) + len(tweets.failures()) == 10
    assert run.advance() is None
    assert tweets.wire.posts() == 1


def test_a_materialization_that_another_run_waits_for_is_not_cancelled(tweets: Project) -> None:
    tweets.start(run_id="abandoned")
    tweets.start(run_id="alive")

    tweets.engine().settle(["abandoned"], is_alive=lambda run_id: run_id == "alive")

    assert tweets.sql("SELECT state FROM claude_batch.materializations") == [("open",)]


def test_after_a_cancellation_the_partition_can_be_materialized_again_at_once(
    tweets: Project,
) -> None:
    tweets.start(run_id="abandoned")
    tweets.engine().settle(["abandoned"], is_alive=lambda _: False)

    tweets.materialize()

    assert len(tweets.answers()) == 10
    assert len({b.custom_id for b in tweets.claude.simulator.bill()}) == 10


def test_a_second_copy_and_what_was_sent_instead_of_it_land_together_at_their_full_cost(
    tweets: Project,
) -> None:
    tweets.declare(max_attempts=1)
    tweets.script.ends_with("t0", None, "refusal")  # as it is sent anew
    tweets.wire.lose_answer("POST /v1/messages/batches")
    run = tweets.start()
    tweets.wire.hidden = {batch.id for batch in tweets.claude.simulator.batches()}
    tweets.claude.simulator.advance(timedelta(minutes=36))
    run.advance()
    tweets.wire.hidden.clear()
    tweets.end_batches()
    assert len(tweets.claude.simulator.batches()) == 2

    run.advance()

    assert tweets.chunk_states() == {"landed": 2}
    (copy, twin) = tweets.sql(
        "SELECT _cost_usd FROM claude_batch.requests_1 WHERE id = 't0' ORDER BY _chunk_id"
    )
    found = tweets.sql("SELECT _cost_usd, _input_tokens FROM main.sentiment WHERE id = 't0'")
    assert found == [(copy[0], found[0][1])]
    assert found[0][1] > 0
    assert twin[0] > 0


def test_a_materialization_that_cannot_land_keeps_no_other_from_its_table(tweets: Project) -> None:
    tweets.load([("reviews", "r0", "y")])
    tweets.materialize("reviews")
    tweets.sql("CREATE UNIQUE INDEX one_of_each ON main.sentiment (_partition, label)")
    tweets.load([("reviews", "r0", "y"), ("reviews", "r1", "y")])
    tweets.sql("INSERT INTO texts VALUES ('tweets', 't0', 'x'), ('tweets', 't1', 'x')")
    tweets.script.replies_with("r1", '{"label": "negative", "score": 0.5}')
    tweets.start("tweets")
    run = tweets.start("tweets", "reviews")
    assert len(run.materializations) == 2
    tweets.end_batches()

    with pytest.raises(duckdb.ConstraintException):
        run.advance()

    assert tweets.answers() == ["r0", "r1"]
    assert tweets.chunk_states() == {"landed": 2, "submitted": 1}

    tweets.sql("DROP INDEX one_of_each")
    assert run.advance() is None
    assert tweets.answers() == ["r0", "r1", "t0", "t1"]
