"""The tables of an asset, made or grown to what is declared now."""

from collections.abc import Mapping, Sequence

from dagster_claude_batch import ledger
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import ColumnCollisionError
from dagster_claude_batch.ledger import LedgerAsset
from dagster_claude_batch.source import SourceTable, include_types, row_key_types
from dagster_claude_batch.tables import (
    ANSWER_COLUMNS,
    FAILURE_COLUMNS,
    OWN_COLUMNS,
    TableName,
    columns_of,
    create_schema,
    exists,
    grow_table,
)
from dagster_claude_batch.warehouse import Connection


def prepare_tables(
    connection: Connection, declaration: Declaration, source: SourceTable
) -> LedgerAsset:
    """Create or grow the answers, failures and requests tables.

    Raises:
        ColumnCollisionError: A column of the source and one of the output have one name.
        ColumnTypeChangedError: A column exists with another type.
        TableTakenError: Another asset writes one of these tables.
    """
    row_key, include = row_key_types(declaration, source), include_types(declaration, source)
    output = {column.name: column.type for column in declaration.output.columns}
    refuse_collisions(declaration.asset, [*row_key, *include], list(output))
    ours = [declaration.answers, declaration.failures]
    ledger.refuse_taken_tables(connection, declaration.asset, ours)
    for table, columns in _columns(declaration, {**row_key, **include}).items():
        create_schema(connection, table)
        grow_table(connection, table, columns)
    registered = ledger.register_asset(
        connection, declaration.asset, row_key=row_key, include=include
    )
    ledger.note_tables(connection, registered, ours)
    return registered


def restore_tables(
    connection: Connection, declaration: Declaration, registered: LedgerAsset
) -> None:
    """Make an answers or failures table again that somebody has dropped since rows were planned.

    Key and `include` columns get the types with which they were planned.
    """
    known = {n.casefold(): t for n, t in columns_of(connection, registered.requests.sql).items()}
    carried = (*declaration.row_key, *declaration.include)
    types = {name: known[name.casefold()] for name in carried}
    for table, columns in _columns(declaration, types).items():
        if not exists(connection, table):
            create_schema(connection, table)
            grow_table(connection, table, columns)


def _columns(
    declaration: Declaration, carried: Mapping[str, str]
) -> dict[TableName, dict[str, str]]:
    """Name and type of all columns of both tables, given those that come from the source."""
    output = {column.name: column.type for column in declaration.output.columns}
    return {
        declaration.answers: {**carried, **output, **ANSWER_COLUMNS},
        declaration.failures: {**carried, **FAILURE_COLUMNS},
    }


def refuse_collisions(asset: str, of_source: Sequence[str], of_output: Sequence[str]) -> None:
    """Check that all columns of the answers table have names of their own.

    Raises:
        ColumnCollisionError: Two of them have one, whatever its case.
    """
    seen = {name.casefold(): "a column of this package's own" for name in OWN_COLUMNS}
    for names, what in ((of_source, "a column of the source"), (of_output, "a field of `output`")):
        for name in names:
            if name.casefold() in seen:
                raise ColumnCollisionError(asset, name, other=seen[name.casefold()])
            seen[name.casefold()] = what
