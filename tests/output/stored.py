"""An answer through DuckDB and back."""

import json
from typing import Any

import duckdb
from pydantic import create_model

from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.output import Output


def stored(connection: duckdb.DuckDBPyConnection, output: Output, text: str) -> dict[str, Any]:
    """Put one validated answer through a table of the output's columns, and read it back."""
    columns = ", ".join(f"{quote_identifier(c.name)} {c.type}" for c in output.columns)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE answers ({columns})")
    connection.execute(
        "INSERT INTO answers SELECT unnest(json_transform_strict($text, $structure))",
        {"text": text, "structure": output.transform_structure},
    )
    result = connection.execute("SELECT * FROM answers")
    names = [column[0] for column in result.description]
    return dict(zip(names, result.fetchall()[0], strict=True))


def stored_value(
    connection: duckdb.DuckDBPyConnection, annotation: object, answer: object
) -> object:
    output = output_of(annotation)
    return stored(connection, output, output.validate(json.dumps({"value": answer})))["value"]


def output_of(annotation: object) -> Output:
    fields: dict[str, Any] = {"value": (annotation, ...)}
    return Output.from_model(create_model("Model", **fields), asset="asset")
