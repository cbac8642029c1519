"""One half of a peer, measured, or the reason why it cannot be."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anthropic  # noqa: F401  # as if peers did not import it where they need it first
import duckdb
from benchmarks.speed.data import SOURCE
from benchmarks.speed.measure import measure

Work = Callable[[Path], str]
"""What is done in a folder, and what it says when it is done."""


def run(submit: Work, collect: Work) -> None:
    """Measure the half that the command line names: ``submit`` or ``collect``, FOLDER, BASE_URL."""
    half, folder, base_url = sys.argv[1:]
    os.environ |= {"ANTHROPIC_API_KEY": "loopback", "ANTHROPIC_BASE_URL": base_url}
    work = {"submit": submit, "collect": collect}[half]
    try:
        measure(lambda: work(Path(folder)))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what is shown
        traceback.print_exc()
        sys.stdout.write(json.dumps({"cannot": f"{type(error).__name__}: {error}"}) + "\n")


def read(folder: Path) -> list[tuple[int, str]]:
    """The rows that are asked about."""
    with closing(duckdb.connect(database(folder), read_only=True)) as connection:
        return connection.execute(f"SELECT id, text FROM {SOURCE} ORDER BY id").fetchall()


def land(folder: Path, answers: object, failures: object) -> str:
    """Write two data frames as tables, and say how long they are."""
    with closing(duckdb.connect(database(folder))) as connection:
        connection.register("found", answers)
        connection.register("failed", failures)
        connection.execute("CREATE TABLE reviews AS SELECT * FROM found")
        connection.execute("CREATE TABLE reviews_failures AS SELECT * FROM failed")
        return landed(connection)


def landed(connection: duckdb.DuckDBPyConnection) -> str:
    """How many answers and failures there are now."""
    found = "SELECT (SELECT count(*) FROM reviews), (SELECT count(*) FROM reviews_failures)"
    return "{} answers, {} failures".format(*connection.execute(found).fetchall()[0])


def database(folder: Path) -> str:
    """The path of the warehouse."""
    return str(folder / "warehouse.duckdb")
