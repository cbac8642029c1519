import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from time import tzset
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasPath,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    NaiveDatetime,
    RootModel,
    SecretStr,
    computed_field,
    create_model,
    field_serializer,
    model_validator,
)
from typing_extensions import TypeAliasType

from dagster_claude_batch.errors import InvalidOutputError, UnsupportedOutputError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.output import Output


class Mood(Enum):
    GOOD = "good"
    BAD = "Bad"


class Stars(IntEnum):
    ONE = 1
    TWO = 2


class Size(StrEnum):
    BIG = "big"


class Part(BaseModel):
    name: str
    count: int | None


class Everything(BaseModel):
    text: str
    whole: int
    real: float
    flag: bool
    label: Literal["a", "B"]
    mood: Mood
    stars: Stars
    level: Literal[1, 2]
    maybe: str | None
    day: date
    instant: datetime
    local: NaiveDatetime
    clock: time
    span: timedelta
    uid: UUID
    money: Decimal = Field(max_digits=12, decimal_places=2)
    wide: Decimal
    part: Part
    parts: list[Part | None]
    tags: set[str]
    row: tuple[float, ...]
    either: int | str | list[Part] | None


TYPES = {
    "text": "VARCHAR",
    "whole": "BIGINT",
    "real": "DOUBLE",
    "flag": "BOOLEAN",
    "label": "VARCHAR",
    "mood": "VARCHAR",
    "stars": "BIGINT",
    "level": "BIGINT",
    "maybe": "VARCHAR",
    "day": "DATE",
    "instant": "TIMESTAMPTZ",
    "local": "TIMESTAMP",
    "clock": "TIME",
    "span": "INTERVAL",
    "uid": "UUID",
    "money": "DECIMAL(12, 2)",
    "wide": "DECIMAL(38, 9)",
    "part": 'STRUCT("name" VARCHAR, "count" BIGINT)',
    "parts": 'STRUCT("name" VARCHAR, "count" BIGINT)[]',
    "tags": "VARCHAR[]",
    "row": "DOUBLE[]",
    "either": "JSON",
}
EVERYTHING = Output.from_model(Everything, asset="everything")


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")
        yield connection


def stored(connection: duckdb.DuckDBPyConnection, output: Output, text: str) -> dict[str, Any]:
    """Put one validated answer through a table of the output's columns, and read it back."""
    columns = ", ".join(f"{quote_identifier(c.name)} {c.type}" for c in output.columns)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE answers ({columns})")
    connection.execute(
        "INSERT INTO answers SELECT unnest(json_transform_strict($text, $structure))",
        {"text": text, "structure": output.transform_structure},
    )
    result = connection.execute("SELECT * FROM answers")
    names = [column[0] for column in result.description]
    return dict(zip(names, result.fetchall()[0], strict=True))


def stored_value(
    connection: duckdb.DuckDBPyConnection, annotation: object, answer: object
) -> object:
    output = output_of(annotation)
    return stored(connection, output, output.validate(json.dumps({"value": answer})))["value"]


def output_of(annotation: object) -> Output:
    fields: dict[str, Any] = {"value": (annotation, ...)}
    return Output.from_model(create_model("Model", **fields), asset="asset")


# --- columns ---------------------------------------------------------------------------------


def test_every_supported_type_has_its_column_type() -> None:
    assert {column.name: column.type for column in EVERYTHING.columns} == TYPES


def test_duckdb_knows_the_column_types_by_the_same_names_as_the_structure(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    columns = ", ".join(f"{quote_identifier(c.name)} {c.type}" for c in EVERYTHING.columns)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE declared ({columns})")
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE transformed AS "
        "SELECT unnest(json_transform('{}', $structure))",
        {"structure": EVERYTHING.transform_structure},
    )

    declared = connection.execute("DESCRIBE declared").fetchall()
    transformed = connection.execute("DESCRIBE transformed").fetchall()

    assert declared == transformed


