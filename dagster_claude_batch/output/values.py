"""One value as JSON that DuckDB casts without loss.

A function that writes values raises anything for a value that its column cannot hold. A new
scalar type is a line in ``SCALARS``, and one in the table of the package's docstring.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import Enum
from math import isfinite
from typing import Any, cast
from uuid import UUID

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema, to_jsonable_python

from dagster_claude_batch.output.columns import Shape, encoded_by


def _plain(type_: str, schema: CoreSchema) -> Shape:
    return Shape(type_, type_, core_schema.nullable_schema(schema))


def encoded(type_: str, encode: Callable[[Any], object], returns: CoreSchema) -> Shape:
    """Shape a scalar that a function writes."""
    return Shape(type_, type_, encoded_by(encode, returns))


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


def choice_value(value: object) -> object:
    """Return the value of an enum's member; other choices are values themselves."""
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


JSON = encoded("JSON", _as_json, core_schema.any_schema())
_INSTANT = encoded("TIMESTAMPTZ", _instant, core_schema.str_schema())
_DAY = encoded("DATE", _day, core_schema.str_schema())
SCALARS: dict[object, Shape] = {
    str: _plain("VARCHAR", core_schema.str_schema()),
    bool: _plain("BOOLEAN", core_schema.bool_schema()),
    int: encoded("BIGINT", _bigint, core_schema.int_schema()),
    float: encoded("DOUBLE", _finite, core_schema.float_schema()),
    UUID: _plain("UUID", core_schema.uuid_schema()),
    datetime: _INSTANT,
    pydantic.AwareDatetime: _INSTANT,
    pydantic.PastDatetime: _INSTANT,
    pydantic.FutureDatetime: _INSTANT,
    pydantic.NaiveDatetime: encoded("TIMESTAMP", _local_time, core_schema.str_schema()),
    date: _DAY,
    pydantic.PastDate: _DAY,
    pydantic.FutureDate: _DAY,
    time: encoded("TIME", _wall_clock, core_schema.str_schema()),
    timedelta: encoded("INTERVAL", _interval, core_schema.str_schema()),
}
COLLECTIONS: dict[object, Callable[[Iterable[Any]], list[Any]]] = {
    list: list,
    tuple: list,
    Sequence: list,
    set: _sorted,
    frozenset: _sorted,
}


def decimal(metadata: Sequence[object]) -> Shape:
    """Shape a Decimal after its constraints; digits that do not fit are refused, not rounded."""
    digits, places = _limit(metadata, "max_digits"), _limit(metadata, "decimal_places")
    scale = min(9 if places is None else places, 38)
    precision = 38 if digits is None or places is None else min(max(digits, scale), 38)
    bound = Decimal(10) ** (precision - scale)
    step = Decimal(1).scaleb(-scale)

    def exact(value: Decimal) -> str:
        if not value.copy_abs() < bound:
            raise ValueError(value)
        return format(value.quantize(step, context=_EXACTLY), "f")

    return encoded(f"DECIMAL({precision}, {scale})", exact, core_schema.str_schema())


def _limit(metadata: Iterable[object], name: str) -> int | None:
    for item in metadata:
        nested = item.metadata if isinstance(item, FieldInfo) else [item]
        for constraint in nested:
            if (limit := getattr(constraint, name, None)) is not None:
                return cast("int", limit)
    return None


_EXACTLY = Context(prec=38, traps=[Inexact, InvalidOperation])
