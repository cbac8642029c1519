"""Pydantic model ↔ JSON schema ↔ DuckDB columns.

Each field of the model is a column, named like the field (Claude sees its alias), and
every column may be NULL:

==============================  =========================================================
``str``, strings with a format  ``VARCHAR``
``int``, ``float``, ``bool``    ``BIGINT``, ``DOUBLE`` (finite numbers only), ``BOOLEAN``
``Literal``, ``Enum``           the type of its values, whatever the letter case answered
``datetime``                    ``TIMESTAMPTZ``; an answer without offset is taken as UTC
``NaiveDatetime``               ``TIMESTAMP``
``date``, ``timedelta``         ``DATE``, ``INTERVAL``
``time``                        ``TIME``; an offset other than UTC is refused
``UUID``                        ``UUID``
``Decimal``                     ``DECIMAL(max_digits, decimal_places)``, else ``(38, 9)``
a nested model                  ``STRUCT``
``list``, ``set``, ``tuple``    a ``LIST``; sets are sorted
several types                   ``JSON``
==============================  =========================================================

A column holds the validated value: serializers and computed fields of the model are not
used, and a field with ``exclude=True`` is asked for but gets no column.
"""

import json
import types
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import Enum
from math import isfinite
from types import NoneType
from typing import Annotated, Any, Literal, NewType, TypeGuard, Union, cast, get_args, get_origin
from uuid import UUID

import pydantic
from anthropic import transform_schema
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import (
    CoreSchema,
    PydanticSerializationError,
    SchemaSerializer,
    core_schema,
    from_json,
    to_json,
    to_jsonable_python,
)

from dagster_claude_batch.errors import InvalidOutputError, UnsupportedOutputError
from dagster_claude_batch.identifiers import quote_identifier

MAX_OPTIONAL_FIELDS = 24
MAX_UNIONS = 16
MAX_EXACT_DIGITS = 15  # as many decimal digits survive a JSON number, which is a double

Recase = Callable[[object], object]


@dataclass(frozen=True)
class OutputColumn:
    """One column of the answers table; ``type`` is written as in SQL."""

    name: str
    type: str
    description: str | None = None


@dataclass(frozen=True)
class Output:
    """What is asked of Claude and where it goes.

    ``schema`` is what the API gets. ``declared_schema`` is what the user declared, for
    hashing: references resolved, titles made up by libraries left out, keywords sorted.
    The order of ``properties`` means something to Claude, so dump it without sorting keys.
    Both are None without a model. ``transform_structure`` is the structure with which
    DuckDB's ``json_transform_strict`` turns what `validate` returns into a STRUCT of the
    columns.
    """

    columns: tuple[OutputColumn, ...]
    schema: dict[str, Any] | None
    declared_schema: dict[str, Any] | None
    transform_structure: str
    _validate: Callable[[str], str] = field(repr=False, compare=False)

    @classmethod
    def from_model(cls, model: type[pydantic.BaseModel] | None, *, asset: str) -> "Output":
        """Read the columns off a model; without one, the answer's text is the one column.

        Raises:
            UnsupportedOutputError: The API or DuckDB cannot hold what the model declares.
        """
        if model is None:
            return _TEXT_OUTPUT
        place = _Place(asset)
        fields = _fields(_checked_model(model, place), place)
        declared = _declared_schema(model)
        return cls(
            columns=_columns(fields),
            schema=_sent_schema(declared, place),
            declared_schema=declared,
            transform_structure=json.dumps(_structure(fields), ensure_ascii=False),
            _validate=_Validator(model, fields),
        )

    def validate(self, text: str) -> str:
        """Check one answer and return its columns as one JSON object.

        DuckDB turns every returned text into the columns without an error or a loss. Of a
        duplicate key, the last value counts.

        Raises:
            InvalidOutputError: Not JSON, not what the model allows, or a value that its
                column cannot hold.
        """
        return self._validate(text)


# --- validating answers --------------------------------------------------------------------


