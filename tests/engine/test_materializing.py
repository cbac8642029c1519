"""What a materialization sends, and what it leaves in the tables."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Literal

import dagster as dg
import pytest
from kit import SINCE_DUCKDB_2, Project
from pydantic import BaseModel

from dagster_claude_batch.errors import (
    ColumnCollisionError,
    ColumnTypeChangedError,
    DuplicateRowKeyError,
    MaterializationDoneError,
    MissingColumnError,
    ModelUnavailableError,
    NullRowKeyError,
    SourceNotFoundError,
)
from dagster_claude_batch.ledger import MaterializationConfig

Make = Callable[..., Project]


def test_each_row_is_asked_once_and_answered(tweets: Project) -> None:
    sent = tweets.materialize()

    assert sent.batches == [[f"t{n}" for n in range(10)]]
    assert tweets.answers("id, label, score") == [(f"t{n}", "positive", 0.5) for n in range(10)]
    assert tweets.failures() == []


def test_an_answer_carries_what_it_cost_and_where_it_came_from(tweets: Project) -> None:
    tweets.materialize()

    (billed,) = {
        (b.batch_id, b.custom_id, b.model, b.usage["input_tokens"], b.usage["output_tokens"])
        for b in tweets.claude.simulator.bill()
        if b.custom_id.endswith("-3")
    }
    assert tweets.sql(
        "SELECT _batch_id, _custom_id, _model, _input_tokens, _output_tokens FROM sentiment "
        "WHERE id = 't3'"
    ) == [billed]
    (row,) = tweets.sql(
        "SELECT _partition, _stop_reason, _attempts, _answered_at IS NULL, _cost_usd, "
        "_input_tokens, _output_tokens FROM sentiment WHERE id = 't3'"
    )
    tokens_in, tokens_out = row[-2:]
    # Haiku 5.5 in a batch: 0.05 and 0.25 USD per million tokens.
    cost = (tokens_in * Decimal("0.05") + tokens_out * Decimal("0.25")) / 1_000_000
    assert row[:5] == ("tweets", "end_turn", 1, False, cost)


def test_materializing_again_sends_nothing(tweets: Project) -> None:
    tweets.materialize()

    assert tweets.materialize().rows == []
    assert tweets.wire.posts() == 1


def test_only_changed_and_new_rows_are_sent_again(tweets: Project) -> None:
    tweets.materialize()
    tweets.change("t3", "On second thought, I love it.")
    tweets.sql("INSERT INTO texts VALUES ('tweets', 't10', 'A new one')")

    assert tweets.materialize().rows == ["t10", "t3"]
    assert len(tweets.answers()) == 11


def test_another_model_is_another_question(tweets: Project) -> None:
    tweets.materialize()
    tweets.declare(model="claude-haiku-4-5")

    assert len(tweets.materialize().rows) == 10
    assert set(tweets.answers("_model")) == {"claude-haiku-4-5"}


@pytest.mark.parametrize(
    "declared",
    [{"max_tokens": 2048}, {"chunk_size": 3}, {"params": {"metadata": {"user_id": "u"}}}],
    ids=["max_tokens", "chunk_size", "metadata"],
)
def test_what_does_not_change_the_question_asks_nothing_again(
    tweets: Project, declared: dict[str, object]
) -> None:
    tweets.materialize()
    tweets.declare(**declared)

    assert tweets.materialize().rows == []


@pytest.mark.opens_anew
@SINCE_DUCKDB_2  # older ones look at TZ once in a process
def test_a_machine_in_another_time_zone_asks_nothing_again(
    tweets: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tweets.sql("ALTER TABLE texts ADD COLUMN seen TIMESTAMPTZ DEFAULT '2026-01-01 12:00:00+00'")
    tweets.declare(prompt="Rate {{ id }} now: {{ text }}, seen {{ seen }}")
    monkeypatch.setenv("TZ", "America/New_York")
    assert tweets.sql("SELECT DISTINCT CAST(seen AS VARCHAR) FROM texts") == [
        ("2026-01-01 07:00:00-05",)
    ]
    tweets.materialize()

    monkeypatch.setenv("TZ", "Asia/Tokyo")

    assert tweets.materialize().rows == []


def test_refresh_asks_every_row_again(tweets: Project) -> None:
    tweets.materialize()

    assert len(tweets.materialize(refresh=True).rows) == 10
    assert len(tweets.answers()) == 10


def test_a_refresh_that_fails_leaves_the_earlier_answer(tweets: Project) -> None:
    tweets.materialize()
    tweets.script.ends_with("t4", "refusal")

    tweets.materialize(refresh=True)

    assert len(tweets.answers()) == 10
    assert tweets.failures() == []


def test_a_changed_row_keeps_its_answer_until_the_new_one_lands(tweets: Project) -> None:
    tweets.materialize()
    tweets.change("t4", "Changed")

    tweets.start()

    assert "t4" in tweets.answers()


def test_a_changed_row_whose_asking_fails_becomes_a_failure(tweets: Project) -> None:
    tweets.materialize()
    tweets.change("t4", "Changed")
    tweets.script.ends_with("t4", "refusal")

    tweets.materialize()

    assert "t4" not in tweets.answers()
    assert tweets.failures() == [("t4", "refusal")]


def test_chunks_have_at_most_chunk_size_requests(project: Make) -> None:
    made = project(chunk_size=4)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])

    assert [len(batch) for batch in made.materialize().batches] == [4, 4, 2]


def test_only_the_rows_of_the_partition_are_asked(tweets: Project) -> None:
    tweets.sql("INSERT INTO texts VALUES ('reviews', 'r0', 'A review')")

    assert "r0" not in tweets.materialize("tweets").rows
    assert tweets.materialize("reviews").rows == ["r0"]


def test_several_partitions_of_a_run_share_their_batches(tweets: Project) -> None:
    tweets.sql("INSERT INTO texts VALUES ('reviews', 'r0', 'A review')")

    assert len(tweets.materialize("tweets", "reviews").batches) == 1
    assert tweets.sql("SELECT _partition FROM sentiment WHERE id = 'r0'") == [("reviews",)]


def test_one_key_may_stand_in_two_partitions(project: Make) -> None:
    made = project()
    made.load([("tweets", "1", "a tweet"), ("reviews", "1", "a review")])

    made.materialize("tweets", "reviews")

    assert made.answers("_partition, id") == [("reviews", "1"), ("tweets", "1")]


def test_an_empty_partition_is_done_at_once(tweets: Project) -> None:
    assert tweets.materialize("reviews").rows == []
    assert tweets.sql("SELECT state FROM claude_batch.materializations") == [("done",)]


def test_a_key_of_several_columns_identifies_rows(project: Make) -> None:
    made = project(row_key=["corpus", "id"], partitions_def=None, partition_expr=None)
    made.load([("tweets", "1", "a"), ("reviews", "1", "b"), ("reviews", "2", "c")])

    made.materialize(None)

    assert made.answers("corpus, id, _partition") == [
        ("reviews", "1", None),
        ("reviews", "2", None),
        ("tweets", "1", None),
    ]


def test_a_query_can_be_asked_about(tweets: Project) -> None:
    tweets.declare(source=None, query="SELECT * FROM texts WHERE id IN ('t1', 't2') -- two;")

    assert tweets.materialize().rows == ["t1", "t2"]


def test_included_columns_stand_beside_answers_and_failures(project: Make) -> None:
    made = project(include=["text"])
    made.load([("tweets", "t1", "good"), ("tweets", "t2", "bad")])
    made.script.ends_with("t2", "refusal")

    made.materialize()

    assert made.answers("id, text") == [("t1", "good")]
    assert made.failures("id, text") == [("t2", "bad")]


def test_an_included_column_follows_the_source_without_asking_again(project: Make) -> None:
    made = project(include=["text"], prompt="Rate {{ id }}")
    made.load([("tweets", "t1", "before")])
    made.materialize()
    made.change("t1", "after")

    assert made.materialize().rows == []
    assert made.answers("text") == ["after"]


def test_without_an_output_model_the_text_is_the_response(project: Make) -> None:
    made = project(output=None)
    made.load([("tweets", "t1", "Hi")])

    made.materialize()

    assert made.answers("response") == ["An answer to: Rate t1 now: Hi"]


class Tone(Enum):
    WARM = "warm"
    COLD = "cold"


class Place(BaseModel):
    city: str
    zips: list[int]


class Everything(BaseModel):
    tone: Tone
    kind: Literal["a", "b"]
    places: list[Place]
    when: date
    price: Decimal
    note: str | None = None


def test_each_field_of_the_output_becomes_a_typed_column(project: Make) -> None:
    made = project(output=Everything)
    made.load([("tweets", "t1", "x")])
    made.script.replies_with(
        "t1",
        '{"tone": "WARM", "kind": "b", "places": [{"city": "Köln \\"x\\"", "zips": [1, 2]}], '
        '"when": "2026-11-22", "price": 12.5, "note": null}',
    )

    made.materialize()

    assert made.answers('tone, kind, places, "when", price, note') == [
        (
            "warm",
            "b",
            [{"city": 'Köln "x"', "zips": [1, 2]}],
            date(2026, 11, 22),
            Decimal("12.5"),
            None,
        )
    ]


def test_new_fields_of_the_output_become_columns(tweets: Project) -> None:
    class More(BaseModel):
        label: str
        score: float
        reason: str = ""

    tweets.materialize()
    tweets.declare(output=More)
    for n in range(10):
        tweets.script.replies_with(f"t{n}", '{"label": "x", "score": 1, "reason": "r"}')

    assert len(tweets.materialize().rows) == 10
    assert set(tweets.answers("reason")) == {"r"}


def test_a_field_whose_type_has_changed_is_refused_before_anything_is_sent(
    tweets: Project,
) -> None:
    class Other(BaseModel):
        label: str
        score: str

    tweets.materialize()
    tweets.declare(output=Other)

    with pytest.raises(ColumnTypeChangedError, match=r"'score'.*DOUBLE.*VARCHAR"):
        tweets.start()
    assert tweets.wire.posts() == 1


def test_a_null_in_a_used_column_makes_the_row_an_invalid_row(tweets: Project) -> None:
    tweets.change("t4", None)

    assert "t4" not in tweets.materialize().rows
    assert tweets.failures("id, _error_type, _error_message, _attempts, _retryable") == [
        ("t4", "invalid_row", "Column 'text', which the prompt needs, is NULL.", 0, False)
    ]


def test_an_invalid_row_is_asked_once_it_is_valid(tweets: Project) -> None:
    tweets.change("t4", None)
    tweets.materialize()
    tweets.change("t4", "Here I am")

    assert tweets.materialize().rows == ["t4"]
    assert tweets.failures() == []


def test_an_answered_row_that_becomes_invalid_gets_its_answer_back_later(tweets: Project) -> None:
    tweets.materialize()
    tweets.change("t4", None)
    tweets.materialize()
    assert "t4" not in tweets.answers()
    tweets.change("t4", "Tweet number 4")

    assert tweets.materialize().rows == []
    assert "t4" in tweets.answers()


def test_rows_without_a_key_are_refused_before_anything_is_sent(tweets: Project) -> None:
    tweets.sql("INSERT INTO texts VALUES ('tweets', NULL, 'who am I'), ('tweets', NULL, 'and I')")

    with pytest.raises(NullRowKeyError, match=r"2 rows have NULL.*id.*Nothing was submitted"):
        tweets.start()
    assert tweets.wire.posts() == 0


def test_rows_with_one_key_are_refused_before_anything_is_sent(tweets: Project) -> None:
    tweets.sql("INSERT INTO texts VALUES ('tweets', 't3', 'me too')")

    with pytest.raises(DuplicateRowKeyError, match=r"id='t3'.*in partition 'tweets'"):
        tweets.start()
    assert tweets.wire.posts() == 0


def test_a_column_that_the_prompt_names_but_the_source_lacks_is_an_error(tweets: Project) -> None:
    tweets.declare(prompt="{{ id }} {{ body }}")

    with pytest.raises(MissingColumnError, match=r"`prompt`.*'body'.*corpus, id, text"):
        tweets.start()


def test_a_source_that_does_not_exist_is_an_error(project: Make) -> None:
    with pytest.raises(SourceNotFoundError, match="texts"):
        project().start()


@pytest.mark.parametrize("schema", ["main", "public"])
def test_the_table_of_an_asset_is_found_where_io_managers_place_it(
    project: Make, schema: str
) -> None:
    made = project(source=dg.AssetKey("texts"))
    made.load([("tweets", "t1", "x")])
    if schema != "main":
        made.sql(f"CREATE SCHEMA {schema}")
        made.sql(f"CREATE TABLE {schema}.texts AS FROM main.texts")
        made.sql("DROP TABLE main.texts")

    assert made.materialize().rows == ["t1"]


def test_an_asset_whose_table_is_nowhere_is_an_error(project: Make) -> None:
    with pytest.raises(SourceNotFoundError, match="texts"):
        project(source=dg.AssetKey("texts")).start()


def test_a_source_column_that_collides_with_the_output_is_refused(tweets: Project) -> None:
    with pytest.raises(ColumnCollisionError, match="'label'"):
        tweets.declare(include=["Label"], source=None, query='SELECT *, 1 AS "Label" FROM texts')


def test_an_unknown_model_is_found_out_before_anything_is_sent(tweets: Project) -> None:
    tweets.declare(model="claude-haiku-99")

    with pytest.raises(ModelUnavailableError, match=r"claude-haiku-99.*does not exist"):
        tweets.start()
    assert tweets.wire.posts() == 0
    assert tweets.sql("SELECT state FROM claude_batch.materializations") == [("cancelled",)]


def test_after_an_unknown_model_was_corrected_all_rows_are_asked(tweets: Project) -> None:
    tweets.declare(model="claude-haiku-99")
    with pytest.raises(ModelUnavailableError):
        tweets.start()
    tweets.declare()

    assert len(tweets.materialize().rows) == 10


def test_a_second_run_of_the_partition_joins_what_is_out(tweets: Project) -> None:
    first, second = tweets.start(), tweets.start()
    assert tweets.wire.posts() == 1

    tweets.end_batches()

    assert second.advance() is None
    assert first.advance() is None
    assert len(tweets.answers()) == 10


def test_an_automatic_retry_of_a_run_that_is_done_sends_nothing(tweets: Project) -> None:
    tweets.script.ends_with("t4", "errored:overloaded_error")
    run = tweets.start(run_id="the-run")
    while run.waiting is not None:
        tweets.end_batches()
        run.advance()
    posts = tweets.wire.posts()

    with pytest.raises(MaterializationDoneError, match="the-run"):
        tweets.engine(retry_of="the-run").attach(["tweets"], MaterializationConfig())
    assert tweets.wire.posts() == posts


def test_a_run_that_is_entered_again_finds_its_materialization(tweets: Project) -> None:
    run = tweets.start(run_id="the-run")
    tweets.end_batches()
    run.advance()
    tweets.change("t4", "Changed after the run had planned")

    again = tweets.start(run_id="the-run")

    assert again.waiting is None
    assert tweets.wire.posts() == 1


def test_rows_that_leave_take_their_answers_along_and_bring_them_back(tweets: Project) -> None:
    tweets.materialize()
    tweets.remove("t4")
    assert tweets.materialize().rows == []
    assert "t4" not in tweets.answers()
    assert tweets.sql("SELECT row_key FROM claude_batch.departed") == [('["t4"]',)]

    tweets.sql("INSERT INTO texts VALUES ('tweets', 't4', 'Tweet number 4')")

    assert tweets.materialize().rows == []
    assert tweets.answers("id, label, score, _attempts")[4] == ("t4", "positive", 0.5, 1)
    assert tweets.sql("SELECT count(*) FROM claude_batch.departed") == [(0,)]


def test_a_row_that_returns_changed_is_asked(tweets: Project) -> None:
    tweets.materialize()
    tweets.remove("t4")
    tweets.materialize()
    tweets.sql("INSERT INTO texts VALUES ('tweets', 't4', 'Something else')")

    assert tweets.materialize().rows == ["t4"]


def test_truncating_and_loading_again_pays_for_nothing(tweets: Project) -> None:
    tweets.materialize()
    tweets.sql("DELETE FROM texts")
    tweets.materialize()
    tweets.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])

    assert tweets.materialize().rows == []
    assert len(tweets.answers()) == 10


def test_a_row_of_two_partitions_gets_the_answer_of_each_back(project: Make) -> None:
    made = project(deduplicate=False)
    texts = [("tweets", "t1", "the same"), ("reviews", "t1", "the same")]
    made.load(texts)
    made.materialize("tweets")
    made.materialize("reviews")
    made.load([])
    made.materialize("tweets")
    made.materialize("reviews")
    made.load(texts)

    made.materialize("tweets")
    assert made.sql("SELECT partition FROM claude_batch.departed") == [("reviews",)]
    made.materialize("reviews")

    assert made.wire.posts() == 2
    assert made.answers("_partition, id") == [("reviews", "t1"), ("tweets", "t1")]
    assert made.sql("SELECT count(DISTINCT _batch_id) FROM main.sentiment") == [(2,)]
    assert made.sql("SELECT * FROM claude_batch.departed") == []


def test_a_row_that_left_while_its_batch_was_out_is_landed_and_departs_next_time(
    tweets: Project,
) -> None:
    run = tweets.start()
    tweets.remove("t4")
    tweets.end_batches()
    run.advance()
    assert "t4" in tweets.answers()

    tweets.materialize()

    assert "t4" not in tweets.answers()


def test_a_row_that_changed_while_its_batch_was_out_is_asked_by_the_next_materialization(
    tweets: Project,
) -> None:
    run = tweets.start()
    tweets.change("t7", "On second thought, I love it.")
    tweets.end_batches()
    run.advance()

    assert tweets.materialize().rows == ["t7"]
