"""Which answers are refused, and what is said of them."""

import json
from collections.abc import Callable
from datetime import datetime, time
from decimal import Decimal
from typing import Annotated, Literal

import pytest
from everything import Part
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    create_model,
    model_validator,
)
from stored import output_of

from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.output import Output


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
