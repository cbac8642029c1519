"""What short rows save in tokens when they share a request: ``python -m benchmarks.packing``.

The example's short tweets, each with another `rows_per_request`, through the whole path. The
simulator counts the tokens, a quarter of the characters: ratios mean more than numbers.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset
from example_project.defs.snippets import PARQUET
from example_project.defs.tweet_moods import SYSTEM, Mood

SIZES = (1, 2, 5, 10, 20, 50)


def main() -> None:
    """Print the table that the README shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000)
    rows = parser.parse_args().rows
    _say("rows per request", "input tokens a row", "output tokens a row", "USD a 1,000 rows", "")
    _say(*["---"] * 5)
    first = None
    for size, (asked, answered, cost) in zip(SIZES, _measured(rows), strict=True):
        first = first or cost
        change = "" if size == 1 else f"{cost / first - 1:+.0%}"
        _say(str(size), f"{asked:.0f}", f"{answered:.0f}", f"{1_000 * cost:.4f}", change)


def _say(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")


def _measured(rows: int) -> Iterator[tuple[float, float, float]]:
    for size in SIZES:
        with tempfile.TemporaryDirectory() as home:
            yield _measure(Path(home), rows, size)


def _measure(home: Path, rows: int, size: int) -> tuple[float, float, float]:
    """Input and output tokens and USD of a row."""
    database = str(home / "warehouse.duckdb")
    with closing(duckdb.connect(database)) as connection:
        connection.execute(
            "CREATE TABLE tweets AS SELECT snippet_id, text FROM read_parquet($path) "
            "WHERE corpus = 'tweets' AND length(text) < 80 ORDER BY snippet_id LIMIT $rows",
            {"path": str(PARQUET), "rows": rows},
        )
    moods = build_claude_batch_asset(
        "moods",
        source="tweets",
        row_key="snippet_id",
        system=SYSTEM,
        prompt="Which mood does this tweet show?\n\n{{ text }}",
        output=Mood,
        max_tokens=50,
        rows_per_request=size,
        deduplicate=False,
        wait="run",
    )
    claude = LocalClaudeBatchResource(
        path=str(home / "simulator"),
        answer="example_project.simulated:answer",
        processing_seconds=[0, 0],
        poll_interval_seconds=0.1,
    )
    resources = {"duckdb": DuckDBResource(database=database), "claude_batch": claude}
    dg.materialize([moods], resources=resources)
    with closing(duckdb.connect(database)) as connection:
        found = connection.execute(
            "SELECT avg(_input_tokens), avg(_output_tokens), avg(_cost_usd)::DOUBLE, count(*) "
            "FROM moods"
        ).fetchone()
    assert found is not None
    *means, count = found
    assert count == rows
    return tuple(means)


if __name__ == "__main__":
    main()