def _text_as_columns(text: str) -> str:
    try:
        return to_json({"response": text}).decode()
    except PydanticSerializationError:
        raise InvalidOutputError(["`response`: the text is not valid Unicode"]) from None


_TEXT_OUTPUT = Output(
    columns=(OutputColumn("response", "VARCHAR"),),
    schema=None,
    declared_schema=None,
    transform_structure='{"response": "VARCHAR"}',
    _validate=_text_as_columns,
)


class _Validator:
    """Answer text to column JSON: the model's own validator, then the columns' serializer."""

    def __init__(self, model: type[pydantic.BaseModel], fields: "Sequence[_Field]") -> None:
        self._parse = pydantic.TypeAdapter(model).validator.validate_json
        self._recase = _recase_fields(fields)
        self._dump = SchemaSerializer(_encode_fields(fields)).to_json
        self._columns = [field for field in fields if not field.excluded]

    def __call__(self, text: str) -> str:
        answer = self._checked(_without_fence(text))
        try:
            return self._dump(answer, warnings="error").decode()
        except PydanticSerializationError:
            raise InvalidOutputError(self._unfit(answer)) from None

    def _checked(self, text: str) -> object:
        try:
            return self._parse(text)
        except pydantic.ValidationError as error:
            if self._recase is None or _is_not_json(error):
                raise InvalidOutputError(_problems(error)) from None
            return self._checked_in_any_case(text, self._recase)
        except Exception as error:  # a user's validator costs its row, not the batch
            raise _raised_by_model(error) from error

    def _checked_in_any_case(self, text: str, recase: Recase) -> object:
        try:
            return self._parse(to_json(recase(from_json(text))))
        except pydantic.ValidationError as error:
            raise InvalidOutputError(_problems(error)) from None
        except Exception as error:
            raise _raised_by_model(error) from error

    def _unfit(self, answer: object) -> list[str]:
        values = getattr(answer, "__dict__", {})
        return [
            f"`{field.name}`: the value cannot be stored as {field.shape.type}"
            for field in self._columns
            if field.name not in values or not _fits(field.shape, values[field.name])
        ]


def _without_fence(text: str) -> str:
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text.removeprefix("```json").strip("`")
    return text


def _is_not_json(error: pydantic.ValidationError) -> bool:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return not first["loc"] and first["type"] in {"json_invalid", "string_unicode"}


