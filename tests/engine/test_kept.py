"""A DuckDB that the process keeps: files are called, shared and let go as if one had connected."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from dagster_duckdb import DuckDBResource
from kit import Project

from dagster_claude_batch import kept
from dagster_claude_batch.connecting import open_connection
from dagster_claude_batch.warehouse import read_arrow, rows

Make = Callable[..., Project]
pytestmark = pytest.mark.opens_anew

NAMES = (
    "warehouse.duckdb",
    "my.warehouse.duckdb",
    "no_suffix",
    "main.duckdb",
    "Memory.v1.duckdb",
    "temp.db",
    "pg_catalog.duckdb",
    "dagster_claude_batch.duckdb",
    'it\'s "quoted".duckdb',
    ".duckdb",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_called_as_if_one_had_connected_to_its_file(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    said = "SELECT current_database(), current_schema()"
    with duckdb.connect(str(file)) as plain:
        plain.execute("CREATE TABLE t AS SELECT 1 AS i")
        expected = plain.execute(said).fetchall()

    for _ in range(2):
        with open_connection(DuckDBResource(database=str(file))) as connection:
            assert rows(connection, said) == expected
            assert rows(connection, "FROM t") == [(1,)]


def test_a_schema_may_be_called_memory(tmp_path: Path) -> None:
    with open_connection(DuckDBResource(database=str(tmp_path / "w.duckdb"))) as connection:
        connection.execute("CREATE SCHEMA memory")
        connection.execute("CREATE TABLE memory.t AS SELECT 1 AS i")

        assert rows(connection, "FROM memory.t") == [(1,)]


def test_nothing_stays_open_between_two_uses(tmp_path: Path) -> None:
    file = tmp_path / "w.duckdb"
    with open_connection(DuckDBResource(database=str(file))) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS i")

    with duckdb.connect(str(file)) as plain:  # refused as long as it is attached here
        assert plain.execute("FROM t").fetchall() == [(1,)]


def test_what_was_being_read_when_an_error_came_keeps_nobody_out(tmp_path: Path) -> None:
    resource = DuckDBResource(database=str(tmp_path / "w.duckdb"))

    def read() -> None:
        with open_connection(resource) as connection:
            _read_and_fail(connection)

    with pytest.raises(ValueError, match="mine") as raised:
        read()

    with open_connection(resource) as connection:
        assert rows(connection, "SELECT 1") == [(1,)]
    assert raised.value is not None  # known until here, with its traceback


def _read_and_fail(connection: duckdb.DuckDBPyConnection) -> None:
    reader = read_arrow(connection, "SELECT i FROM range(1_000_000) AS r(i)")
    next(reader)
    raise ValueError("mine")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_opens_files_although_threads_were_opening_some(tmp_path: Path) -> None:
    is_over = threading.Event()

    def open_again_and_again(number: int) -> None:
        while not is_over.is_set():
            file = tmp_path / f"{number}.duckdb"
            with open_connection(DuckDBResource(database=str(file))):
                pass

    threads = [threading.Thread(target=open_again_and_again, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        statuses = [_fork_and_look() for _ in range(5)]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()

    assert statuses == [0] * 5


def _fork_and_look() -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with kept._KEPT.lock:  # noqa: SLF001  # no more: DuckDB in a fork of a process with threads may hang
            os._exit(1 if kept._KEPT.databases else 0)  # noqa: SLF001  # as above
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
