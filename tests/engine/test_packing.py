"""Several rows in one request: each is answered, counted and asked again by itself."""

import json
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from kit import Project, rows_in
from pydantic import BaseModel, Field

from dagster_claude_batch import Image
from dagster_claude_batch.errors import ModelUnavailableError, RequestsFileError
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.sdk_types import problem_with_messages, problem_with_param

Make = Callable[..., Project]
PROMPT = "Rate the sentiment of this text:\n\n{{ id }} {{ text }}\n\nBe brief."


@pytest.fixture
def packed(project: Make) -> Project:
    """Ten rows, of which four share a request."""
    made = project(prompt=PROMPT, rows_per_request=4)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    return made


def _requests(project: Project) -> list[list[str]]:
    """The keys of the rows in each request, in the order of sending."""
    found: list[list[str]] = []
    for batch in project.claude.simulator.batches():
        for _, params in project.claude.simulator.requests(batch.id):
            rows = rows_in(params) or [params["messages"][-1]["content"].split("\n\n")[1]]
            found.append([row.split()[0] for row in rows])
    return found


def test_each_row_of_a_request_gets_its_own_answer(packed: Project) -> None:
    packed.script.answers_with("7", {"row": 4, "label": "negative", "score": -1})

    packed.materialize()

    assert _requests(packed) == [
        ["t0", "t1", "t2", "t3"],
        ["t4", "t5", "t6", "t7"],
        ["t8", "t9"],
    ]
    assert packed.answers("id, label, score") == [
        (f"t{n}", *(("negative", -1.0) if n == 7 else ("positive", 0.5))) for n in range(10)
    ]
    assert packed.failures() == []


def test_a_request_says_once_what_its_rows_share(packed: Project) -> None:
    packed.materialize()

    (batch,) = packed.claude.simulator.batches()
    (_, params), *_ = packed.claude.simulator.requests(batch.id)
    content = params["messages"][0]["content"]
    assert content.count("Rate the sentiment of this text:") == 1
    assert content.endswith(
        '<rows>\n<row number="1">t0 Tweet number 0</row>\n<row number="2">t1 Tweet number 1</row>\n'
        '<row number="3">t2 Tweet number 2</row>\n<row number="4">t3 Tweet number 3</row>\n</rows>'
        "\n\nBe brief."
    )
    assert params["max_tokens"] == 4 * 1024
    assert problem_with_messages(params["messages"]) is None
    for name in ("output_config",):
        assert problem_with_param(name, params[name]) is None


def test_a_row_left_over_is_asked_as_if_nothing_was_shared(project: Make) -> None:
    made = project(prompt=PROMPT, rows_per_request=4)
    made.load([("tweets", "t0", "x")])
    made.materialize()
    alone = project(prompt=PROMPT)
    alone.load([("tweets", "t0", "x")])
    alone.materialize()

    asked = [
        [params for _, params in each.claude.simulator.requests(batch.id)]
        for each in (made, alone)
        for batch in each.claude.simulator.batches()
    ]
    assert asked[0] == asked[1]


def test_requests_are_counted_and_not_their_rows(packed: Project) -> None:
    packed.script.answers_with("1")
    run = packed.start()
    for _ in range(2):
        packed.end_batches()
        run.advance()

    report = run.report()

    assert (report.sent, report.retried, report.rows, report.deduplicated) == (4, 1, 10, 0)


def test_a_dry_run_shows_requests_of_several_rows(packed: Project) -> None:
    rehearsal = packed.engine().rehearse(["tweets"], MaterializationConfig())

    (part,) = rehearsal.partitions
    assert (part.rows, part.requests, rehearsal.chunks) == (10, 3, 1)
    keys = ["t0; t1; t2 and 1 more", "t4; t5; t6 and 1 more", "t8; t9"]
    assert [key for key, _ in part.examples] == keys
    packed.materialize()
    (batch,) = packed.claude.simulator.batches()
    sent = [params for _, params in packed.claude.simulator.requests(batch.id)]
    assert [json.loads(params) for _, params in part.examples] == sent


