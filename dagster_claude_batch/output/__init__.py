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

from dagster_claude_batch.output.columns import OutputColumn
from dagster_claude_batch.output.output import Output
from dagster_claude_batch.output.schema import MAX_OPTIONAL_FIELDS, MAX_UNIONS

__all__ = ["MAX_OPTIONAL_FIELDS", "MAX_UNIONS", "Output", "OutputColumn"]
