"""Answers whose rows have left: kept aside, and given back unpaid if the row returns."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.matching import (
    our_columns,
    selected_columns,
    selected_is_ours,
    selected_keys,
)
from dagster_claude_batch.tables import ANSWER_COLUMNS
from dagster_claude_batch.warehouse import Connection

_RETURNED: Final = "temp.claude_batch_returned"


def move_to_departed(
    connection: Connection,
    declaration: Declaration,
    condition: str,
    now: datetime,
    *,
    bound: Mapping[str, object] | None = None,
) -> None:
    """Move answers aside.

    ``condition`` is SQL over the answers table, named ``here``, with the parameters ``bound``.
    """
    pairs = ", ".join(
        f"{quote_identifier(name)} := here.{quote_identifier(name)}" for name in _kept(declaration)
    )
    keys = ", ".join(f"here.{quote_identifier(name)}" for name in declaration.row_key)
    answers = declaration.answers.sql
    bound = dict(bound or {})
    connection.execute(
        f"INSERT INTO claude_batch.departed SELECT $asset, _partition, "
        f"CAST(json_array({keys}) AS VARCHAR), _request_hash, "
        f"CAST(to_json(struct_pack({pairs})) AS VARCHAR), $now "
        f"FROM {answers} AS here WHERE {condition}",
        {**bound, "asset": declaration.asset, "now": now},
    )
    connection.execute(f"DELETE FROM {answers} AS here WHERE {condition}", bound)


def welcome_back(
    connection: Connection, declaration: Declaration, relation: str, now: datetime
) -> None:
    """Give rows of a selected relation the answers they left behind, if they would ask the same.

    What left their own partition comes first; what is not taken stays, for the same row may
    return to other partitions too. An answer that such a row has meanwhile moves aside in its turn.
    """
    _choose_returned(connection, declaration, relation)
    returned = (
        f"EXISTS (SELECT 1 FROM {_RETURNED} AS r "
        f"WHERE {selected_is_ours(declaration, 'r', 'here')})"
    )
    move_to_departed(connection, declaration, returned, now)
    connection.execute(f"DELETE FROM {declaration.failures.sql} AS here WHERE {returned}")
    kept = _kept(declaration)
    names = ", ".join(quote_identifier(name) for name in kept)
    values = ", ".join(f"answer.{quote_identifier(name)}" for name in kept)
    connection.execute(
        f"""
        INSERT INTO {declaration.answers.sql} ({our_columns(declaration)}, _partition, {names})
        SELECT {selected_columns(declaration)}, partition, {values}
        FROM (SELECT * REPLACE ({_as_struct(declaration)} AS answer) FROM {_RETURNED})
        """
    )
    connection.execute(
        f"DELETE FROM claude_batch.departed AS d WHERE d.asset = $asset AND EXISTS "
        f"(SELECT 1 FROM {_RETURNED} AS r WHERE r.row_key = d.row_key AND r.hash = d.request_hash "
        "AND r.left_from IS NOT DISTINCT FROM d.partition AND r.departed_at = d.departed_at)",
        {"asset": declaration.asset},
    )


def departed_answers(declaration: Declaration) -> str:
    """SQL of an asset's departed answers, each a STRUCT; its parameter is ``asset``."""
    return (
        f"SELECT * REPLACE ({_as_struct(declaration)} AS answer) FROM claude_batch.departed "
        "WHERE asset = $asset"
    )


def _as_struct(declaration: Declaration) -> str:
    kept = _kept(declaration)
    struct = ", ".join(f"{quote_identifier(name)} {kind}" for name, kind in kept.items())
    return f"CAST(CAST(answer AS JSON) AS STRUCT({struct}))"


def _choose_returned(connection: Connection, declaration: Declaration, relation: str) -> None:
    here = selected_is_ours(declaration, "r", "here")
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claude_batch_returned AS
        SELECT {selected_columns(declaration)}, r.partition, r.hash, d.row_key, d.answer,
            d.partition AS left_from, d.departed_at
        FROM {relation} AS r
        JOIN claude_batch.departed AS d ON d.asset = $asset AND d.request_hash = r.hash
            AND d.row_key = CAST(json_array({selected_keys(declaration)}) AS VARCHAR)
        WHERE NOT EXISTS (
            SELECT 1 FROM {declaration.answers.sql} AS here
            WHERE {here} AND here._request_hash = r.hash)
        QUALIFY row_number() OVER (
            PARTITION BY d.row_key, r.partition
            ORDER BY d.partition IS NOT DISTINCT FROM r.partition DESC, d.departed_at DESC) = 1
        """,
        {"asset": declaration.asset},
    )


def _kept(declaration: Declaration) -> dict[str, str]:
    """What an answer is besides its row: name and type of each column."""
    output = {column.name: column.type for column in declaration.output.columns}
    own = {name: kind for name, kind in ANSWER_COLUMNS.items() if name != "_partition"}
    return {**output, **own}