def test_a_dry_run_writes_all_requests_on_request(packed: Project, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"

    packed.engine().rehearse(["tweets"], MaterializationConfig(), requests_path=str(path))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({each["custom_id"] for each in requests}) == 3
    packed.materialize()
    (batch,) = packed.claude.simulator.batches()
    sent = [params for _, params in packed.claude.simulator.requests(batch.id)]
    assert [each["params"] for each in requests] == sent


def test_a_file_that_is_there_is_not_written_over(packed: Project, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("mine")

    with pytest.raises(RequestsFileError, match="does not exist yet"):
        packed.engine().rehearse(["tweets"], MaterializationConfig(), requests_path=str(path))

    assert path.read_text() == "mine"


def test_sharing_a_request_changes_no_hash(packed: Project) -> None:
    packed.materialize()
    packed.declare(prompt=PROMPT)

    assert packed.materialize().rows == []


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ([], "no element for row 2"),
        ([{"row": 2, "label": "positive", "score": 1}] * 2, "2 elements for row 2"),
        ([{"row": 2, "label": "so-so", "score": 1}], "label"),
        ([{"row": "2", "label": "positive", "score": 1}], "no element for row 2"),
        ([{"row": True, "label": "positive", "score": 1}], "no element for row 2"),
        ([{"row": 9, "label": "positive", "score": 1}, "junk"], "no element for row 2"),
    ],
    ids=["absent", "doubled", "invalid", "number as text", "no number", "of another row"],
)
def test_a_row_without_a_valid_answer_fails_alone_and_is_asked_alone(
    packed: Project, elements: list[Any], said: str
) -> None:
    packed.script.answers_with("1", *elements)
    run = packed.start()
    packed.end_batches()
    run.advance()

    assert len(packed.answers()) == 9
    assert packed.failures("id, _error_type, _retryable") == [("t1", "invalid_output", True)]
    ((message,),) = packed.sql("SELECT _error_message FROM main.sentiment_failures")
    assert said in message

    packed.end_batches()
    run.advance()
    assert _requests(packed)[3:] == [["t1"]]
    assert packed.answers("id, _attempts")[1] == ("t1", 2)


@pytest.mark.parametrize(
    "end", ["refusal", "max_tokens", "errored:invalid_request_error", "expired", "invalid_output"]
)
def test_a_request_that_fails_as_a_whole_is_split_into_its_rows(packed: Project, end: str) -> None:
    packed.script.ends_with("5", end)
    run = packed.start()
    packed.script.ends_with("5", None)
    for _ in range(2):
        packed.end_batches()
        run.advance()

    assert sorted(_requests(packed)[3:]) == [["t4"], ["t5"], ["t6"], ["t7"]]
    assert len(packed.answers()) == 10
    attempts = packed.sql("SELECT id FROM main.sentiment WHERE _attempts = 2 ORDER BY id")
    assert attempts == [("t4",), ("t5",), ("t6",), ("t7",)]


def test_what_is_too_long_for_several_is_not_given_more_room_alone(packed: Project) -> None:
    packed.script.ends_with("5", "max_tokens", "max_tokens", None)

    packed.materialize()

    asked = packed.sql(
        "SELECT attempt, max_tokens, requests FROM claude_batch.chunks ORDER BY chunk_id"
    )
    assert asked == [(1, 1024, 3), (2, 1024, 4), (3, 2048, 1)]


def test_a_failure_of_an_earlier_materialization_is_asked_alone(project: Make) -> None:
    made = project(prompt=PROMPT, rows_per_request=4, max_attempts=1)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(4)])
    made.script.ends_with("2", "expired", None)
    made.materialize()
    made.sql("INSERT INTO texts VALUES ('tweets', 't8', 'Tweet number 8')")
    made.sql("INSERT INTO texts VALUES ('tweets', 't9', 'Tweet number 9')")

    made.materialize()

    assert sorted(_requests(made)[1:]) == [["t0"], ["t1"], ["t2"], ["t3"], ["t8", "t9"]]


