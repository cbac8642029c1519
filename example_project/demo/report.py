"""The end of the demonstration: tables, counts, cost, and how to look further."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from textwrap import shorten
from typing import Any

import duckdb
from genai_prices import Usage, calc_price
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dagster_claude_batch.simulator import Simulator

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


def print_spent(console: Console, warehouse: Path, simulator: Simulator | None) -> None:
    """Print by partition what the requests could have cost, what they did, and what was billed.

    The bill is the simulator's; its prices are looked up here and not in the package.
    """
    billed = None if simulator is None else _billed(simulator)
    columns = ("partition", "requests", "at most", "cost")
    table = _titled("What it could have cost, and what it did (USD)")
    for name in columns if billed is None else (*columns, "billed"):
        table.add_column(name, justify="left" if name == "partition" else "right")
    with closing(duckdb.connect(str(warehouse), read_only=True)) as connection:
        spent = connection.execute(SPENT).fetchall()
    for partition, requests, at_most, cost, batches in spent:
        amounts = [at_most, cost]
        if billed is not None:
            amounts.append(sum((billed[batch] for batch in batches), Decimal(0)))
        table.add_row(
            partition, f"{requests:,}", *("?" if a is None else f"{a:.6f}" for a in amounts)
        )
    console.print(table)


SPENT = """
    SELECT array_to_string(m.partitions, ', ') AS partition, sum(c.requests), sum(c.most_usd),
        sum(c.cost_usd), list(c.batch_id)
    FROM claude_batch.chunks AS c JOIN claude_batch.materializations AS m USING (materialization_id)
    WHERE c.asset = 'snippet_sentiment' AND c.state = 'landed' AND c.batch_id IS NOT NULL
    GROUP BY ALL ORDER BY partition
"""


def _billed(simulator: Simulator) -> Mapping[str, Decimal]:
    """USD that the simulator has billed for each batch."""
    found: defaultdict[str, Decimal] = defaultdict(Decimal)
    for each in simulator.bill():
        tokens = Usage(
            input_tokens=each.usage["input_tokens"], output_tokens=each.usage["output_tokens"]
        )
        price = calc_price(
            tokens,
            model_ref=each.model,
            provider_id="anthropic",
            price_context={"processing": "batch"},
        )
        found[each.batch_id] += price.total_price
    return found


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
    table = _titled(title)
    for name, kind, *_ in result.description or []:
        table.add_column(
            name,
            no_wrap=name != "text",  # so it is the one that makes room in a narrow terminal
            justify="right" if kind in ("DOUBLE", "BIGINT", "INTEGER") else "left",
        )
    for row in result.fetchall():
        table.add_row(*(_cell(value) for value in row))
    return table


def _titled(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
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
