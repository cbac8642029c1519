"""The source: sentences that people have rated, loaded into DuckDB."""

from contextlib import closing
from pathlib import Path

import dagster as dg
from dagster_duckdb import DuckDBResource

from example_project.settings import rows_per_corpus

PARQUET = Path(__file__).parent.parent / "data" / "snippets.parquet"


@dg.asset(group_name="sentiment", kinds={"duckdb", "parquet"})
def snippets(duckdb: DuckDBResource) -> dg.MaterializeResult:
    """Sentences from reviews and tweets, with the mean rating that people gave them."""
    with duckdb.get_connection() as connection, closing(connection):
        connection.execute(
            """
            CREATE OR REPLACE TABLE snippets AS
            SELECT corpus, snippet_id, text, human_score
            FROM read_parquet($parquet)
            QUALIFY $rows IS NULL
                OR row_number() OVER (PARTITION BY corpus ORDER BY snippet_id) <= $rows
            """,
            {"parquet": str(PARQUET), "rows": rows_per_corpus()},
        )
        counts = connection.execute(
            "SELECT corpus, count(*) FROM snippets GROUP BY corpus ORDER BY corpus"
        ).fetchall()
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(rows for _, rows in counts),
            "rows_by_corpus": dict(counts),
        }
    )
