"""Choices answered in another letter case."""

import json
from typing import Literal

import pytest
from everything import Mood
from pydantic import BaseModel
from stored import output_of

from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.output import Output


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
