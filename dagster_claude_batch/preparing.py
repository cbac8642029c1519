"""The tables of an asset, made or grown to what is declared now."""

from collections.abc import Sequence

from dagster_claude_batch import ledger
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import ColumnCollisionError
from dagster_claude_batch.ledger import LedgerAsset
from dagster_claude_batch.source import SourceTable, include_types, row_key_types
from dagster_claude_batch.tables import (
    ANSWER_COLUMNS,
    FAILURE_COLUMNS,
    OWN_COLUMNS,
    create_schema,
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
    for table, columns in (
        (declaration.answers, {**row_key, **include, **output, **ANSWER_COLUMNS}),
        (declaration.failures, {**row_key, **include, **FAILURE_COLUMNS}),
    ):
        create_schema(connection, table)
        grow_table(connection, table, columns)
    registered = ledger.register_asset(
        connection, declaration.asset, row_key=row_key, include=include
    )
    ledger.note_tables(connection, registered, ours)
    return registered


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
