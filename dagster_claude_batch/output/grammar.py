"""Answers that DuckDB tells to be valid by itself: a model as a regular expression.

Nearly all answers are spelt exactly as the schema asks, with each field in its place. Where a model
has only fields whose spellings a regular expression can list, a match proves all that Pydantic
would look for, and the columns' JSON is the answer as it stands. What does not match may still be
valid, and goes to the model itself.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import pydantic

from dagster_claude_batch.identifiers import quote_identifier

if TYPE_CHECKING:
    from enum import Enum


@dataclass(frozen=True)
class Grammar:
    """Which texts are answers without a doubt, as DuckDB is asked for it.

    ``pattern`` is for the whole text, as RE2 reads it. ``bounds`` are what the numbers and lengths
    in it have to keep to besides: conditions on ``answer``, which `json_transform` makes of the
    text with ``structure``.
    """

    pattern: str
    bounds: tuple[str, ...] = ()
    structure: str = "{}"

    def sql(self, text: str) -> str:
        """Write the question whether ``text`` is such an answer: true, or false or NULL."""
        matches = f"regexp_full_match({text}, {_literal(self.pattern)})"
        if not self.bounds:
            return matches
        read = f"[json_transform({text}, {_literal(self.structure)})]"
        keeps = " AND ".join(f"coalesce({bound}, true)" for bound in self.bounds)
        # In a lambda the text is read once, whatever number of bounds there is.
        return f"CASE WHEN {matches} THEN list_transform({read}, lambda answer: {keeps})[1] END"


def grammar_of(model: type[pydantic.BaseModel], structure: Mapping[str, object]) -> Grammar | None:
    """Read the grammar off a model's own validator; None if a match could not prove enough.

    ``structure`` is what is read of an answer into its columns. What a validator's schema holds
    that is not known here is one reason for None, for it may refuse or change a value.
    """
    schema = cast("dict[str, Any]", model.__pydantic_core_schema__)
    reader = _Reader()
    try:
        spelling = reader.spelling(schema, _ANSWER)
    except _NotRegularError:
        return None
    if spelling.structure != structure or len(spelling.pattern) > _LONGEST:
        return None
    bounded = {name: structure[name] for name in structure if name in reader.bounded}
    return Grammar(
        f"{_SPACE}{spelling.pattern}{_SPACE}",
        tuple(reader.bounds),
        json.dumps(bounded, ensure_ascii=False),
    )


_LONGEST: Final = 20_000
"""Characters of a pattern: RE2 takes several times this."""

_SPACE: Final = r"[ \t\n\r]*"
_TEXT: Final = (
    r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]'
    r'|\\u(?:[0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))*"'
)
"""A string, but for those with halves of surrogate pairs, which may be broken."""

_INTEGER: Final = r"(?:0|-?[1-9][0-9]{0,17})"
_NUMBER: Final = (
    r"(?:0|-?[1-9][0-9]{0,14}|-?(?:0|[1-9][0-9]{0,14})\.[0-9]{1,20}(?:[eE][+-]?[0-9]{1,2})?)"
)
_TRUTH: Final = "(?:true|false)"


class _NotRegularError(Exception):
    """More would have to be known of a value than how it is spelt."""


@dataclass(frozen=True)
class _Spelling:
    """How a value is spelt, and as what it is read."""

    pattern: str
    structure: object


@dataclass(frozen=True)
class _Place:
    """Where a value is, as SQL, and in which field of the answer; None where it is one of many."""

    path: str | None = None
    column: str | None = None

    def field(self, name: str) -> "_Place":
        if self.path is None:
            return self
        return _Place(f"{self.path}.{quote_identifier(name)}", self.column or name)


_ANSWER: Final = _Place("answer")
_IN_A_LIST: Final = _Place()


@dataclass
class _Reader:
    """Goes through the schema of one validator."""

    bounds: list[str] = field(default_factory=list[str])
    bounded: set[str] = field(default_factory=set[str])
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def spelling(self, schema: dict[str, Any], place: _Place) -> _Spelling:
        """Tell how the values of a schema are spelt.

        Raises:
            _NotRegularError: It holds anything that is not known here.
        """
        known = _KNOWN.get(schema["type"])
        if known is None or not schema.keys() <= known.keys | _MEANINGLESS:
            raise _NotRegularError
        return known.read(self, schema, place)

    def keep(self, place: _Place, value: str, schema: Mapping[str, Any], bounds: str) -> None:
        """Note which bounds a value has.

        ``value`` is SQL for what is compared, with the value's path in place of ``{}``.
        """
        for bound in bounds.split():
            if (limit := schema.get(bound)) is None:
                continue
            if place.path is None or place.column is None:
                raise _NotRegularError
            self.bounded.add(place.column)
            compared = value.format(place.path)
            self.bounds.append(f"{compared} {_COMPARISONS[bound]} {_number(limit)}")


_COMPARISONS: Final = {
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "min_length": ">=",
    "max_length": "<=",
}


def _number(limit: object) -> str:
    """A bound as SQL, where both sides compare alike."""
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
        raise _NotRegularError
    if isinstance(limit, int) and -_SAFE < limit < _SAFE:
        return f"{limit:d}"
    if isinstance(limit, float):
        return f"CAST('{limit!r}' AS DOUBLE)"
    raise _NotRegularError


_SAFE: Final = 2**53
"""Integers up to here are the same number as a DOUBLE."""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# --- one type after the other ---------------------------------------------------------------


def _model(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    is_plain = not schema.get("custom_init") and not schema.get("root_model")
    if not is_plain or not schema.get("config", {}).keys() <= _KNOWN_CONFIG:
        raise _NotRegularError
    return reader.spelling(schema["schema"], place)


_KNOWN_CONFIG: Final = {
    "title",
    "extra_fields_behavior",
    "frozen",
    "hide_input_in_errors",
    "validate_default",
    "validation_error_cause",
}
"""What does not change how a value is read: strings may be stripped by others, say."""


def _fields(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    parts: list[str] = []
    structure: dict[str, object] = {}
    for name, inner in schema["fields"].items():
        spelling = reader.spelling(inner, place.field(name))
        parts.append(f"{_SPACE}{_spelt(name)}{_SPACE}:{_SPACE}{spelling.pattern}{_SPACE}")
        structure[name] = spelling.structure
    return _Spelling(r"\{" + ",".join(parts) + r"\}", structure)


def _inner(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    return reader.spelling(schema["schema"], place)


def _nullable(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    spelling = reader.spelling(schema["schema"], place)
    return _Spelling(f"(?:null|{spelling.pattern})", spelling.structure)


def _definitions(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    reader.definitions |= {each["ref"]: each for each in schema["definitions"]}
    return reader.spelling(schema["schema"], place)


def _reference(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    return reader.spelling(reader.definitions[schema["schema_ref"]], place)


def _list(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    if "items_schema" not in schema:
        raise _NotRegularError
    reader.keep(place, "len({})", schema, "min_length max_length")
    item = reader.spelling(schema["items_schema"], _IN_A_LIST)
    one = f"{_SPACE}{item.pattern}{_SPACE}"
    return _Spelling(rf"\[(?:{_SPACE}|{one}(?:,{one})*)\]", [item.structure])


def _string(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    reader.keep(place, "length({})", schema, "min_length max_length")
    return _Spelling(_TEXT, "VARCHAR")


def _integer(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    reader.keep(place, "{}", schema, "ge gt le lt")
    return _Spelling(_INTEGER, "BIGINT")


def _float(reader: _Reader, schema: dict[str, Any], place: _Place) -> _Spelling:
    reader.keep(place, "{}", schema, "ge gt le lt")
    return _Spelling(_NUMBER, "DOUBLE")


def _truth(_reader: _Reader, _schema: dict[str, Any], _place: _Place) -> _Spelling:
    return _Spelling(_TRUTH, "BOOLEAN")


def _one_of(_reader: _Reader, schema: dict[str, Any], _place: _Place) -> _Spelling:
    return _choice(schema["expected"])


def _enum(_reader: _Reader, schema: dict[str, Any], _place: _Place) -> _Spelling:
    members = cast("list[Enum]", schema["members"])
    return _choice([member.value for member in members])


def _choice(values: list[object]) -> _Spelling:
    texts = [value for value in values if type(value) is str]
    if len(texts) < len(values):
        raise _NotRegularError
    return _Spelling(f"(?:{'|'.join(map(_spelt, texts))})", "VARCHAR")


def _spelt(text: str) -> str:
    """One string, as JSON spells it at its shortest."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _NotRegularError from None
    return re.escape(json.dumps(text, ensure_ascii=False))