def test_without_a_model_the_text_is_the_one_column(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    output = Output.from_model(None, asset="asset")

    text = output.validate('Not JSON, "quoted"\n\0 😀')

    assert stored(connection, output, text) == {"response": 'Not JSON, "quoted"\n\0 😀'}
    assert output.schema is None
    assert output.declared_schema is None


def test_a_column_has_the_description_of_its_field() -> None:
    class Model(BaseModel):
        score: float = Field(description="from 0 to 1")

    (column,) = Output.from_model(Model, asset="asset").columns

    assert column.description == "from 0 to 1"


@pytest.mark.parametrize("name", ['a"b', "two words", "select", "naïve", "日本", "a.b", "'", "\\"])
def test_a_hostile_field_name_is_a_column_at_every_level(
    connection: duckdb.DuckDBPyConnection, name: str
) -> None:
    fields: dict[str, Any] = {name: (str, ...)}
    inner = create_model("Inner", **fields)
    fields = {name: (inner, ...), "other": (list[inner], ...)}
    output = Output.from_model(create_model("Outer", **fields), asset="asset")

    text = output.validate(json.dumps({name: {name: "x"}, "other": [{name: "y"}]}))

    assert stored(connection, output, text) == {name: {name: "x"}, "other": [{name: "y"}]}


def test_claude_sees_the_alias_and_the_column_has_the_name(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    class Model(BaseModel):
        kind: Literal["x"] = Field(alias="class")

    output = Output.from_model(Model, asset="asset")

    assert output.schema is not None
    assert list(output.schema["properties"]) == ["class"]
    assert stored(connection, output, output.validate('{"class": "X"}')) == {"kind": "x"}


def test_computed_and_excluded_fields_and_serializers_do_not_reach_the_columns() -> None:
    class Model(BaseModel):
        reasoning: str = Field(exclude=True)
        score: float

        @computed_field
        @property
        def double(self) -> float:
            return 2 * self.score

        @field_serializer("score")
        def rounded(self, score: float) -> str:
            return f"about {score:.0f}"

    output = Output.from_model(Model, asset="asset")

    assert [column.name for column in output.columns] == ["score"]
    assert output.validate('{"reasoning": "long", "score": 0.25}') == '{"score":0.25}'


UserId = NewType("UserId", int)
Names = TypeAliasType("Names", list[str])


@pytest.mark.parametrize(
    ("annotation", "type_"),
    [
        pytest.param(HttpUrl, "VARCHAR", id="url"),
        pytest.param(UserId, "BIGINT", id="NewType"),
        pytest.param(Names, "VARCHAR[]", id="type statement"),
        pytest.param(Annotated[int, Field(gt=0)], "BIGINT", id="annotated"),
        pytest.param(AwareDatetime, "TIMESTAMPTZ", id="aware"),
        pytest.param(
            list[Annotated[Decimal, Field(max_digits=5, decimal_places=1)]],
            "DECIMAL(5, 1)[]",
            id="items",
        ),
        pytest.param(
            Annotated[Decimal | None, Field(max_digits=5, decimal_places=1)],
            "DECIMAL(5, 1)",
            id="optional",
        ),
        pytest.param(Annotated[Decimal, Field(decimal_places=2)], "DECIMAL(38, 2)", id="places"),
        pytest.param(Annotated[Decimal, Field(max_digits=5)], "DECIMAL(38, 9)", id="digits"),
        pytest.param(Literal["a", 1], "JSON", id="literals of two types"),
        pytest.param(Literal["a"] | None, "VARCHAR", id="literal or null"),
        pytest.param(Literal["a"] | HttpUrl, "JSON", id="choice or text"),
        pytest.param(HttpUrl | Path, "VARCHAR", id="union of one column type"),
        pytest.param(Sequence[str], "VARCHAR[]", id="sequence"),
        pytest.param(int | float, "JSON", id="union of two column types"),
    ],
)
def test_a_type_has_the_column_type(annotation: object, type_: str) -> None:
    assert [column.type for column in output_of(annotation).columns] == [type_]


# --- answers ---------------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(' \n{"value": 1}\n ', id="whitespace"),
        pytest.param('```json\n{"value": 1}\n```', id="fence"),
        pytest.param('```\n{"value": 1}\n```', id="bare fence"),
        pytest.param('{"value": 2, "value": 1}', id="duplicate key: the last counts"),
        pytest.param('{"value": 1, "more": [{}]}', id="undeclared field"),
    ],
)
def test_harmless_noise_round_an_answer_is_tolerated(text: str) -> None:
    assert output_of(int).validate(text) == '{"value":1}'


