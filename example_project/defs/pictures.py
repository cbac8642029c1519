"""The source of the captions: photographs, kept as BLOBs."""

from contextlib import closing
from pathlib import Path

import dagster as dg
from dagster_duckdb import DuckDBResource

PICTURES = Path(__file__).parent.parent / "data" / "pictures"


@dg.asset(group_name="captions", kinds={"duckdb"})
def pictures(duckdb: DuckDBResource) -> dg.MaterializeResult:
    """Freely licensed photographs; `data/pictures/README.md` says by whom."""
    with duckdb.get_connection() as connection, closing(connection):
        connection.execute(
            """
            CREATE OR REPLACE TABLE pictures AS
            SELECT parse_filename(filename, true) AS name, content AS photo
            FROM read_blob($pattern)
            """,
            {"pattern": str(PICTURES / "*.jpg")},
        )
        rows = connection.execute("SELECT count(*) FROM pictures").fetchall()[0][0]
    return dg.MaterializeResult(metadata={"dagster/row_count": rows})
