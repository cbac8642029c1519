"""The answers and failures tables: their names, columns and growth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dagster_claude_batch.cost import USD_TYPE
from dagster_claude_batch.errors import ColumnTypeChangedError
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.warehouse import Connection, rows

USAGE_COLUMNS: Final = {
    "_input_tokens": "BIGINT",
    "_output_tokens": "BIGINT",
    "_cache_read_tokens": "BIGINT",
    "_cache_write_tokens": "BIGINT",
    "_cost_usd": USD_TYPE,
}
"""A row's share over all its attempts in a materialization."""

ANSWER_COLUMNS: Final = {
    "_partition": "VARCHAR",
    "_model": "VARCHAR",
    "_stop_reason": "VARCHAR",
    **USAGE_COLUMNS,
    "_attempts": "INTEGER",
    "_batch_id": "VARCHAR",
    "_custom_id": "VARCHAR",
    "_request_hash": "VARCHAR",
    "_answered_at": "TIMESTAMP WITH TIME ZONE",
}

FAILURE_COLUMNS: Final = {
    "_partition": "VARCHAR",
    "_error_type": "VARCHAR",
    "_error_message": "VARCHAR",
    "_retryable": "BOOLEAN",
    "_attempts": "INTEGER",
    "_stop_reason": "VARCHAR",
    "_response": "JSON",
    "_model": "VARCHAR",
    **USAGE_COLUMNS,
    "_batch_id": "VARCHAR",
    "_custom_id": "VARCHAR",
    "_request_id": "VARCHAR",
    "_request_hash": "VARCHAR",
    "_failed_at": "TIMESTAMP WITH TIME ZONE",
}

DESCRIPTIONS: Final = {
    "_partition": "The partition key; NULL without partitions.",
    "_model": "The model that answered.",
    "_stop_reason": "Why the answer ended, as the API says it.",
    "_input_tokens": "Tokens read, without cached ones, over all attempts.",
    "_output_tokens": "Tokens written, over all attempts.",
    "_cache_read_tokens": "Tokens read from the prompt cache, over all attempts.",
    "_cache_write_tokens": "Tokens written to the prompt cache, over all attempts.",
    "_cost_usd": "What all attempts of the materialization cost, in USD; NULL if unknown.",
    "_attempts": "How often the row was sent in the materialization.",
    "_batch_id": "The Message Batch of the last attempt.",
    "_custom_id": "The request's id within that batch.",
    "_request_hash": "Identifies what was asked; another hash asks the row again.",
    "_answered_at": "When the answer was written here.",
    "_error_type": "Why there is no answer: the API's own type, or one of ours.",
    "_error_message": "What the API, or this package, says of it.",
    "_retryable": "Whether another attempt may end differently.",
    "_response": "The raw result.",
    "_request_id": "Anthropic's id of the failed request, for their support.",
    "_failed_at": "When the failure was written here.",
}
"""Of our columns in both tables, for people."""

OWN_COLUMNS: Final = frozenset(ANSWER_COLUMNS) | frozenset(FAILURE_COLUMNS)
"""Names that no column of a source or an output may have, whatever its case."""


@dataclass(frozen=True)
class TableName:
    """A table, as precisely as it was named: ``schema`` and ``database`` may be missing."""

    name: str
    schema: str | None = None
    database: str | None = None

    def __str__(self) -> str:
        return ".".join(part for part in (self.database, self.schema, self.name) if part)

    @property
    def sql(self) -> str:
        """The quoted name."""
        parts = (self.database, self.schema, self.name)
        return ".".join(quote_identifier(part) for part in parts if part)

    def renamed(self, name: str) -> "TableName":
        """Another table beside this one."""
        return TableName(name, self.schema, self.database)


def create_schema(connection: Connection, table: TableName) -> None:
    """Make sure that the table's schema exists."""
    if table.schema is None:
        return
    schema = TableName(table.schema, table.database)
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema.sql}")


def columns_of(connection: Connection, relation: str) -> dict[str, str]:
    """Name and type of each column that a table or a parenthesized SELECT yields."""
    described = rows(connection, f"DESCRIBE SELECT * FROM {relation}")
    return {str(column[0]): str(column[1]) for column in described}


def exists(connection: Connection, table: TableName) -> bool:
    """Whether the table or view is there; asked of the catalog, for an error ends a transaction."""
    return bool(
        rows(
            connection,
            "SELECT 1 FROM information_schema.tables WHERE lower(table_name) = lower($name) "
            "AND lower(table_schema) = lower(coalesce($schema, current_schema())) "
            "AND lower(table_catalog) = lower(coalesce($database, current_database()))",
            {"name": table.name, "schema": table.schema, "database": table.database},
        )
    )


def grow_table(connection: Connection, table: TableName, columns: Mapping[str, str]) -> None:
    """Create the table, or add the columns that it lacks; nothing is ever dropped.

    Raises:
        ColumnTypeChangedError: A column exists with another type.
    """
    defined = ", ".join(f"{quote_identifier(name)} {kind}" for name, kind in columns.items())
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table.sql} ({defined})")
    present = columns_of(connection, table.sql)
    wanted = _described_types(connection, columns)
    folded = {name.casefold(): (name, kind) for name, kind in present.items()}
    for name, kind in wanted.items():
        found = folded.get(name.casefold())
        if found is None:
            connection.execute(
                f"ALTER TABLE {table.sql} ADD COLUMN {quote_identifier(name)} {columns[name]}"
            )
        elif found[1] != kind:
            raise ColumnTypeChangedError(str(table), name, is_type=found[1], should_be=kind)


def _described_types(connection: Connection, columns: Mapping[str, str]) -> dict[str, str]:
    """The types in DuckDB's own spelling, in which they can be compared."""
    nulls = ", ".join(
        f"CAST(NULL AS {kind}) AS {quote_identifier(n)}" for n, kind in columns.items()
    )
    return columns_of(connection, f"(SELECT {nulls})")
