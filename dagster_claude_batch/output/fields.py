"""Read the fields of a model, and which type is stored in which shape.

Models hold types and types hold models, so both are read here, each inside the other. What
the API or DuckDB cannot hold is refused with the path to it. How single values are stored is
in ``values``.
"""

import types
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Literal, NewType, TypeGuard, Union, cast, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.output.columns import (
    Field,
    Shape,
    columns,
    encode_fields,
    encoded_by,
    structure,
)
from dagster_claude_batch.output.letter_case import (
    recase_choice,
    recase_each,
    recase_fields,
    recase_items,
)
from dagster_claude_batch.output.place import Place
from dagster_claude_batch.output.values import (
    COLLECTIONS,
    JSON,
    SCALARS,
    choice_value,
    decimal,
    encoded,
)


def checked_model(model: object, place: Place) -> type[pydantic.BaseModel]:
    """Return the model, or refuse what has no named fields."""
    if not _is_model(model):
        raise place.refusal(
            f"is {model!r}, which has no named fields to make columns of",
            "Pass a subclass of `pydantic.BaseModel` (not a `RootModel`).",
        )
    return model


def _is_model(annotation: object) -> TypeGuard[type[pydantic.BaseModel]]:
    return (
        isinstance(annotation, type)
        and issubclass(annotation, pydantic.BaseModel)
        and not issubclass(annotation, pydantic.RootModel)
        and annotation is not pydantic.BaseModel
    )


def read_fields(model: type[pydantic.BaseModel], place: Place) -> list[Field]:
    """Read the fields of a model, those without a column among them.

    Raises:
        UnsupportedOutputError: The API or DuckDB cannot hold one of them, at any depth.
    """
    place = place.inside(model)
    _complete(model, place)
    if model.model_config.get("extra") == "allow":
        raise place.refusal(
            f'has extra="allow" (`{model.__name__}`), and the API never sends undeclared fields',
            "Declare the fields, or collect the rest in a list of models with name and value.",
        )
    fields = [_field(name, info, place.field(name)) for name, info in model.model_fields.items()]
    _refuse_unusable_names([field.name for field in fields if not field.excluded], model, place)
    return fields


def _complete(model: type[pydantic.BaseModel], place: Place) -> None:
    try:
        model.model_rebuild()
    except pydantic.errors.PydanticUndefinedAnnotation as error:
        raise place.refusal(
            f"refers to `{error.name}` (`{model.__name__}`), which is not defined",
            "Define it before the asset.",
        ) from error


def _refuse_unusable_names(names: list[str], model: type[pydantic.BaseModel], place: Place) -> None:
    if not names:
        raise place.refusal(f"has no field to store (`{model.__name__}`)", "Declare one.")
    seen: dict[str, str] = {}
    for name in names:
        if not name or "\0" in name:
            raise place.refusal(f"has a field named {name!r}", "Name the field, with an alias.")
        if other := seen.get(name.casefold()):
            raise place.refusal(
                f"has fields `{other}` and `{name}`, which are one column to DuckDB",
                "Rename one of them; an alias keeps the name that Claude sees.",
            )
        seen[name.casefold()] = name


def _field(name: str, info: FieldInfo, place: Place) -> Field:
    return Field(
        name=name,
        keys=frozenset({name, _alias(info, place) or name}),
        description=info.description,
        excluded=bool(info.exclude),
        shape=_shape(info.annotation, info.metadata, place),
    )


def _alias(info: FieldInfo, place: Place) -> str | None:
    """Return the one key that the schema names, if it is not the field's own name."""
    alias = info.validation_alias
    choices = alias.choices if isinstance(alias, pydantic.AliasChoices) else [alias]
    keys = [key for key in choices if not isinstance(key, pydantic.AliasPath)]
    if not keys:
        raise place.refusal(
            "has an alias that is a path, which a schema cannot ask for",
            "Nest a model, or give it a plain alias.",
        )
    return keys[0]


# --- types ---------------------------------------------------------------------------------


def _shape(annotation: object, metadata: Sequence[object], place: Place) -> Shape:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shape(arguments[0], [*metadata, *arguments[1:]], place)
    if origin is Literal:
        return _literal(arguments, place)
    if origin in (Union, types.UnionType):
        return _union(arguments, metadata, place)
    if origin in COLLECTIONS:
        return _collection(origin, arguments, place)
    if (named := _named_type(annotation)) is not None:
        return _shape(named, metadata, place.inside(annotation))
    return _class(annotation, metadata, place)