_Read = Callable[[_Reader, dict[str, Any], _Place], _Spelling]


@dataclass(frozen=True)
class _Known:
    """A type of schema: what reads it, and which of its settings that knows."""

    read: _Read
    keys: frozenset[str]


def _known(read: _Read, settings: str = "") -> _Known:
    return _Known(read, frozenset(settings.split()))


_MEANINGLESS: Final = {"type", "ref", "metadata", "serialization"}
"""Settings that change nothing about which values are taken."""

_KNOWN: Final[dict[str, _Known]] = {
    "model": _known(_model, "cls schema config custom_init root_model"),
    "model-fields": _known(_fields, "fields model_name computed_fields extra_behavior"),
    "model-field": _known(_inner, "schema frozen serialization_alias"),
    "default": _known(_inner, "schema default default_factory validate_default"),
    "nullable": _known(_nullable, "schema"),
    "definitions": _known(_definitions, "schema definitions"),
    "definition-ref": _known(_reference, "schema_ref"),
    "list": _known(_list, "items_schema min_length max_length"),
    "str": _known(_string, "min_length max_length"),
    "int": _known(_integer, "ge gt le lt"),
    "float": _known(_float, "ge gt le lt"),
    "bool": _known(_truth),
    "literal": _known(_one_of, "expected"),
    "enum": _known(_enum, "cls members sub_type missing"),
}
