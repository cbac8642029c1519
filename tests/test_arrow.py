"""Columns made without `pyarrow.array`: what that would have made, but for the import of pandas."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_claude_batch.arrow import column_of, rows_as

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@pytest.mark.parametrize(
    ("kind", "values"),
    [(pa.int32(), INT32), (pa.int64(), INT64), (pa.string(), TEXTS)],
    ids=str,
)
@given(data=st.data())
def test_a_column_is_what_pyarrow_would_make_of_it(
    kind: pa.DataType, values: st.SearchStrategy[object], data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(st.none() | values, max_size=20))

    made = column_of(drawn, kind)

    made.validate(full=True)
    assert made.equals(pa.array(drawn, kind))


def test_texts_may_be_bytes_already() -> None:
    assert column_of([b"\xc3\xa4", None, b""], pa.string()).to_pylist() == ["ä", None, ""]


def test_rows_become_the_columns_of_a_schema() -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.string()), ("c", pa.int64())])

    made = rows_as(schema, [(1, "x", None), (None, None, 2**40)])

    assert made.schema == schema
    assert made.to_pylist() == [{"a": 1, "b": "x", "c": None}, {"a": None, "b": None, "c": 2**40}]
