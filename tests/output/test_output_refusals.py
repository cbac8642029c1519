"""Models that cannot be asked for or stored."""

from typing import Annotated, Any, Literal

import pytest
from everything import Mood, Part
from pydantic import AliasPath, BaseModel, ConfigDict, Field, RootModel, SecretStr, create_model
from stored import output_of

from dagster_claude_batch.errors import UnsupportedOutputError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.output import Output


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