def _problems(error: pydantic.ValidationError) -> list[str]:
    return [
        f"`{_location(problem['loc'])}`: {problem['msg']}" if problem["loc"] else problem["msg"]
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _location(loc: Sequence[int | str]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def _raised_by_model(error: Exception) -> InvalidOutputError:
    return InvalidOutputError([f"the model's own validation raised {type(error).__name__}"])


def _fits(shape: "_Shape", value: object) -> bool:
    try:
        SchemaSerializer(shape.encoding).to_json(value, warnings="error")
    except PydanticSerializationError:
        return False
    return True


# --- fields and their columns --------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """How values of one type are stored: SQL type, structure for DuckDB, writing as JSON.

    ``recase`` corrects the letter case of what should be one of a few given strings.
    """

    type: str
    structure: object
    encoding: CoreSchema
    recase: Recase | None = None


@dataclass(frozen=True)
class _Field:
    name: str
    keys: frozenset[str]  # what an answer may call it: the alias, the name, or both
    description: str | None
    excluded: bool
    shape: _Shape


@dataclass(frozen=True)
class _Place:
    """Where in a model we are: for messages, and to notice a type inside itself."""

    asset: str
    path: str = ""
    enclosing: tuple[object, ...] = ()

    def field(self, name: str) -> "_Place":
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    def item(self) -> "_Place":
        return replace(self, path=f"{self.path}[]")

    def inside(self, kind: object) -> "_Place":
        if kind in self.enclosing:
            raise self.refusal(
                "contains itself, and the API has no recursive schemas",
                "Write the levels that you need as separate models.",
            )
        return replace(self, enclosing=(*self.enclosing, kind))

    def refusal(self, problem: str, cure: str) -> UnsupportedOutputError:
        return UnsupportedOutputError(self.asset, field=self.path, problem=problem, cure=cure)


def _checked_model(model: object, place: _Place) -> type[pydantic.BaseModel]:
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


def _is_enum(annotation: object) -> TypeGuard[type[Enum]]:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _fields(model: type[pydantic.BaseModel], place: _Place) -> list[_Field]:
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


def _complete(model: type[pydantic.BaseModel], place: _Place) -> None:
    try:
        model.model_rebuild()
    except pydantic.errors.PydanticUndefinedAnnotation as error:
        raise place.refusal(
            f"refers to `{error.name}` (`{model.__name__}`), which is not defined",
            "Define it before the asset.",
        ) from error


def _refuse_unusable_names(
    names: list[str], model: type[pydantic.BaseModel], place: _Place
) -> None:
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


def _field(name: str, info: FieldInfo, place: _Place) -> _Field:
    return _Field(
        name=name,
        keys=frozenset({name, _alias(info, place) or name}),
        description=info.description,
        excluded=bool(info.exclude),
        shape=_shape(info.annotation, info.metadata, place),
    )


def _alias(info: FieldInfo, place: _Place) -> str | None:
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


def _columns(fields: Sequence[_Field]) -> tuple[OutputColumn, ...]:
    return tuple(
        OutputColumn(field.name, field.shape.type, field.description)
        for field in fields
        if not field.excluded
    )


def _structure(fields: Sequence[_Field]) -> dict[str, object]:
    return {field.name: field.shape.structure for field in fields if not field.excluded}


def _encode_fields(fields: Sequence[_Field]) -> CoreSchema:
    encodings = {field.name: field.shape.encoding for field in fields if not field.excluded}

    def values(model: pydantic.BaseModel) -> dict[str, object]:
        held = model.__dict__
        return {name: held[name] for name in encodings}

    return _encoded_by(
        values,
        core_schema.typed_dict_schema(
            {name: core_schema.typed_dict_field(schema) for name, schema in encodings.items()}
        ),
    )


def _encoded_by(encode: Callable[[Any], object], returns: CoreSchema) -> CoreSchema:
    """Write values through a function, which raises anything for a value that does not fit."""
    return core_schema.any_schema(
        serialization=core_schema.plain_serializer_function_ser_schema(
            encode, return_schema=returns, when_used="json-unless-none"
        )
    )


# --- types ---------------------------------------------------------------------------------


def _shape(annotation: object, metadata: Sequence[object], place: _Place) -> _Shape:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shape(arguments[0], [*metadata, *arguments[1:]], place)
    if origin is Literal:
        return _literal(arguments, place)
    if origin in (Union, types.UnionType):
        return _union(arguments, metadata, place)
    if origin in _COLLECTIONS:
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


def _class(annotation: object, metadata: Sequence[object], place: _Place) -> _Shape:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if annotation is Decimal:
        return _decimal(metadata)
    if _is_model(annotation):
        return _struct(_fields(annotation, place))
    if _is_enum(annotation):
        return _choice([*annotation])
    if _is_text(annotation):
        return _encoded("VARCHAR", str, core_schema.str_schema())
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


def _plain(type_: str, schema: CoreSchema) -> _Shape:
    return _Shape(type_, type_, core_schema.nullable_schema(schema))


def _encoded(type_: str, encode: Callable[[Any], object], returns: CoreSchema) -> _Shape:
    return _Shape(type_, type_, _encoded_by(encode, returns))


def _is_text(annotation: object) -> bool:
    """Tell whether Claude writes this type as a string that is worth reading."""
    try:
        schema = pydantic.TypeAdapter(cast("type", annotation)).json_schema()
    except pydantic.errors.PydanticUserError:
        return False
    return schema.get("type") == "string" and schema.get("format") not in _UNREADABLE_FORMATS


def _struct(fields: Sequence[_Field]) -> _Shape:
    parts = ", ".join(f"{quote_identifier(c.name)} {c.type}" for c in _columns(fields))
    return _Shape(
        f"STRUCT({parts})", _structure(fields), _encode_fields(fields), _recase_fields(fields)
    )


def _collection(origin: object, arguments: Sequence[object], place: _Place) -> _Shape:
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):  # noqa: PLR2004 - (X, ...)
        raise place.refusal(
            "is a tuple of fixed length, which the API cannot enforce",
            "Declare a model with a field for each place.",
        )
    item = _shape(arguments[0], (), place.item())
    return _Shape(
        f"{item.type}[]",
        [item.structure],
        _encoded_by(_COLLECTIONS[origin], core_schema.list_schema(item.encoding)),
        _recase_items(item.recase),
    )


def _union(members: Sequence[object], metadata: Sequence[object], place: _Place) -> _Shape:
    shapes = [_shape(member, metadata, place) for member in members if member is not NoneType]
    recase = _recase_each(shapes)
    if all(shape.encoding == shapes[0].encoding for shape in shapes):
        return replace(shapes[0], recase=recase)
    return replace(_JSON, recase=recase)


def _literal(values: Sequence[object], place: _Place) -> _Shape:
    if any(isinstance(value, Enum) and not isinstance(value, str | int) for value in values):
        raise place.refusal(
            "is a Literal of enum members, which Pydantic does not recognize in JSON",
            "Write the members' values, use the enum, or derive it from `str` too.",
        )
    return _choice(values)


def _choice(values: Sequence[object]) -> _Shape:
    """Shape a Literal or an Enum after its values."""
    plain = [value.value if isinstance(value, Enum) else value for value in values]
    kinds: set[object] = {value.__class__ for value in plain if value is not None}
    shape = _SCALARS.get(kinds.pop(), _JSON) if len(kinds) == 1 else _JSON
    encoding = _encoded_by(_choice_value, shape.encoding) if plain != [*values] else shape.encoding
    return replace(shape, encoding=encoding, recase=_recase_choice(plain))


def _decimal(metadata: Sequence[object]) -> _Shape:
    digits, places = _limit(metadata, "max_digits"), _limit(metadata, "decimal_places")
    scale = min(9 if places is None else places, 38)
    precision = 38 if digits is None or places is None else min(max(digits, scale), 38)
    bound = Decimal(10) ** (precision - scale)
    step = Decimal(1).scaleb(-scale)

    def exact(value: Decimal) -> str:
        if not value.copy_abs() < bound:
            raise ValueError(value)
        return format(value.quantize(step, context=_EXACTLY), "f")

    return _encoded(f"DECIMAL({precision}, {scale})", exact, core_schema.str_schema())


def _limit(metadata: Iterable[object], name: str) -> int | None:
    for item in metadata:
        nested = item.metadata if isinstance(item, FieldInfo) else [item]
        for constraint in nested:
            if (limit := getattr(constraint, name, None)) is not None:
                return cast("int", limit)
    return None


_EXACTLY = Context(prec=38, traps=[Inexact, InvalidOperation])


# --- one value as JSON that DuckDB casts without loss --------------------------------------


def _bigint(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError(value)
    return +value  # a bool becomes a number


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(value)
    return float(value)


def _instant(value: datetime) -> str:
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC).isoformat()
    return value.astimezone(UTC).isoformat()


def _local_time(value: datetime) -> str:
    if value.tzinfo is not None:
        raise ValueError(value)
    return value.isoformat()


def _day(value: date) -> str:
    if isinstance(value, datetime):
        raise TypeError(value)
    return value.isoformat()


def _wall_clock(value: time) -> str:
    """Drop a zero offset: the API's own format for a time demands one."""
    if value.utcoffset():
        raise ValueError(value)
    return value.replace(tzinfo=None).isoformat()


def _interval(value: timedelta) -> str:
    """Spell a duration for DuckDB, which does not read ISO 8601's."""
    minutes, seconds = divmod(value.seconds, 60)
    clock = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}.{value.microseconds:06}"
    return f"{value.days} days {clock}"


def _choice_value(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _as_json(value: object) -> object:
    plain = to_jsonable_python(value, by_alias=False)
    json.dumps(plain, allow_nan=False)  # raises for what JSON does not have
    return plain


def _sorted(values: Iterable[Any]) -> list[Any]:
    """Order a set, so that one answer always gives one text."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


_JSON = _encoded("JSON", _as_json, core_schema.any_schema())
_INSTANT = _encoded("TIMESTAMPTZ", _instant, core_schema.str_schema())
_DAY = _encoded("DATE", _day, core_schema.str_schema())
_SCALARS: dict[object, _Shape] = {
    str: _plain("VARCHAR", core_schema.str_schema()),
    bool: _plain("BOOLEAN", core_schema.bool_schema()),
    int: _encoded("BIGINT", _bigint, core_schema.int_schema()),
    float: _encoded("DOUBLE", _finite, core_schema.float_schema()),
    UUID: _plain("UUID", core_schema.uuid_schema()),
    datetime: _INSTANT,
    pydantic.AwareDatetime: _INSTANT,
    pydantic.PastDatetime: _INSTANT,
    pydantic.FutureDatetime: _INSTANT,
    pydantic.NaiveDatetime: _encoded("TIMESTAMP", _local_time, core_schema.str_schema()),
    date: _DAY,
    pydantic.PastDate: _DAY,
    pydantic.FutureDate: _DAY,
    time: _encoded("TIME", _wall_clock, core_schema.str_schema()),
    timedelta: _encoded("INTERVAL", _interval, core_schema.str_schema()),
}
_COLLECTIONS: dict[object, Callable[[Iterable[Any]], list[Any]]] = {
    list: list,
    tuple: list,
    Sequence: list,
    set: _sorted,
    frozenset: _sorted,
}
_UNREADABLE_FORMATS = {"binary", "base64", "base64url", "password", "regex", "json-string"}


# --- letter case, which the API does not enforce -------------------------------------------


def _recase_choice(values: Sequence[object]) -> Recase | None:
    texts = [value for value in values if isinstance(value, str)]
    spelling = {text.casefold(): text for text in texts}
    if not texts or len(spelling) < len(texts):
        return None  # values that differ in case alone cannot be told apart

    def recase(value: object) -> object:
        return spelling.get(value.casefold(), value) if isinstance(value, str) else value

    return recase


def _recase_items(recase: Recase | None) -> Recase | None:
    if recase is None:
        return None

    def recase_all(value: object) -> object:
        return (
            [recase(item) for item in cast("list[object]", value)]
            if isinstance(value, list)
            else value
        )

    return recase_all


def _recase_fields(fields: Sequence[_Field]) -> Recase | None:
    by_key = {key: field.shape.recase for field in fields for key in field.keys}
    if not any(by_key.values()):
        return None

    def recase(value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            key: correct(item) if (correct := by_key.get(key)) else item
            for key, item in cast("dict[str, object]", value).items()
        }

    return recase


def _recase_each(shapes: Sequence[_Shape]) -> Recase | None:
    """Correct for every member of a union in turn, unless any string is a member."""
    corrections = [shape.recase for shape in shapes if shape.recase]
    if not corrections or any(shape == _SCALARS[str] for shape in shapes):
        return None

    def recase(value: object) -> object:
        for correct in corrections:
            value = correct(value)
        return value

    return recase


# --- the schema, as declared and as sent ---------------------------------------------------


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


def _declared_schema(model: type[pydantic.BaseModel]) -> dict[str, Any]:
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


def _sent_schema(declared: dict[str, Any], place: _Place) -> dict[str, Any]:
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


def _refuse_more_than(limit: int, count: int, what: str, place: _Place) -> None:
    if count > limit:
        raise place.refusal(
            f"has {count} {what}, and the API takes {limit} (`X | None` is a union, a default "
            "makes a field optional, and nested models count each time they are used)",
            "Make fields required with one type each, or split the model over two assets.",
        )
