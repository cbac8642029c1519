"""The warehouse, and Claude: the real one with an API key, else a simulator."""

import dagster as dg
from dagster_duckdb import DuckDBResource
from dagster_duckdb_pandas import DuckDBPandasIOManager

from dagster_claude_batch import ClaudeBatchResource, LocalClaudeBatchResource
from example_project.settings import home, is_simulated


@dg.definitions
def resources() -> dg.Definitions:
    """Resources of this project; creates the directory of the DuckDB file."""
    home().mkdir(parents=True, exist_ok=True)
    warehouse = str(home() / "warehouse.duckdb")
    return dg.Definitions(
        resources={
            "duckdb": DuckDBResource(database=warehouse),
            "dataframes": DuckDBPandasIOManager(database=warehouse, schema="main"),
            "claude_batch": _claude_batch(),
        }
    )


def _claude_batch() -> ClaudeBatchResource:
    if not is_simulated():
        return ClaudeBatchResource()
    return LocalClaudeBatchResource(
        path=str(home() / "simulator"),
        answer="example_project.simulated:answer",
        outcome="example_project.simulated:outcome",
        processing_seconds=[15.0, 20.0],  # long enough to see that nothing runs meanwhile
        poll_interval_seconds=3,
    )