@pytest.mark.parametrize(
    ("annotation", "answer"),
    [
        pytest.param(int, "9223372036854775808", id="int too large"),
        pytest.param(int, "-9223372036854775809", id="int too small"),
        pytest.param(list[int], "[1, 9223372036854775808]", id="int too large in a list"),
        pytest.param(Part, '{"name": "x", "count": 9223372036854775808}', id="int in a struct"),
        pytest.param(float, "NaN", id="NaN"),
        pytest.param(float, "-Infinity", id="infinity"),
        pytest.param(float, "1e400", id="float too large"),
        pytest.param(float, '"inf"', id="infinity as text"),
        pytest.param(int | float, "1e400", id="float too large in JSON"),
        pytest.param(Decimal, "0.0000000001", id="decimal too fine"),
        pytest.param(Decimal, "1e29", id="decimal too large"),
        pytest.param(time, '"03:04:05+02:00"', id="time with an offset"),
        pytest.param(datetime, '"0001-01-01T00:00:00+02:00"', id="before the first year"),
        pytest.param(str, r'"\ud800"', id="lone surrogate"),
        pytest.param(str, '"\ud800"', id="raw lone surrogate"),
        pytest.param(str, '"\0"', id="raw NUL"),
        pytest.param(str, '"unfinished', id="cut off"),
        pytest.param(str, "", id="nothing"),
        pytest.param(Literal["a"], '"b"', id="not a choice"),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_invalid(annotation: object, answer: str) -> None:
    with pytest.raises(InvalidOutputError):
        output_of(annotation).validate(f'{{"value": {answer}}}')


def test_an_unfit_value_is_reported_by_field_and_column_type() -> None:
    class Model(BaseModel):
        fine: int
        huge: int

    with pytest.raises(InvalidOutputError, match=r"`huge`: the value cannot be stored as BIGINT$"):
        Output.from_model(Model, asset="asset").validate('{"fine": 1, "huge": 9223372036854775808}')


def test_an_invalid_answer_is_reported_by_path_and_reason() -> None:
    with pytest.raises(InvalidOutputError, match=r"`value\[1\]\.name`: Field required"):
        output_of(list[Part]).validate('{"value": [{"name": "", "count": 1}, {"count": 1}]}')


def test_an_error_message_never_holds_a_whole_answer() -> None:
    def refuse(text: str) -> str:
        raise ValueError(text)

    with pytest.raises(InvalidOutputError) as raised:
        output_of(Annotated[str, AfterValidator(refuse)]).validate(f'{{"value": "{"x" * 9_999}"}}')

    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("error", [ZeroDivisionError("0"), KeyError("x"), RuntimeError("secret")])
def test_a_validator_that_breaks_costs_its_row_alone(error: Exception) -> None:
    def broken(_: object) -> object:
        raise error

    with pytest.raises(InvalidOutputError, match=type(error).__name__):
        output_of(Annotated[int, BeforeValidator(broken)]).validate('{"value": 1}')


def test_constraints_of_the_model_are_checked() -> None:
    with pytest.raises(InvalidOutputError, match="less than or equal to 1"):
        output_of(Annotated[float, Field(le=1)]).validate('{"value": 2}')


def test_a_default_that_does_not_fit_its_column_is_invalid() -> None:
    class Model(BaseModel):
        value: int = "none"  # type: ignore[assignment]  # a mistake that Pydantic lets pass

    with pytest.raises(InvalidOutputError, match="`value`"):
        Output.from_model(Model, asset="asset").validate("{}")


def test_a_model_that_replaces_itself_with_something_else_is_invalid() -> None:
    class Model(BaseModel):
        value: int

        @model_validator(mode="wrap")
        @classmethod
        def other(cls, data: object, handler: Callable[[object], object]) -> object:
            handler(data)
            return {}

    with pytest.raises(InvalidOutputError, match="`value`"):
        Output.from_model(Model, asset="asset").validate('{"value": 1}')


def test_a_struct_without_one_of_its_fields_is_invalid() -> None:
    def hollow(_: object) -> Part:
        return Part.model_construct(name="x")

    with pytest.raises(InvalidOutputError, match="`value`"):
        output_of(Annotated[Part, BeforeValidator(hollow)]).validate('{"value": 1}')


@pytest.mark.parametrize("answer", [1, [1], None])
def test_a_field_left_out_gets_its_default(answer: object) -> None:
    model = create_model("Model", value=(int | list[int] | None, answer))

    text = Output.from_model(model, asset="asset").validate("{}")

    assert json.loads(text) == {"value": answer}


def test_a_default_of_none_is_null_even_where_the_type_forgot_it() -> None:
    class Model(BaseModel):
        value: str = None  # type: ignore[assignment]  # often written, and Pydantic lets it pass

    assert Output.from_model(Model, asset="asset").validate("{}") == '{"value":null}'


# --- letter case -----------------------------------------------------------------------------


class Nested(BaseModel):
    mood: Mood


@pytest.mark.parametrize(
    ("annotation", "answer", "value"),
    [
        pytest.param(Literal["Yes", "no"], "YES", "Yes", id="literal"),
        pytest.param(Mood, "BAD", "Bad", id="enum"),
        pytest.param(Mood | None, "Good", "good", id="optional"),
        pytest.param(list[Mood], ["good", "bad"], ["good", "Bad"], id="list"),
        pytest.param(Nested, {"mood": "bad"}, {"mood": "Bad"}, id="struct"),
        pytest.param(list[Nested], [{"mood": "GOOD"}], [{"mood": "good"}], id="list of structs"),
        pytest.param(int | Nested, {"mood": "bad"}, {"mood": "Bad"}, id="union"),
        pytest.param(Literal["Straße"], "STRASSE", "Straße", id="letters without a pair"),
    ],
)
def test_the_letter_case_of_a_choice_is_corrected(
    annotation: object, answer: object, value: object
) -> None:
    text = output_of(annotation).validate(json.dumps({"value": answer}))

    assert json.loads(text)["value"] == value


def test_choices_that_differ_in_case_alone_must_be_answered_exactly() -> None:
    output = output_of(Literal["us", "US"])

    assert output.validate('{"value": "US"}') == '{"value":"US"}'
    with pytest.raises(InvalidOutputError):
        output.validate('{"value": "Us"}')


def test_correcting_one_field_leaves_free_text_as_it_was() -> None:
    class Model(BaseModel):
        label: Literal["good"]
        free: Literal["good"] | str  # noqa: PYI051 - the redundancy is what is tested

    text = Output.from_model(Model, asset="asset").validate('{"label": "Good", "free": "GOOD"}')

    assert json.loads(text) == {"label": "good", "free": "GOOD"}


# --- schemas ---------------------------------------------------------------------------------


def test_the_schema_sent_is_one_that_the_api_accepts() -> None:
    class Address(BaseModel):
        street: str

    class Model(BaseModel):
        """A person."""

        age: int = Field(ge=0, description="in years")
        home: Address = Field(description="Where they live.")
        kind: Literal["a", "b"]

    assert Output.from_model(Model, asset="asset").schema == {
        "type": "object",
        "description": "A person.",
        "properties": {
            "age": {"type": "integer", "description": "in years\n\n{minimum: 0}"},
            "home": {
                "type": "object",
                "description": "Where they live.",
                "properties": {"street": {"type": "string"}},
                "required": ["street"],
                "additionalProperties": False,
            },
            "kind": {"enum": ["a", "b"]},
        },
        "required": ["age", "home", "kind"],
        "additionalProperties": False,
    }


def test_the_declared_schema_is_pinned_for_every_type() -> None:
    part = {
        "properties": {
            "name": {"type": "string"},
            "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
        "required": ["count", "name"],
        "type": "object",
    }
    text, null = {"type": "string"}, {"type": "null"}

    assert EVERYTHING.declared_schema == {
        "properties": {
            "text": text,
            "whole": {"type": "integer"},
            "real": {"type": "number"},
            "flag": {"type": "boolean"},
            "label": {"enum": ["a", "B"], "type": "string"},
            "mood": {"enum": ["good", "Bad"], "type": "string"},
            "stars": {"enum": [1, 2], "type": "integer"},
            "level": {"enum": [1, 2], "type": "integer"},
            "maybe": {"anyOf": [text, null]},
            "day": {"format": "date", "type": "string"},
            "instant": {"format": "date-time", "type": "string"},
            "local": {"format": "date-time without offset", "type": "string"},
            "clock": {"format": "time", "type": "string"},
            "span": {"format": "duration", "type": "string"},
            "uid": {"format": "uuid", "type": "string"},
            "money": {"multipleOf": 0.01, "type": "number"},
            "wide": {"anyOf": [{"type": "number"}, text]},
            "part": part,
            "parts": {"items": {"anyOf": [part, null]}, "type": "array"},
            "tags": {"items": text, "type": "array", "uniqueItems": True},
            "row": {"items": {"type": "number"}, "type": "array"},
            "either": {
                "anyOf": [{"type": "integer"}, text, {"items": part, "type": "array"}, null]
            },
        },
        "required": sorted(TYPES),
        "type": "object",
    }


def test_renaming_a_class_declares_the_same_schema() -> None:
    one = create_model("One", part=(create_model("A", value=(Mood, ...)), ...))
    two = create_model("Two", part=(create_model("B", value=(Mood, ...)), ...))

    assert (
        Output.from_model(one, asset="asset").declared_schema
        == Output.from_model(two, asset="asset").declared_schema
    )


def test_a_title_that_the_user_wrote_is_declared() -> None:
    declared = output_of(Annotated[int, Field(title="In metres")]).declared_schema

    assert declared is not None
    assert declared["properties"]["value"]["title"] == "In metres"


def test_the_order_of_fields_is_declared() -> None:
    declared = Output.from_model(Everything, asset="asset").declared_schema

    assert declared is not None
    assert list(declared["properties"]) == list(TYPES)


def test_keywords_are_declared_in_one_order() -> None:
    declared = output_of(Annotated[int, Field(title="A", le=2, description="b", ge=1)])

    assert json.dumps(declared.declared_schema) == (
        '{"properties": {"value": {"description": "b", "maximum": 2, "minimum": 1, '
        '"title": "A", "type": "integer"}}, "required": ["value"], "type": "object"}'
    )


# --- models that cannot be used --------------------------------------------------------------


class Tree(BaseModel):
    children: list["Tree"]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Tags(RootModel[list[str]]):
    pass


class Address(BaseModel):
    tags: list[dict[str, int]]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        pytest.param(dict[str, int], r"`value` is a dict", id="dict"),
        pytest.param(Address, r"`value\.tags\[\]` is a dict", id="dict far inside"),
        pytest.param(int | dict[str, int], "`value` is a dict", id="dict in a union"),
        pytest.param(Open, r'`value` has extra="allow"', id="extra fields"),
        pytest.param(Tree, r"`value\.children\[\]` contains itself", id="recursive"),
        pytest.param(Any, "`value` can be anything", id="Any"),
        pytest.param(object, "`value` can be anything", id="object"),
        pytest.param(list, r"`value` is of type `list`", id="list of anything"),
        pytest.param(bytes, "`value` is bytes", id="bytes"),
        pytest.param(SecretStr, "`value` is of type `SecretStr`", id="secret"),
        pytest.param(Tags, "`value` is of type `Tags`", id="root model"),
        pytest.param(Literal[Mood.GOOD], "`value` is a Literal of enum members", id="enum literal"),
        pytest.param(tuple[int, str], "`value` is a tuple of fixed length", id="fixed tuple"),
        pytest.param(
            Annotated[int, Field(validation_alias=AliasPath("a", "b"))],
            "`value` has an alias that is a path",
            id="alias path",
        ),
    ],
)
def test_a_type_that_cannot_be_asked_for_is_refused_with_its_path(
    annotation: object, message: str
) -> None:
    with pytest.raises(UnsupportedOutputError, match=message):
        output_of(annotation)


@pytest.mark.parametrize(
    "model", [int, dict, Tags, Part(name="x", count=1), BaseModel, create_model("Empty")]
)
def test_what_is_not_a_model_with_fields_is_refused(
    model: Any,
) -> None:
    with pytest.raises(UnsupportedOutputError, match="'asset', argument `output`: the model"):
        Output.from_model(model, asset="asset")


def test_a_model_that_refers_to_nothing_is_refused() -> None:
    class Model(BaseModel):
        value: "Missing"  # type: ignore[name-defined]  # noqa: F821 - it is missing

    with pytest.raises(UnsupportedOutputError, match="refers to `Missing`"):
        Output.from_model(Model, asset="asset")


@pytest.mark.parametrize("names", [["score", "Score"], [""], ["a\0b"]])
def test_field_names_that_are_no_columns_are_refused(names: list[str]) -> None:
    fields: dict[str, Any] = dict.fromkeys(names, (int, ...))

    with pytest.raises(UnsupportedOutputError):
        Output.from_model(create_model("Model", **fields), asset="asset")


@pytest.mark.parametrize(
    ("field", "limit", "message"),
    [
        pytest.param((int, 0), 24, "has 25 optional fields", id="optional fields"),
        pytest.param((int | None, ...), 16, "has 17 unions", id="unions"),
    ],
)
def test_more_than_the_api_takes_is_refused(
    field: tuple[object, object], limit: int, message: str
) -> None:
    fields: dict[str, Any] = {f"field_{n}": field for n in range(limit)}
    Output.from_model(create_model("Model", **fields), asset="asset")

    fields["last"] = field
    with pytest.raises(UnsupportedOutputError, match=message):
        Output.from_model(create_model("Model", **fields), asset="asset")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_an_identifier_that_no_quoting_saves_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be an identifier"):
        quote_identifier(name)
