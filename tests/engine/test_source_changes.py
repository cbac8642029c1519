"""The source and the declaration, when they change while something is out."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pytest
from kit import Project, RunOfTest
from pydantic import BaseModel

from dagster_claude_batch import Image
from dagster_claude_batch.errors import (
    ClaudeBatchError,
    ColumnTypeChangedError,
    MissingColumnError,
    SourceFailedError,
    SourceNotFoundError,
    UnstableSourceError,
)
from dagster_claude_batch.ledger import MaterializationConfig

Change = Callable[[Project], object]


def _project(directory: Path, **declared: Any) -> Project:
    """Four rows, of which the id is a number."""
    made = Project(directory, **declared)
    made.sql(
        "CREATE TABLE texts AS SELECT 'tweets' AS corpus, range::INTEGER AS id, "
        "'Tweet number ' || range AS text, 10 * range::INTEGER AS n FROM range(4)"
    )
    return made


PICTURES: dict[str, Any] = {
    "source": None,
    "query": "SELECT * REPLACE ('https://example.org/' || id || left(text, 0) AS text) FROM texts",
    "prompt": [Image("text"), "Rate {{ id }} now: what is it?"],
}


def _statement(sql: str) -> Change:
    return lambda project: project.sql(sql)


def _run(project: Project) -> RunOfTest:
    """The one run of a test, or its next wake-up in another process."""
    return project.start(run_id="the-run")


CHANGES = {
    "emptied": "DELETE FROM texts",
    "shrunk": "DELETE FROM texts WHERE id > 1",
    "gone": "DROP TABLE texts",
    "without the prompt's column": "ALTER TABLE texts DROP text",
    "key of another type": "ALTER TABLE texts ALTER id TYPE VARCHAR USING 't' || id",
    "prompt of another type": "ALTER TABLE texts ALTER text TYPE VARCHAR[] USING [text]",
    "include of another type": "ALTER TABLE texts ALTER n TYPE VARCHAR USING 'n' || n",
    "partition of another type": "ALTER TABLE texts ALTER corpus TYPE INTEGER USING 7",
    "doubled": "INSERT INTO texts FROM texts",
    "without keys": "UPDATE texts SET id = NULL",
}
BACK = (
    "CREATE OR REPLACE TABLE texts AS SELECT 'tweets' AS corpus, range::INTEGER AS id, "
    "'Tweet number ' || range AS text, 10 * range::INTEGER AS n FROM range(4)"
)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_collecting_does_not_look_at_the_source(tmp_path: Path, change: str) -> None:
    made = _project(tmp_path, include=["n"])
    _run(made)
    made.sql(change)
    made.end_batches()

    assert _run(made).waiting is None
    assert made.answers("id, n") == [(n, 10 * n) for n in range(4)]
    assert made.failures() == []


@pytest.mark.parametrize("change", ["gone", "key of another type", "doubled", "without keys"])
def test_a_source_that_cannot_be_asked_about_changes_nothing(tmp_path: Path, change: str) -> None:
    made = _project(tmp_path)
    made.materialize()
    made.sql(CHANGES[change])

    with pytest.raises(ClaudeBatchError, match="Nothing was submitted"):
        made.start()

    assert made.answers() == [0, 1, 2, 3]
    made.sql(BACK)
    assert made.materialize().rows == []


@pytest.mark.parametrize("change", ["emptied", "partition of another type"])
def test_rows_that_come_back_are_not_paid_for_again(tmp_path: Path, change: str) -> None:
    made = _project(tmp_path, include=["n"])
    made.materialize()
    made.sql(CHANGES[change])
    made.materialize()
    assert made.answers() == []

    made.sql(BACK)
    made.sql("INSERT INTO texts VALUES ('tweets', 4, 'A new one', 40)")

    assert made.materialize().rows == ["4"]
    assert made.answers("id, n") == [(n, 10 * n) for n in range(5)]


# --- at a retry, and when a planned chunk is sent -------------------------------------------


def _at_a_retry(directory: Path, **declared: Any) -> Project:
    """Row 2 is going to be asked a second time when the batch has ended."""
    made = _project(directory, **declared)
    made.script.ends_with("2", "expired", None)
    _run(made)
    made.end_batches()
    return made


def _at_a_planned_chunk(directory: Path, **declared: Any) -> Project:
    """Two rows are planned, and are sent when the two others have come back; see `_planned`."""
    made = _project(directory, chunk_size=2, claude={"max_in_flight_requests": 2}, **declared)
    _run(made)
    made.end_batches()
    return made


def _planned(project: Project) -> list[int]:
    """The rows that are planned and have not been sent."""
    found = project.sql(
        "SELECT id FROM claude_batch.requests_1 AS q JOIN claude_batch.chunks AS c "
        "ON c.chunk_id = q._chunk_id WHERE c.state = 'planned' ORDER BY id"
    )
    return [identity for (identity,) in found]


STAGES = [_at_a_retry, _at_a_planned_chunk]
stages = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__[4:])
Stage = Callable[..., Project]


def _come_to_rest(project: Project) -> None:
    for _ in range(5):
        if _run(project).waiting is None:
            return
        project.end_batches()
    raise AssertionError("it never came to an end")


@stages
@pytest.mark.parametrize(
    ("change", "error"),
    [("gone", SourceNotFoundError), ("without the prompt's column", MissingColumnError)],
)
def test_a_source_that_is_gone_is_an_error_and_is_gone_on_with_later(
    tmp_path: Path, stage: Stage, change: str, error: type[Exception]
) -> None:
    made = stage(tmp_path)
    made.sql(CHANGES[change])

    with pytest.raises(error):
        _run(made)
    landed = len(made.answers())
    assert landed == len(made.claude.simulator.bill())

    made.sql(BACK)
    _come_to_rest(made)
    assert made.answers() == [0, 1, 2, 3]
    assert len(made.claude.simulator.bill()) == 4


@stages
def test_rows_that_have_left_are_not_asked(tmp_path: Path, stage: Stage) -> None:
    made = stage(tmp_path)
    made.sql("DELETE FROM texts")

    _come_to_rest(made)

    assert made.wire.posts() == 1
    assert made.sql("SELECT state FROM claude_batch.materializations") == [("done",)]


@stages
def test_rows_that_have_changed_are_asked_as_they_are(tmp_path: Path, stage: Stage) -> None:
    made = stage(tmp_path)
    made.sql("UPDATE texts SET text = 'It has changed' WHERE id = 2")

    _come_to_rest(made)

    prompts = [
        params["messages"][0]["content"]
        for batch in made.claude.simulator.batches()[1:]
        for _, params in made.claude.simulator.requests(batch.id)
    ]
    assert "Rate 2 now: It has changed" in prompts
    assert made.answers() == [0, 1, 2, 3]
    assert made.materialize().rows == []


@stages
@pytest.mark.parametrize("declared", [{}, PICTURES], ids=["text", "picture"])
def test_rows_that_cannot_be_asked_any_more_fail(
    tmp_path: Path, stage: Stage, declared: dict[str, Any]
) -> None:
    made = stage(tmp_path, **declared)
    asked = len(made.claude.simulator.bill())
    made.sql("UPDATE texts SET text = NULL")

    _come_to_rest(made)

    assert made.wire.posts() == 1
    assert len(made.answers()) == asked
    assert {kind for _, kind, *_ in made.failures()} == {"invalid_row"}
    assert len(made.answers()) + len(made.failures()) == 4


@stages
def test_a_prompt_of_another_type_is_asked_as_it_is(tmp_path: Path, stage: Stage) -> None:
    made = stage(tmp_path)
    made.sql(CHANGES["prompt of another type"])

    _come_to_rest(made)

    assert made.answers() == [0, 1, 2, 3]


@stages
def test_a_key_of_another_type_is_refused_with_both_types(tmp_path: Path, stage: Stage) -> None:
    made = stage(tmp_path)
    made.sql(CHANGES["key of another type"])

    with pytest.raises(ColumnTypeChangedError, match=r"'id'.*INTEGER.*VARCHAR"):
        _run(made)

    made.sql(BACK)
    _come_to_rest(made)
    assert made.answers() == [0, 1, 2, 3]
    assert len(made.claude.simulator.bill()) == 4


def test_an_included_column_of_another_type_is_refused_at_a_retry(tmp_path: Path) -> None:
    made = _at_a_retry(tmp_path, include=["n"])
    made.sql(CHANGES["include of another type"])

    with pytest.raises(ColumnTypeChangedError, match=r"'n'.*INTEGER.*VARCHAR"):
        _run(made)


def test_a_row_that_was_doubled_is_not_asked_twice_at_a_retry(tmp_path: Path) -> None:
    _check_doubled(_at_a_retry(tmp_path), invalid=[2])


def test_a_row_that_was_doubled_is_not_asked_twice_from_a_planned_chunk(tmp_path: Path) -> None:
    made = _at_a_planned_chunk(tmp_path)

    _check_doubled(made, invalid=_planned(made))


def _check_doubled(made: Project, *, invalid: list[int]) -> None:
    made.sql(CHANGES["doubled"])

    _come_to_rest(made)

    assert made.failures() == [(identity, "invalid_row") for identity in invalid]
    assert made.answers() == [n for n in range(4) if n not in invalid]
    assert len(made.claude.simulator.bill()) == 4 - len(invalid)


def test_a_doubled_row_does_not_pass_for_one_that_has_left(tmp_path: Path) -> None:
    made = _at_a_planned_chunk(tmp_path)
    left, doubled = _planned(made)
    made.sql("DELETE FROM texts WHERE id = $id", id=left)
    made.sql("INSERT INTO texts FROM texts WHERE id = $id", id=doubled)

    _come_to_rest(made)

    assert made.failures() == [(doubled, "invalid_row")]
    assert made.answers() == [n for n in range(4) if n not in {left, doubled}]


@stages
def test_a_source_that_keeps_growing_is_come_to_an_end_with(tmp_path: Path, stage: Stage) -> None:
    made = stage(tmp_path)
    for last in range(100, 105):
        made.sql(f"INSERT INTO texts VALUES ('tweets', {last}, 'A new one', 1)")
        if _run(made).waiting is None:
            break
        made.end_batches()

    assert made.sql("SELECT state FROM claude_batch.materializations") == [("done",)]
    assert made.answers() == [0, 1, 2, 3]
    assert set(made.materialize().rows) == {str(n) for n in range(100, last + 1)}


# --- a source that is never twice the same --------------------------------------------------

VOLATILE = {
    "a sample": "SELECT * FROM texts USING SAMPLE 1 ROWS",
    "rows by chance": "SELECT * FROM texts WHERE random() < 0.5",
    "the time in a text": "SELECT * REPLACE (text || ' as of ' || now() AS text) FROM texts",
    "chance in a text": "SELECT * REPLACE (text || random() AS text) FROM texts",
}


@pytest.mark.parametrize("query", VOLATILE.values(), ids=VOLATILE)
def test_a_source_that_is_never_twice_the_same_is_an_error_and_nothing_is_sent(
    tmp_path: Path, query: str
) -> None:
    made = _many(tmp_path, query, 100_000 if "SAMPLE" in query else 60)

    with pytest.raises(UnstableSourceError, match="materialize"):
        made.start()

    assert made.wire.posts() == 0
    assert made.sql("SELECT state FROM claude_batch.materializations") == [("cancelled",)]
    made.load([("tweets", f"t{n}", "x") for n in range(3)])
    made.declare()
    assert made.materialize().rows == ["t0", "t1", "t2"]


def _many(directory: Path, query: str, rows: int = 60, **declared: Any) -> Project:
    made = Project(directory, source=None, query=query, **declared)
    made.sql(
        "CREATE TABLE texts AS SELECT 'tweets' AS corpus, 't' || range AS id, 'x' AS text "
        f"FROM range({rows})"
    )
    return made


def test_what_was_sent_of_a_source_that_is_never_twice_the_same_is_collected_first(
    tmp_path: Path,
) -> None:
    changing = "CASE WHEN id = 't7' THEN text || random() ELSE text END AS text"
    made = _many(tmp_path, f"SELECT * REPLACE ({changing}) FROM texts", chunk_size=10)
    run = made.start()
    out = run.waiting
    assert out is not None
    sent = made.sent().rows
    made.end_batches()

    with pytest.raises(UnstableSourceError):
        run.advance()

    assert "t7" not in sent
    assert len(sent) >= 50
    assert sorted(made.answers()) == sent
    assert len(made.claude.simulator.bill()) == len(sent)


@pytest.mark.parametrize(
    ("change", "asked"),
    [("UPDATE texts SET text = 'changed'", 10), ("DELETE FROM texts WHERE id > 't2'", 3)],
    ids=["all rows change", "rows leave"],
)
def test_a_change_of_many_planned_chunks_is_not_taken_for_chance(
    tmp_path: Path, change: str, asked: int
) -> None:
    made = _many(tmp_path, "FROM texts SELECT *", 10, chunk_size=2, **ONE_CHUNK_AT_A_TIME)
    run = made.start()
    made.sql(change)

    for _ in range(20):
        if run.waiting is None:
            break
        made.end_batches()
        run.advance()

    assert made.sql("SELECT state FROM claude_batch.materializations") == [("done",)]
    assert len(made.claude.simulator.bill()) == asked


ONE_CHUNK_AT_A_TIME: dict[str, Any] = {"claude": {"max_in_flight_requests": 2}}


# --- values that the source's own SQL cannot work with --------------------------------------

SPOILT = "SECRETPROMPT of a row"


NUMBERED = {
    "source": None,
    "query": "SELECT *, CAST(replace(text, 'Tweet number ', '') AS INTEGER) AS number FROM texts",
    "prompt": "Rate {{ id }} now: {{ text }}, {{ number }}",
}
SPOIL = f"UPDATE texts SET text = '{SPOILT}' WHERE id = 2"


def _start(project: Project) -> object:
    return _run(project)


def _rehearse(project: Project) -> object:
    return project.engine().rehearse(["tweets"], MaterializationConfig())


@pytest.mark.parametrize("read", [_start, _rehearse], ids=["planning", "dry run"])
def test_a_value_that_cannot_be_cast_is_an_error_that_does_not_show_it(
    tmp_path: Path, read: Change
) -> None:
    made = _project(tmp_path, **NUMBERED)
    made.sql(SPOIL)

    with pytest.raises(SourceFailedError, match=r"'sentiment' failed: Conversion Error:") as raised:
        read(made)

    _check_discreet(raised.value)
    assert made.wire.posts() == 0


@stages
def test_a_value_spoilt_during_the_wait_is_an_error_and_is_gone_on_with_later(
    tmp_path: Path, stage: Stage
) -> None:
    made = stage(tmp_path, **NUMBERED)
    made.sql(SPOIL)

    with pytest.raises(SourceFailedError) as raised:
        _run(made)

    _check_discreet(raised.value)
    made.sql(BACK)
    _come_to_rest(made)
    assert made.answers() == [0, 1, 2, 3]


@pytest.mark.parametrize("length", range(4))
def test_an_error_whose_message_is_cut_within_a_letter_is_told_as_any_other(
    tmp_path: Path, length: int
) -> None:
    made = _project(tmp_path, partition_expr="(text::JSON)->>'corpus'")
    made.load([("tweets", "t1", "x" * length + SPOILT + "é" * 99)])

    with pytest.raises(SourceFailedError, match="malformed json") as raised:
        _run(made)

    _check_discreet(raised.value)


def _check_discreet(error: BaseException) -> None:
    """Nor does what Dagster stores with an error: its cause, and a context that is not hidden."""
    told = "".join(traceback.format_exception(error))
    assert SPOILT not in told
    assert "LINE 1" not in told
    assert "TRY_CAST" in str(error)
    assert "never sent twice" in str(error)


def test_a_time_that_is_none_is_told_by_its_argument(project: Callable[..., Project]) -> None:
    made = project(partitions_def=dg.DailyPartitionsDefinition("2026-01-01"), partition_expr="text")
    made.load([("tweets", "t1", SPOILT)])

    with pytest.raises(SourceFailedError, match=r"invalid timestamp.*`partition_expr`") as raised:
        made.start("2026-01-02")

    _check_discreet(raised.value)


def test_an_expression_that_does_not_run_is_named_without_the_query(tmp_path: Path) -> None:
    made = _project(tmp_path, partition_expr="corpuss || 'password=hunter2'")

    with pytest.raises(SourceFailedError, match="corpuss") as raised:
        _run(made)

    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_a_query_that_does_not_run_is_not_shown(tmp_path: Path) -> None:
    made = _project(
        tmp_path, source=None, query="SELECT corpus, id, nope FROM texts WHERE 'hunter2' <> ''"
    )

    with pytest.raises(SourceNotFoundError, match="nope") as raised:
        _run(made)

    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


# --- another output -------------------------------------------------------------------------


class Reasoned(BaseModel):
    label: Literal["positive", "neutral", "negative"]
    score: float
    reason: str = "none given"


class Explained(BaseModel):
    label: Literal["positive", "neutral", "negative"]
    score: float
    why: str


class Numbered(BaseModel):
    label: int
    score: float


def test_a_new_field_is_a_column_when_the_answers_to_the_old_model_land(tmp_path: Path) -> None:
    made = _project(tmp_path)
    _run(made)
    made.declare(output=Reasoned)
    made.end_batches()

    assert _run(made).waiting is None

    assert made.answers("id, score, reason") == [(n, 0.5, "none given") for n in range(4)]
    assert len(made.claude.simulator.bill()) == 4


def test_what_lacks_a_new_required_field_is_asked_again_by_the_same_materialization(
    tmp_path: Path,
) -> None:
    made = _project(tmp_path)
    _run(made)
    made.declare(output=Explained)
    made.end_batches()
    reply = '{"label": "neutral", "score": 0.5, "why": "so"}'
    made.script.replies = dict.fromkeys("0123", reply)

    waiting = _run(made).waiting
    assert waiting is not None
    assert made.wire.posts() == 2
    made.end_batches()

    assert _run(made).waiting is None
    assert made.answers("id, label, why") == [(n, "neutral", "so") for n in range(4)]
    assert made.failures() == []


def test_a_field_of_another_type_lands_nothing_and_loses_nothing(tmp_path: Path) -> None:
    made = _project(tmp_path)
    _run(made)
    made.declare(output=Numbered)
    made.end_batches()

    with pytest.raises(ColumnTypeChangedError, match=r"'label'.*VARCHAR.*BIGINT"):
        _run(made)
    assert made.answers() == []
    assert made.failures() == []
    assert made.chunk_states() == {"submitted": 1}

    made.declare()
    assert _run(made).waiting is None
    assert made.answers() == [0, 1, 2, 3]
    assert made.wire.posts() == 1


def test_a_field_of_another_type_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    made = _project(tmp_path)
    made.materialize()
    made.declare(output=Numbered)

    with pytest.raises(ColumnTypeChangedError, match=r"'label'.*VARCHAR.*BIGINT"):
        made.start()
    assert made.wire.posts() == 1


def test_a_field_that_was_taken_away_leaves_its_column(tmp_path: Path) -> None:
    made = _project(tmp_path, output=Reasoned)
    _run(made)
    made.declare()
    made.end_batches()

    assert _run(made).waiting is None
    assert made.answers("id, reason") == [(n, None) for n in range(4)]


def test_a_column_included_since_comes_with_the_next_materialization(
    tmp_path: Path,
) -> None:
    made = _project(tmp_path)
    _run(made)
    made.declare(include=["n"])
    made.end_batches()

    assert _run(made).waiting is None
    assert made.answers() == [0, 1, 2, 3]

    assert made.materialize().rows == []
    assert made.answers("id, n") == [(n, 10 * n) for n in range(4)]