def test_shares_of_a_request_come_to_what_was_billed(packed: Project) -> None:
    packed.script.answers_with("1")

    packed.materialize()

    bill = packed.claude.simulator.bill()
    assert packed.sql(
        "SELECT sum(_input_tokens)::INT, sum(_output_tokens)::INT, sum(_cost_usd)::DOUBLE "
        "FROM main.sentiment"
    ) == [
        (
            sum(each.usage["input_tokens"] for each in bill),
            sum(each.usage["output_tokens"] for each in bill),
            pytest.approx(
                sum(
                    0.05e-6 * each.usage["input_tokens"] + 0.25e-6 * each.usage["output_tokens"]
                    for each in bill
                ),
                abs=1e-15,
            ),
        )
    ]


def test_rows_that_ask_the_same_are_one_row_of_a_request(packed: Project) -> None:
    packed.declare(prompt="Rate it: {{ text }}", rows_per_request=4)
    packed.load([("tweets", f"t{n}", f"text{n % 3}") for n in range(10)])

    packed.materialize()

    assert _requests(packed) == [["text0", "text1", "text2"]]
    assert len(packed.answers()) == 10
    assert packed.sql("SELECT sum(_input_tokens)::INT FROM main.sentiment") == [
        (packed.claude.simulator.bill()[0].usage["input_tokens"],)
    ]


def test_a_row_that_changes_before_it_is_sent_is_put_together_anew(project: Make) -> None:
    made = project(
        prompt=PROMPT, rows_per_request=4, chunk_size=1, claude={"max_in_flight_requests": 1}
    )
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(8)])
    run = made.start()
    made.change("t5", "changed")
    made.remove("t6")
    for _ in range(4):
        made.end_batches()
        run.advance()

    assert _requests(made) == [["t0", "t1", "t2", "t3"], ["t4", "t5", "t7"]]
    assert made.answers() == ["t0", "t1", "t2", "t3", "t4", "t5", "t7"]


def test_rows_that_are_too_large_to_share_a_request_are_asked_alone(packed: Project) -> None:
    packed.load(
        [("tweets", f"t{n}", "x" * 9_000_000 if n in {1, 2} else "small") for n in range(4)]
    )

    packed.materialize()

    assert sorted(_requests(packed)) == [["t0", "t3"], ["t1"], ["t2"]]
    assert packed.answers() == ["t0", "t3"]  # no model takes a text as long as the others


def test_without_an_output_each_row_has_its_text(project: Make) -> None:
    made = project(prompt=PROMPT, rows_per_request=2, output=None)
    made.load([("tweets", "t0", "one"), ("tweets", "t1", 'two "quoted"')])
    made.script.answers_with("t1", {"row": 2, "response": 'Said "so"\n'})

    made.materialize()

    assert made.answers("id, response") == [("t0", "An answer to: t0 one"), ("t1", 'Said "so"\n')]


class Odd(BaseModel):
    """Its names are those of the list's own, and one of its types is shared."""

    row: int
    rows: list["Tag"] = Field(default_factory=list)


class Tag(BaseModel):
    name: Literal["a", "b"]


def test_names_of_the_output_do_not_get_in_the_way(project: Make) -> None:
    made = project(prompt=PROMPT, rows_per_request=2, output=Odd)
    made.load([("tweets", "t0", "one"), ("tweets", "t1", "two")])
    made.script.answers_with("one", {"row_number": 1, "row": 7, "rows": [{"name": "a"}]})
    made.script.answers_with("two", {"row_number": 2, "row": 8, "rows": []})

    made.materialize()

    assert made.answers("id, row, len(rows)") == [("t0", 7, 1), ("t1", 8, 0)]


