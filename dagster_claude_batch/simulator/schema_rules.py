"""Which JSON schemas structured output accepts: the subset that the API can enforce."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagster_claude_batch.simulator.json_values import is_array, is_object

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_OPTIONAL = 24
MAX_UNIONS = 16

_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_ANYWHERE = frozenset(
    {
        *("$defs", "$ref", "$schema", "allOf", "anyOf", "const", "default", "definitions"),
        *("description", "enum", "examples", "title", "type"),
    }
)
_BY_TYPE = {
    "object": frozenset({"additionalProperties", "properties", "required"}),
    "array": frozenset({"items", "minItems"}),
    "string": frozenset({"format", "pattern"}),
}
_FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "email"),
        *("hostname", "uri", "ipv4", "ipv6", "uuid"),
    }
)


def problem_with_schema(schema: dict[str, Any]) -> str | None:
    """Say why the API would refuse a schema; nothing if it would not."""
    return (
        next(_problems(schema, schema, ()), None)
        or _too_many(_optional(schema), MAX_OPTIONAL, "optional parameters")
        or _too_many(_unions(schema), MAX_UNIONS, "parameters with union types")
    )


def resolve(reference: object, root: dict[str, Any]) -> dict[str, Any] | None:
    """Find what a ``$ref`` within the schema stands for."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    target: object = root
    for step in reference[1:].split("/")[1:]:
        target = target.get(step) if is_object(target) else None
    return target if is_object(target) else None


def _too_many(count: int, limit: int, what: str) -> str | None:
    if count <= limit:
        return None
    return f"Schemas contains too many {what} ({count}), which is more than the limit of {limit}"


def _problems(schema: object, root: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Find each problem of a schema; ``path`` holds the references followed on the way to it."""
    if not is_object(schema):
        yield "Schemas must be objects"
        return
    yield from _problems_of_reference(schema, root, path)
    yield from _problems_here(schema)
    for child in _children(schema):
        yield from _problems(child, root, path)
    if not path:
        for definition in _definitions(schema):
            yield from _problems(definition, root, path)


def _problems_of_reference(
    schema: dict[str, Any], root: dict[str, Any], path: tuple[str, ...]
) -> Iterator[str]:
    reference = schema.get("$ref")
    if reference is None:
        return
    target = resolve(reference, root)
    if target is None:
        yield f"$ref {reference!r} does not point into the schema"
    elif reference in path:
        yield f"Circular reference detected in schema definitions: {reference}"
    else:
        yield from _problems(target, root, (*path, reference))


def _problems_here(schema: dict[str, Any]) -> Iterator[str]:
    types = _types(schema)
    for kind in types:
        if kind not in _TYPES:
            yield f"type: {kind!r} is not supported"
    if not types and not schema.keys() & {"$ref", "allOf", "anyOf", "const", "enum"}:
        yield "Schema type is required: 'type', 'anyOf', 'allOf', 'enum', 'const' or '$ref'"
    allowed = _ANYWHERE.union(*(_BY_TYPE.get(kind, frozenset()) for kind in types))
    for keyword in schema.keys() - allowed:
        yield f"For '{'/'.join(types)}' type, property '{keyword}' is not supported"
    yield from _problems_with_values(schema, types)


def _problems_with_values(schema: dict[str, Any], types: list[str]) -> Iterator[str]:
    if "object" in types and schema.get("additionalProperties") is not False:
        yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if schema.get("minItems", 0) not in (0, 1):
        yield "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if schema.get("format", "date") not in _FORMATS:
        yield f"For 'string' type, format '{schema['format']}' is not supported"
    values = schema.get("enum", [0])
    if not is_array(values) or not values or any(isinstance(each, dict | list) for each in values):
        yield "'enum' must be a list of strings, numbers, booleans or nulls"


def _types(schema: dict[str, Any]) -> list[str]:
    kind = schema.get("type", [])
    return [str(each) for each in kind] if is_array(kind) else [str(kind)]


def _children(schema: dict[str, Any]) -> Iterator[object]:
    properties = schema.get("properties")
    if is_object(properties):
        yield from properties.values()
    if "items" in schema:
        yield schema["items"]
    for keyword in ("anyOf", "allOf"):
        yield from schema.get(keyword, ())


def _definitions(schema: dict[str, Any]) -> Iterator[object]:
    for keyword in ("$defs", "definitions"):
        yield from schema.get(keyword, {}).values()


def _everything(schema: object) -> Iterator[dict[str, Any]]:
    """Walk through the schema and all that stands in it, each definition once."""
    if is_object(schema):
        yield schema
        for child in (*_children(schema), *_definitions(schema)):
            yield from _everything(child)


def _optional(schema: dict[str, Any]) -> int:
    return sum(
        len(each.get("properties", {}).keys() - set(each.get("required", ())))
        for each in _everything(schema)
    )


def _unions(schema: dict[str, Any]) -> int:
    return sum("anyOf" in each or is_array(each.get("type")) for each in _everything(schema))
