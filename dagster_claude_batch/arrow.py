"""Columns of Arrow: the little that we ask of them, typed where pyarrow's stubs leave it open."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc


def values_of(batch: pa.RecordBatch, column: int) -> list[Any]:
    """A column's values as Python objects."""
    return cast("list[Any]", batch.column(column).to_pylist())  # pyright: ignore[reportUnknownMemberType]


def columns_of(batch: pa.RecordBatch) -> list[list[Any]]:
    """All columns' values as Python objects."""
    return [values_of(batch, number) for number in range(batch.num_columns)]


def texts_of(batch: pa.RecordBatch, column: int) -> pa.StringArray:
    """A column of strings, whatever the size of their offsets."""
    return cast("pa.StringArray", batch.column(column).cast(pa.string()))  # pyright: ignore[reportUnknownMemberType]


def recast(columns: Mapping[str, "pa.Array[Any]"], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """A record batch of a schema: the columns that there are in its types, and NULL for others."""
    nothing = pa.nulls(rows)
    kinds = [(name, schema.field(name).type) for name in schema.names]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    arrays = [columns.get(name, nothing).cast(kind) for name, kind in kinds]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportUnknownArgumentType]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def mask_of(batch: pa.RecordBatch, column: int) -> pa.BooleanArray:
    """A column of truth values, none of which is NULL."""
    return cast("pa.BooleanArray", batch.column(column))


def utf8_where(texts: pa.StringArray, mask: pa.BooleanArray) -> list[bytes]:
    """Some of the texts in UTF-8; none of them is NULL."""
    return cast("list[bytes]", texts.filter(mask).cast(pa.binary()).to_pylist())  # pyright: ignore[reportUnknownMemberType]


def only_where(texts: pa.StringArray, mask: pa.BooleanArray) -> pa.StringArray:
    """The texts where the mask is true, and NULL elsewhere."""
    return pc.if_else(mask, texts, pa.scalar(None, pa.string()))


def put_where(
    texts: pa.StringArray, mask: pa.BooleanArray, utf8: Sequence[bytes | None]
) -> pa.StringArray:
    """The texts with others where the mask is true: in their order, as many as there it is."""
    others = pa.array(utf8, pa.binary()).view(pa.string())
    return cast("pa.StringArray", pc.replace_with_mask(texts, mask, others))  # pyright: ignore[reportUnknownMemberType]


def are_both_valid(one: "pa.Array[Any]", other: "pa.Array[Any]") -> pa.BooleanArray:
    """Where neither has a NULL."""
    return pc.and_(one.is_valid(), other.is_valid())


def inverted(mask: pa.BooleanArray) -> pa.BooleanArray:
    """True where the mask is false."""
    return pc.invert(mask)
