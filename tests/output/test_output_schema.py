"""The schema that is sent, and the one that is hashed."""

import json
from typing import Annotated, Literal

from everything import EVERYTHING, TYPES, Everything, Mood
from pydantic import BaseModel, Field, create_model
from stored import output_of

from dagster_claude_batch.output import Output


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
