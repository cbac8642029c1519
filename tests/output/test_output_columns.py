"""Which column a field gets."""

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import duckdb
import pytest
from everything import EVERYTHING, TYPES
from pydantic import (
    AwareDatetime,
    BaseModel,
    Field,
    HttpUrl,
    computed_field,
    create_model,
    field_serializer,
)
from stored import output_of, stored
from typing_extensions import TypeAliasType

from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.output import Output


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
