"""``claude-batch``: what is out, on the command line."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from dagster_claude_batch import duckdb_errors
from dagster_claude_batch.duckdb_errors import without_credentials
from dagster_claude_batch.errors import ClaudeBatchError, StatusUnreadableError
from dagster_claude_batch.ledger import VERSION
from dagster_claude_batch.status import Out, ledger_version, read_status, table_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it went well, 1 if something is in its way."""
    options = _parser().parse_args(arguments)
    try:
        status = _status(options.database)
    except ClaudeBatchError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([each.as_json() for each in status], indent=2))
    else:
        print("\n".join(table_of(status, datetime.now(UTC))))
    return 0


def _status(database: str) -> list[Out]:
    """Read the ledger of a database, which is not written, nor made.

    Raises:
        StatusUnreadableError: It cannot be opened now, or its ledger is older than this code.
        LedgerVersionError: Its ledger is newer.
    """
    name = without_credentials(database)
    if ":" not in database and not Path(database).exists():
        cure = "Give the path that `DuckDBResource(database=…)` is given."
        raise StatusUnreadableError(name, "there is no such file.", cure=cure)
    try:
        with closing(duckdb.connect(database, read_only=True)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            version = ledger_version(connection)
            if version is not None and version < VERSION:
                problem = f"its ledger has version {version}, and this is version {VERSION}."
                cure = "The next run of any of its assets brings it up to date."
                raise StatusUnreadableError(name, problem, cure=cure)
            return read_status(connection)
    except duckdb.Error as error:
        problem = duckdb_errors.problem_of(error)
        cure = "Give the path that `DuckDBResource(database=…)` is given."
        if duckdb_errors.is_lock(error):
            cure = "A run is writing it: try again in a moment."
        raise StatusUnreadableError(name, problem, cure=cure) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="claude-batch", description="What Claude was asked in batches, by the ledger."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status",
        help="what is out, since when, and what it may cost",
        description="What is out or planned, since when, and what it costs at most. Only reads, "
        "and not while a run writes: then try again.",
    )
    status.add_argument("database", help="what `DuckDBResource(database=…)` is given")
    status.add_argument("--json", action="store_true", help="a list, one object a batch")
    return parser


if __name__ == "__main__":
    sys.exit(main())
