"""What `import dagster_claude_batch` brings along, and what it does not."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import dagster_claude_batch

HEAVY = ("anthropic", "duckdb", "genai_prices", "httpx2", "pyarrow")


def _printed(code: str, directory: Path | None = None) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return ended.stdout.strip()


def test_importing_the_package_loads_no_more_than_dagster_does() -> None:
    loaded = f"print([name for name in {HEAVY} if name in sys.modules])"

    assert _printed(f"import sys, dagster, dagster_claude_batch; {loaded}") == "[]"


@pytest.mark.parametrize("name", dagster_claude_batch.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    found = getattr(dagster_claude_batch, name)

    assert getattr(found, "__name__", None) or found.name == name
    assert name in dir(dagster_claude_batch)


def test_a_star_brings_all_of_them() -> None:
    code = "from dagster_claude_batch import *; print(*dir())"

    assert set(dagster_claude_batch.__all__) <= set(_printed(code).split())


def test_a_name_that_is_not_there_is_an_error_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'build_claude_batch'"):
        _ = dagster_claude_batch.build_claude_batch


def test_asking_and_collecting_does_not_load_pandas(tmp_path: Path) -> None:
    code = """
import sys, dagster as dg, duckdb
from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset
from dagster_duckdb import DuckDBResource

with duckdb.connect("warehouse.duckdb") as connection:
    connection.execute("CREATE TABLE texts AS SELECT 1 AS id, 'Is it here?' AS text")
answers = build_claude_batch_asset("answers", source="texts", row_key="id", prompt="{{ text }}")
claude = LocalClaudeBatchResource(
    path="simulator", processing_seconds=[0, 0], poll_interval_seconds=0.1
)
resources = {"duckdb": DuckDBResource(database="warehouse.duckdb"), "claude_batch": claude}
ended = dg.materialize([answers], resources=resources)
print(ended.success, "pyarrow" in sys.modules, "pandas" in sys.modules)
"""
    assert find_spec("pandas"), "nobody could load it here"

    assert _printed(code, tmp_path) == "True True False"