def test_blocks_of_several_rows_stand_between_those_that_they_share(project: Make) -> None:
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8"
        "cfc000000301010018dd8db00000000049454e44ae426082"
    )
    made = project(
        source="pictures",
        prompt=["These are pictures.", Image("picture"), "Its name: {{ id }}", "Describe them."],
        rows_per_request=2,
        output=None,
    )
    made.sql("CREATE TABLE pictures (corpus VARCHAR, id VARCHAR, picture BLOB)")
    for key in ("a", "b"):
        made.sql("INSERT INTO pictures VALUES ('tweets', $key, $png)", key=key, png=png)
    made.claude.script.replies_with(
        "Describe",
        '{"rows": [{"row": 1, "response": "first"}, {"row": 2, "response": "second"}]}',
    )

    made.materialize()

    assert made.answers("id, response") == [("a", "first"), ("b", "second")]
    (batch,) = made.claude.simulator.batches()
    ((_, params),) = made.claude.simulator.requests(batch.id)
    content = params["messages"][0]["content"]
    assert [block.get("text", block["type"]) for block in content][1:] == [
        "These are pictures.",
        "Row 1:",
        "image",
        "Its name: a",
        "Row 2:",
        "image",
        "Its name: b",
        "Describe them.",
    ]
    assert problem_with_messages(params["messages"]) is None


@pytest.mark.parametrize("cache", ["5m", "1h"])
def test_what_all_rows_share_is_cached(project: Make, cache: str) -> None:
    made = project(prompt="x" * 9_000 + " {{ id }} {{ text }}", rows_per_request=2, cache=cache)
    made.load([("tweets", "t0", "one"), ("tweets", "t1", "two")])

    made.materialize()

    (batch,) = made.claude.simulator.batches()
    ((_, params),) = made.claude.simulator.requests(batch.id)
    front, own = params["messages"][0]["content"]
    assert front["cache_control"]["type"] == "ephemeral"
    assert "cache_control" not in own
    assert len(made.answers()) == 2


def test_answers_that_a_model_cannot_give_at_once_are_refused_before_anything_is_sent(
    project: Make,
) -> None:
    made = project(prompt=PROMPT, rows_per_request=1_000)
    made.load([("tweets", "t0", "one"), ("tweets", "t1", "two")])

    with pytest.raises(ModelUnavailableError, match="each of 1,000 rows"):
        made.start()

    assert made.wire.posts() == 0


def test_answers_come_back_although_rows_share_no_request_any_more(packed: Project) -> None:
    run = packed.start(run_id="the-run")
    packed.declare(prompt=PROMPT)
    packed.end_batches()

    assert packed.start(run_id="the-run").waiting is None
    assert len(packed.answers()) == 10
    assert len(run.materializations) == 1


def test_requests_that_were_planned_for_several_rows_are_planned_anew_for_one(
    project: Make,
) -> None:
    made = project(
        prompt=PROMPT, rows_per_request=4, chunk_size=1, claude={"max_in_flight_requests": 1}
    )
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(8)])
    made.start(run_id="the-run")
    made.declare(prompt=PROMPT, chunk_size=1)
    for _ in range(8):
        made.end_batches()
        if made.start(run_id="the-run").waiting is None:
            break

    assert made.answers("id, _attempts") == [(f"t{n}", 1) for n in range(8)]
    assert len(made.claude.simulator.bill()) == 5


def test_what_is_left_of_requests_that_nobody_has_seen_is_put_together_anew(
    packed: Project,
) -> None:
    packed.load([("tweets", f"t{n}", f"Tweet number {n}") for n in (0, 2)])
    packed.materialize()
    packed.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(4)])
    packed.wire.lose_call("POST /v1/messages/batches", httpx2.ReadTimeout)
    refresh = packed.start(refresh=True)
    refresh.engine.cancel(refresh.materializations[0])
    run = packed.start()
    packed.claude.simulator.advance(timedelta(hours=1))

    run.advance()
    packed.end_batches()

    assert run.advance() is None
    assert packed.answers("id, _attempts") == [(f"t{n}", 1) for n in range(4)]


def test_a_failed_row_and_a_new_one_that_ask_the_same_are_asked_once(project: Make) -> None:
    made = project(prompt="Rate it now: {{ text }}", rows_per_request=2, max_attempts=1)
    made.load([("tweets", "t1", "good")])
    made.script.ends_with("good", "expired", None)
    made.materialize()
    made.sql("INSERT INTO texts VALUES ('tweets', 't2', 'good')")

    made.materialize()

    assert made.answers() == ["t1", "t2"]
    assert len(made.claude.simulator.bill()) == 1
