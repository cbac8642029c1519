"""The JSON schema of a model, as declared and as sent.

As declared it is free of what a class's name or a library's version adds, so it can be hashed;
as sent it is the SDK's form of that, within the API's limits.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pydantic
from anthropic import transform_schema
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from dagster_claude_batch.output.place import Place

MAX_OPTIONAL_FIELDS = 24
MAX_UNIONS = 16
MAX_EXACT_DIGITS = 15  # as many decimal digits survive a JSON number, which is a double


class _DeclaredSchema(GenerateJsonSchema):
    """Pydantic's JSON schema without the noise that Claude would pay for."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - Pydantic's signature
        return False

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> dict[str, Any]:
        """Ask for no offset where none is allowed; the API's `date-time` has one."""
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "format": "date-time without offset"}
        return super().datetime_schema(schema)

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        """Ask for a number alone where a JSON number holds every digit."""
        number = super().decimal_schema(schema)["anyOf"][0]
        if (places := schema.get("decimal_places")) is not None:
            number.setdefault("multipleOf", float(Decimal(1).scaleb(-places)))
        if schema.get("max_digits", 38) <= MAX_EXACT_DIGITS:
            return number
        return {"anyOf": [number, {"type": "string"}]}


def declared_schema(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    """Return a model's schema, the same whatever its classes are called."""
    schema = model.model_json_schema(schema_generator=_DeclaredSchema)
    return _resolved(_untitled(schema), schema.get("$defs", {}))


def _untitled(definition: dict[str, Any]) -> dict[str, Any]:
    """Leave out the title of a class, which is only its name."""
    return {keyword: value for keyword, value in definition.items() if keyword != "title"}


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Put definitions in place of references and keywords in one order."""
    if "$ref" in schema:
        schema = _untitled(definitions[schema["$ref"].removeprefix("#/$defs/")]) | schema
    return {
        keyword: _resolved_keyword(keyword, schema[keyword], definitions)
        for keyword in sorted(schema.keys() - _IMPLIED_KEYWORDS)
    }


def _resolved_keyword(keyword: str, value: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    match keyword:
        case "properties":
            return {name: _resolved(part, definitions) for name, part in value.items()}
        case "items":
            return _resolved(value, definitions)
        case "anyOf" | "oneOf" | "allOf":
            return [_resolved(part, definitions) for part in value]
        case "required":
            return sorted(value)
        case _:
            return value


_IMPLIED_KEYWORDS = {"$ref", "$defs", "additionalProperties", "discriminator"}


def sent_schema(declared: dict[str, Any], place: Place) -> dict[str, Any]:
    """Return the SDK's form of a declared schema.

    Raises:
        UnsupportedOutputError: It has no such form, or more than the API takes.
    """
    try:
        schema = transform_schema(declared)
    except ValueError as error:
        raise place.refusal(f"has no schema for the API: {error}", "Use simpler types.") from error
    parts = list(_subschemas(schema))
    _refuse_more_than(
        MAX_OPTIONAL_FIELDS, sum(map(_optional_fields, parts)), "optional fields", place
    )
    _refuse_more_than(MAX_UNIONS, sum("anyOf" in part for part in parts), "unions", place)
    return schema


def _subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    items = [schema["items"]] if "items" in schema else []
    for part in [*schema.get("properties", {}).values(), *items, *schema.get("anyOf", ())]:
        yield from _subschemas(part)


def _optional_fields(schema: dict[str, Any]) -> int:
    return len(schema.get("properties", {}).keys() - set(schema.get("required", ())))


def _refuse_more_than(limit: int, count: int, what: str, place: Place) -> None:
    if count > limit:
        raise place.refusal(
            f"has {count} {what}, and the API takes {limit} (`X | None` is a union, a default "
            "makes a field optional, and nested models count each time they are used)",
            "Make fields required with one type each, or split the model over two assets.",
        )
