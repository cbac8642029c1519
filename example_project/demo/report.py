"""The end of the demonstration: tables, counts, cost, and how to look further."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import duckdb
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

COST = "cost_usd"
STANDARD_COST = "cost_usd_standard_price"
TEXT_WIDTH = 40


@dataclass(frozen=True)
class Cost:
    """USD of all partitions, and what the same requests would have cost outside batches."""

    batch: float
    standard: float


def cost_of(materializations: Sequence[Mapping[str, Any]]) -> Cost | None:
    """Add up the metadata of the partitions; None if a price is unknown."""
    if not all(STANDARD_COST in metadata for metadata in materializations):
        return None
    return Cost(
        batch=sum(metadata[COST] for metadata in materializations),
        standard=sum(metadata[STANDARD_COST] for metadata in materializations),
    )


def print_tables(console: Console, warehouse: Path) -> None:
    """Print the first rows of every table and how many rows there are.

    Opens the DuckDB file: no run may be using it.
    """
    with closing(duckdb.connect(str(warehouse), read_only=True)) as connection:
        for table in _tables(connection):
            console.print(table)
        console.print(_counts(connection))


def print_cost(console: Console, cost: Cost | None, *, simulated: bool) -> None:
    """Print what was paid, or would have been."""
    if cost is None:
        console.print("Cost: unknown for this model.")
        return
    if cost.batch == 0:
        console.print("Nothing had to be sent: every answer was there already.")
        return
    real = "would have cost" if simulated else "cost"
    console.print(
        f"In batches this {real} [bold]${cost.batch:.4f}[/bold]; without the batch discount, "
        f"${cost.standard:.4f}{'. It was simulated: nothing was paid.' if simulated else '.'}"
    )


def _tables(connection: duckdb.DuckDBPyConnection) -> Iterator[Table]:
    yield _table(
        connection,
        "Answers: snippet_sentiment",
        """
        SELECT a._partition AS corpus, a.snippet_id, s.text, a.label, a.score,
            a.human_score AS people
        FROM snippet_sentiment AS a
        JOIN snippets AS s ON s.corpus = a._partition AND s.snippet_id = a.snippet_id
        QUALIFY row_number() OVER (PARTITION BY a._partition ORDER BY a.snippet_id) <= 2
        ORDER BY corpus, snippet_id
        """,
    )
    yield _table(
        connection,
        "Failures: snippet_sentiment_failures",
        """
        SELECT f._partition AS corpus, f.snippet_id, s.text, f._error_type, f._attempts
        FROM snippet_sentiment_failures AS f
        JOIN snippets AS s ON s.corpus = f._partition AND s.snippet_id = f.snippet_id
        ORDER BY corpus, snippet_id
        LIMIT 8
        """,
    )
    yield _table(
        connection,
        "How far that agrees with people: sentiment_by_corpus",
        """
        SELECT corpus, answers, positive, neutral, negative, agreement AS agree,
            correlation AS correl
        FROM sentiment_by_corpus
        ORDER BY corpus
        """,
    )


def _table(connection: duckdb.DuckDBPyConnection, title: str, query: str) -> Table:
    result = connection.execute(query)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for name, kind, *_ in result.description or []:
        table.add_column(
            name,
            no_wrap=name != "text",  # so it is the one that makes room in a narrow terminal
            justify="right" if kind in ("DOUBLE", "BIGINT", "INTEGER") else "left",
        )
    for row in result.fetchall():
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    match value:
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.2f}"
        case _:
            return escape(shorten(str(value), TEXT_WIDTH, placeholder=" …"))


def _counts(connection: duckdb.DuckDBPyConnection) -> str:
    snippets, answers, failures, retried = connection.execute(
        """
        SELECT
            (SELECT count(*) FROM snippets),
            (SELECT count(*) FROM snippet_sentiment),
            (SELECT count(*) FROM snippet_sentiment_failures),
            (SELECT count(*) FROM snippet_sentiment WHERE _attempts > 1)
        """
    ).fetchall()[0]
    return (
        f"[bold]{snippets:,} snippets = {answers:,} answers + {failures:,} failures[/bold]; "
        f"{retried:,} of the answers took more than one attempt."
    )
