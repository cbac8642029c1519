from __future__ import annotations

import datetime as dt  # noqa: TC003 - Pydantic reads the annotations
import enum
import ipaddress  # noqa: TC003 - Pydantic reads the annotations
import json
import uuid  # noqa: TC003 - Pydantic reads the annotations
from typing import Annotated, Any, Literal

import anthropic
import pytest
from pydantic import BaseModel, Field
from simulated import Service, params

from dagster_claude_batch.simulator.answers import answer_to


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    name: str
    size: float | None


class Nested(BaseModel):
    part: Part
    parts: list[Part]


class Scalars(BaseModel):
    text: str
    whole: int
    real: float
    yes: bool
    nothing: None
    one_of: Literal["a", "b"]
    always: Literal["c"]
    colour: Colour


class Formats(BaseModel):
    day: dt.date
    moment: dt.datetime
    time: dt.time
    span: dt.timedelta
    key: uuid.UUID
    four: ipaddress.IPv4Address
    six: ipaddress.IPv6Address


class Limits(BaseModel):
    score: float = Field(ge=0, le=1)
    stars: int = Field(ge=1, le=5)
    below: float = Field(lt=-3)
    above: int = Field(gt=1_000)
    code: str = Field(min_length=3, max_length=5)
    tags: list[Annotated[str, Field(max_length=4)]] = Field(min_length=2, max_length=3)


class Optional(BaseModel):
    maybe: int | str | None = None
    listed: list[int] = []


@pytest.mark.parametrize("output", [Nested, Scalars, Formats, Limits, Optional])
def test_values_fit_what_the_sdk_makes_of_a_pydantic_model(
    service: Service, output: type[BaseModel]
) -> None:
    schema = anthropic.transform_schema(output)
    config = {"format": {"type": "json_schema", "schema": schema}}

    rows = service.ask(
        *(
            params(output_config=config, messages=[{"role": "user", "content": f"Row {number}"}])
            for number in range(30)
        )
    )

    texts = {row["message"]["content"][0]["text"] for row in rows}
    assert len(texts) > 1
    for text in texts:
        output.model_validate_json(text)


def test_the_same_question_gets_the_same_value_in_any_batch(service: Service) -> None:
    config = {"format": {"type": "json_schema", "schema": anthropic.transform_schema(Limits)}}

    first, second = (service.text(output_config=config) for _ in range(2))

    assert first == second


def test_another_seed_gives_another_value(service: Service) -> None:
    config = {"format": {"type": "json_schema", "schema": anthropic.transform_schema(Limits)}}
    first = service.text(output_config=config)

    service.open(seed=1)

    assert service.text(output_config=config) != first


@pytest.mark.parametrize(
    "content",
    [
        'Rate each:\n<rows>\n<row number="1">a</row>\n<row number="2">b</row>\n</rows>',
        [{"type": "text", "text": text} for text in ("Rate each.", "Row 1:", "a", "Row 2:", "b")],
    ],
    ids=["text", "blocks"],
)
def test_numbered_rows_are_each_answered_under_their_number(content: Any) -> None:
    label = {"type": "string", "enum": ["good", "bad"]}
    element = {
        "type": "object",
        "properties": {"row": {"type": "integer"}, "label": {"$ref": "#/$defs/Label"}},
        "required": ["row", "label"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": element}},
        "required": ["rows"],
        "additionalProperties": False,
        "$defs": {"Label": label},
    }
    asked: Any = {
        "model": "claude-haiku-5-5",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": content}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }

    (block,) = answer_to(asked, answer=None, seed=1).content

    rows = json.loads(block["text"])["rows"]
    assert [row["row"] for row in rows] == [1, 2]
    assert {row["label"] for row in rows} <= {"good", "bad"}