def _named_type(annotation: object) -> object:
    """Return what a NewType or a ``type`` statement stands for."""
    if isinstance(annotation, NewType):
        return annotation.__supertype__
    # No isinstance: before Python 3.14, typing_extensions has an alias type of its own.
    return None if isinstance(annotation, type) else getattr(annotation, "__value__", None)


def _class(annotation: object, metadata: Sequence[object], place: Place) -> Shape:
    if annotation in SCALARS:
        return SCALARS[annotation]
    if annotation is Decimal:
        return decimal(metadata)
    if _is_model(annotation):
        return _struct(read_fields(annotation, place))
    if _is_enum(annotation):
        return _choice([*annotation])
    if _is_text(annotation):
        return encoded("VARCHAR", str, core_schema.str_schema())
    raise place.refusal(*_why_not(annotation))


def _why_not(annotation: object) -> tuple[str, str]:
    """Return the problem with a type and the way out."""
    kind = get_origin(annotation) or annotation
    if kind in (Any, object):
        return "can be anything", "Say which type it has; a union becomes a JSON column."
    if kind in (dict, Mapping, MutableMapping):
        return (
            "is a dict, and the API answers every dict with {}",
            "Declare a model, or a list of models with a key and a value.",
        )
    if kind is bytes:
        return "is bytes, which JSON does not have", "Use `str`."
    name = getattr(annotation, "__name__", repr(annotation))
    return f"is of type `{name}`, for which there is no column", "Use a type that the docs list."


def _is_enum(annotation: object) -> TypeGuard[type[Enum]]:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _is_text(annotation: object) -> bool:
    """Tell whether Claude writes this type as a string that is worth reading."""
    try:
        schema = pydantic.TypeAdapter(cast("type", annotation)).json_schema()
    except pydantic.errors.PydanticUserError:
        return False
    return schema.get("type") == "string" and schema.get("format") not in _UNREADABLE_FORMATS


_UNREADABLE_FORMATS = {"binary", "base64", "base64url", "password", "regex", "json-string"}


def _struct(fields: Sequence[Field]) -> Shape:
    parts = ", ".join(f"{quote_identifier(c.name)} {c.type}" for c in columns(fields))
    return Shape(
        f"STRUCT({parts})", structure(fields), encode_fields(fields), recase_fields(fields)
    )


def _collection(origin: object, arguments: Sequence[object], place: Place) -> Shape:
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):  # noqa: PLR2004 - (X, ...)
        raise place.refusal(
            "is a tuple of fixed length, which the API cannot enforce",
            "Declare a model with a field for each place.",
        )
    item = _shape(arguments[0], (), place.item())
    return Shape(
        f"{item.type}[]",
        [item.structure],
        encoded_by(COLLECTIONS[origin], core_schema.list_schema(item.encoding)),
        recase_items(item.recase),
    )


def _union(members: Sequence[object], metadata: Sequence[object], place: Place) -> Shape:
    shapes = [_shape(member, metadata, place) for member in members if member is not NoneType]
    recase = recase_each(shapes)
    if all(shape.encoding == shapes[0].encoding for shape in shapes):
        return replace(shapes[0], recase=recase)
    return replace(JSON, recase=recase)


def _literal(values: Sequence[object], place: Place) -> Shape:
    if any(isinstance(value, Enum) and not isinstance(value, str | int) for value in values):
        raise place.refusal(
            "is a Literal of enum members, which Pydantic does not recognize in JSON",
            "Write the members' values, use the enum, or derive it from `str` too.",
        )
    return _choice(values)


def _choice(values: Sequence[object]) -> Shape:
    """Shape a Literal or an Enum after its values."""
    plain = [value.value if isinstance(value, Enum) else value for value in values]
    kinds: set[object] = {value.__class__ for value in plain if value is not None}
    shape = SCALARS.get(kinds.pop(), JSON) if len(kinds) == 1 else JSON
    encoding = encoded_by(choice_value, shape.encoding) if plain != [*values] else shape.encoding
    return replace(shape, encoding=encoding, recase=recase_choice(plain))
