"""What was answered is what stands in DuckDB."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from time import tzset
from typing import Literal

import duckdb
import pytest
from everything import EVERYTHING, Everything, Mood, Part
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, HttpUrl
from stored import stored, stored_value

from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.output import Output


class Size(StrEnum):
    BIG = "big"


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["", "\0", "a\0b", "😀", '"', "\\", "\u2028", "NaN", "null"]
)
BIGINTS = st.integers(-(2**63), 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
INSTANTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=OFFSETS | st.just(UTC))  # noqa: DTZ001 - Hypothesis adds the zone
PARTS = st.builds(Part, name=TEXTS, count=BIGINTS | st.none())


def decimals(digits: int, places: int) -> st.SearchStrategy[Decimal]:
    bound = 10**digits - 1
    return st.integers(-bound, bound).map(lambda n: Decimal(n).scaleb(-places))


ANSWERS = st.builds(
    Everything,
    text=TEXTS,
    whole=BIGINTS,
    real=FINITE,
    maybe=TEXTS | st.none(),
    instant=INSTANTS,
    local=st.datetimes(),
    money=decimals(12, 2),
    wide=decimals(28, 9),
    part=PARTS,
    parts=st.lists(PARTS | st.none(), max_size=3),
    tags=st.sets(TEXTS, max_size=3),
    row=st.lists(FINITE, max_size=3).map(tuple),
    span=st.timedeltas(),
    either=st.none() | st.integers() | TEXTS | st.lists(PARTS, max_size=2),
)


def expected_columns(answer: Everything) -> dict[str, object]:
    expected = answer.model_dump() | {
        "mood": answer.mood.value,
        "tags": sorted(answer.tags),
        "row": list(answer.row),
    }
    del expected["either"]
    return expected


@given(answer=ANSWERS)
def test_whatever_the_model_accepts_arrives_in_duckdb_with_type_and_value(
    connection: duckdb.DuckDBPyConnection, answer: Everything
) -> None:
    row = stored(connection, EVERYTHING, EVERYTHING.validate(answer.model_dump_json()))

    either = row.pop("either")
    assert row == expected_columns(answer)
    assert (either and json.loads(either)) == answer.model_dump(mode="json")["either"]


MOMENT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
LONG_NUMBER = "12345678901234567890.123456789"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


class Loose(BaseModel):
    """Accepts nearly every JSON value somewhere."""

    text: str | None = None
    number: Decimal | None = None
    real: float | None = None
    whole: int | None = None
    when: datetime | date | time | timedelta | None = None
    clock: time | None = None
    span: timedelta | None = None
    moment: datetime | None = None
    any_of: list[int | float | str | bool | list[float]] | None = None


LOOSE = Output.from_model(Loose, asset="loose")


@given(answer=st.fixed_dictionaries({}, optional=dict.fromkeys(Loose.model_fields, JSON_VALUES)))
def test_duckdb_never_fails_on_what_was_validated(
    connection: duckdb.DuckDBPyConnection, answer: dict[str, object]
) -> None:
    try:
        text = LOOSE.validate(json.dumps(answer))
    except InvalidOutputError:
        return

    assert stored(connection, LOOSE, text).keys() == Loose.model_fields.keys()


@given(text=st.text() | JSON_VALUES.map(json.dumps))
def test_no_text_raises_anything_but_an_invalid_output_error(text: str) -> None:
    with pytest.raises(InvalidOutputError):
        EVERYTHING.validate(text)


@pytest.mark.parametrize(
    ("annotation", "answer", "value"),
    [
        pytest.param(float, 5, 5.0, id="whole number for a float"),
        pytest.param(datetime, "2026-01-02T03:04", MOMENT, id="no offset is UTC"),
        pytest.param(datetime, "2026-01-02T05:04+02:00", MOMENT, id="offset"),
        pytest.param(time, "03:04:05Z", time(3, 4, 5), id="time in UTC"),
        pytest.param(timedelta, "P1DT2H0.5S", timedelta(1, 7200, 500_000), id="ISO duration"),
        pytest.param(timedelta, "-PT1S", timedelta(seconds=-1), id="negative duration"),
        pytest.param(Decimal, "1e3", Decimal(1000), id="decimal with an exponent"),
        pytest.param(Decimal, LONG_NUMBER, Decimal(LONG_NUMBER), id="decimal of many digits"),
        pytest.param(HttpUrl, "https://example.com/a?b", "https://example.com/a?b", id="url"),
        pytest.param(set[int], [10, 9, 10], [9, 10], id="sets are sorted"),
        pytest.param(set[Mood], ["good", "Bad"], ["Bad", "good"], id="sets of members are sorted"),
        pytest.param(Literal["a", 1], 1, "1", id="literals of two types"),
        pytest.param(Literal[Size.BIG], "BIG", "big", id="literal of a string enum"),
        pytest.param(int | list[str], 10**400, str(10**400), id="JSON holds a huge number"),
        pytest.param(int | float, 0.5, "0.5", id="number of two types"),
    ],
)
def test_an_answer_is_stored_as(
    connection: duckdb.DuckDBPyConnection, annotation: object, answer: object, value: object
) -> None:
    assert stored_value(connection, annotation, answer) == value


@pytest.fixture
def _in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    tzset()
    yield
    monkeypatch.undo()
    tzset()


@pytest.mark.usefixtures("_in_tokyo")
def test_an_instant_without_offset_is_utc_wherever_the_machine_stands(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    assert stored_value(connection, datetime, "2026-01-02T03:04") == MOMENT
