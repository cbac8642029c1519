"""Columns of Arrow: the little that we ask of them, typed where pyarrow's stubs leave it open."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from io import IOBase


def column_of(values: Sequence[Any], kind: pa.DataType) -> "pa.Array[Any]":
    """A column of integers of 32 or 64 bits, or of strings, which may be bytes in UTF-8; or None.

    `pyarrow.array` would do as well, but imports pandas wherever that is installed, which takes
    longer than many a run has to work.
    """
    digits = "".join("0" if value is None else "1" for value in reversed(values))
    valid = int(digits or "0", base=2).to_bytes((len(values) + 7) // 8, "little")
    data = _of_strings(values) if pa.types.is_string(kind) else _of_integers(values, kind)
    buffers: list[pa.Buffer | None] = [pa.py_buffer(each) for each in (valid, *data)]
    return pa.Array.from_buffers(kind, len(values), buffers)


def _of_integers(values: Sequence[int | None], kind: pa.DataType) -> list[bytes]:
    return [array("i" if pa.types.is_int32(kind) else "q", [v or 0 for v in values]).tobytes()]


def _of_strings(values: Sequence[str | bytes | None]) -> list[bytes]:
    utf8 = [value.encode() if isinstance(value, str) else value or b"" for value in values]
    return [array("i", [0, *accumulate(map(len, utf8))]).tobytes(), b"".join(utf8)]


def rows_as(schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    """Rows as a record batch of a schema."""
    columns = zip(schema.names, zip(*rows, strict=True), strict=True)
    arrays = [column_of(values, kind_of(schema, name)) for name, values in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)  # pyright: ignore[reportUnknownMemberType]


def kind_of(schema: pa.Schema, name: str) -> pa.DataType:
    """The type of a column."""
    return cast("pa.DataType", schema.field(name).type)  # pyright: ignore[reportUnknownMemberType]


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
    arrays = [columns.get(name, nothing).cast(kind_of(schema, name)) for name in schema.names]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def mask_of(batch: pa.RecordBatch, column: int) -> pa.BooleanArray:
    """A column of truth values, none of which is NULL."""
    return cast("pa.BooleanArray", batch.column(column))


def utf8_where(texts: pa.StringArray, mask: pa.BooleanArray) -> list[bytes]:
    """Some of the texts in UTF-8; none of them is NULL."""
    return cast("list[bytes]", texts.filter(mask).cast(pa.binary()).to_pylist())  # pyright: ignore[reportUnknownMemberType]


def only_where(texts: pa.StringArray, mask: pa.BooleanArray) -> pa.StringArray:
    """The texts where the mask is true, and NULL elsewhere."""
    return pc.if_else(mask, texts, pa.nulls(len(texts), pa.string()))


def put_where(
    texts: pa.StringArray, mask: pa.BooleanArray, utf8: Sequence[bytes | None]
) -> pa.StringArray:
    """The texts with others where the mask is true: in their order, as many as there it is."""
    others = column_of(utf8, pa.string())
    return cast("pa.StringArray", pc.replace_with_mask(texts, mask, others))  # pyright: ignore[reportUnknownMemberType]


def are_both_valid(one: "pa.Array[Any]", other: "pa.Array[Any]") -> pa.BooleanArray:
    """Where neither has a NULL."""
    return pc.and_(one.is_valid(), other.is_valid())


def inverted(mask: pa.BooleanArray) -> pa.BooleanArray:
    """True where the mask is false."""
    return pc.invert(mask)


def without_null(table: pa.Table, column: str) -> pa.Table:
    """The rows of which a column is not NULL."""
    return table.filter(table.column(column).is_valid())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def with_number(batch: pa.RecordBatch, name: str, number: int) -> pa.RecordBatch:
    """A record batch behind a column that is the same number in all rows."""
    column = column_of([number] * batch.num_rows, pa.int64())
    return batch.add_column(0, name, column)  # pyright: ignore[reportUnknownMemberType]


def with_column(batch: pa.RecordBatch, name: str, texts: Sequence[str | None]) -> pa.RecordBatch:
    """A record batch with other strings in one of its columns."""
    place = batch.schema.get_field_index(name)
    return batch.set_column(place, name, column_of(texts, pa.string()))  # pyright: ignore[reportUnknownMemberType]


def ints_of(batch: pa.RecordBatch, column: int) -> pa.Int32Array:
    """A column of 32-bit integers."""
    return cast("pa.Int32Array", batch.column(column))


def write_stream(file: IO[bytes], table: pa.Table) -> None:
    """Write a table as a stream of Arrow's own format."""
    with pa.ipc.new_stream(cast("IOBase", file), table.schema) as stream:
        stream.write_table(table)  # pyright: ignore[reportUnknownMemberType]


def read_stream(file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    """Read the record batches of such a stream, one at a time."""
    file.seek(0)
    with pa.ipc.open_stream(cast("IOBase", file)) as stream:
        yield from stream
