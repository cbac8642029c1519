"""Fields as the columns of a table.

Every field has a shape: the SQL type of its column, the structure from which DuckDB reads it,
and the way its values are written as JSON. A nested model is stored by the same functions as
the whole answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic_core import CoreSchema, core_schema

Recase = Callable[[object], object]


@dataclass(frozen=True)
class OutputColumn:
    """One column of the answers table; ``type`` is written as in SQL."""

    name: str
    type: str
    description: str | None = None


@dataclass(frozen=True)
class Shape:
    """How values of one type are stored: SQL type, structure for DuckDB, writing as JSON.

    ``recase`` corrects the letter case of what should be one of a few given strings.
    """

    type: str
    structure: object
    encoding: CoreSchema
    recase: Recase | None = None


@dataclass(frozen=True)
class Field:
    """One field of a model; if it is ``excluded``, it is asked for but gets no column."""

    name: str
    keys: frozenset[str]  # what an answer may call it: the alias, the name, or both
    description: str | None
    excluded: bool
    shape: Shape


def columns(fields: Sequence[Field]) -> tuple[OutputColumn, ...]:
    """Return a column for each field that is stored."""
    return tuple(
        OutputColumn(field.name, field.shape.type, field.description)
        for field in fields
        if not field.excluded
    )


def structure(fields: Sequence[Field]) -> dict[str, object]:
    """Return what ``json_transform_strict`` is to read of each field that is stored."""
    return {field.name: field.shape.structure for field in fields if not field.excluded}


def encode_fields(fields: Sequence[Field]) -> CoreSchema:
    """Write a model as an object of its stored fields, whatever its own serializers do."""
    encodings = {field.name: field.shape.encoding for field in fields if not field.excluded}

    def values(model: pydantic.BaseModel) -> dict[str, object]:
        held = model.__dict__
        return {name: held[name] for name in encodings}

    return encoded_by(
        values,
        core_schema.typed_dict_schema(
            {name: core_schema.typed_dict_field(schema) for name, schema in encodings.items()}
        ),
    )


def encoded_by(encode: Callable[[Any], object], returns: CoreSchema) -> CoreSchema:
    """Write values through a function, which raises anything for a value that does not fit."""
    return core_schema.any_schema(
        serialization=core_schema.plain_serializer_function_ser_schema(
            encode, return_schema=returns, when_used="json-unless-none"
        )
    )
