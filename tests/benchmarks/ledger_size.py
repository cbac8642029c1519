"""How large the ledger is after many materializations, and after it was pruned.

``PYTHONPATH=. python -m benchmarks.ledger_size [MATERIALIZATIONS ROWS]``, in ``tests/``: each
materialization asks about all rows anew, and is answered by the server of `benchmarks.speed`.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb
import httpx2
from benchmarks.speed.__main__ import serving
from benchmarks.speed.data import make_source
from benchmarks.speed.ours import Ours
from benchmarks.speed.server import PREPARE

from dagster_claude_batch.ledger import MaterializationConfig

MATERIALIZATIONS: Final = 100
ROWS: Final = 100_000


def materialize(home: Path, base_url: str) -> None:
    """Ask about all rows, and land what is answered."""
    ours = Ours(home, base_url)
    attached = ours.engine.attach([None], MaterializationConfig(refresh=True))
    assert ours.engine.advance(attached) is not None
    httpx2.post(base_url + PREPARE, timeout=600).raise_for_status()
    while ours.engine.advance(attached) is not None:
        httpx2.post(base_url + PREPARE, timeout=600).raise_for_status()


def size_of_ledger(database: Path, copy: Path) -> int:
    """Bytes of a database that holds the ledger and nothing else."""
    copy.unlink(missing_ok=True)
    with closing(duckdb.connect()) as connection:
        connection.execute(f"ATTACH '{database}' AS warehouse (READ_ONLY)")
        connection.execute(f"ATTACH '{copy}' AS ledger")
        tables = connection.execute(
            "SELECT table_name FROM duckdb_tables() "
            "WHERE database_name = 'warehouse' AND schema_name = 'claude_batch'"
        ).fetchall()
        for (name,) in tables:
            whole = f'warehouse.claude_batch."{name}"'
            connection.execute(f'CREATE TABLE ledger."{name}" AS FROM {whole}')
    return copy.stat().st_size


def main(arguments: Sequence[str]) -> None:
    """Print bytes a row and attempt."""
    materializations, rows = map(int, arguments) if arguments else (MATERIALIZATIONS, ROWS)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        database = home / "warehouse.duckdb"
        make_source(str(database), rows)
        sys.stdout.write("| materializations | bytes of the ledger | a row and attempt |\n")
        sys.stdout.write("|---|---|---|\n")
        for number in range(1, materializations + 1):
            with serving(home / f"server-{number}") as base_url:
                materialize(home, base_url)
            if number in {1, 10, materializations}:
                size = size_of_ledger(database, home / "ledger.duckdb")
                each = size / number / rows
                sys.stdout.write(f"| {number:,} | {size:,} | {each:.1f} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
