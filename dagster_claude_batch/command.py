"""``claude-batch``: what is out, on the command line."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb

from dagster_claude_batch import duckdb_errors
from dagster_claude_batch.duckdb_errors import without_credentials
from dagster_claude_batch.errors import (
    ClaudeBatchError,
    StatusLockedError,
    StatusUnreadableError,
)
from dagster_claude_batch.ledger import VERSION
from dagster_claude_batch.status import Out, ledger_version, read_status, table_of
from dagster_claude_batch.warehouse import Connection

UNREADABLE: Final = 1
NO_LEDGER: Final = 3
LOCKED: Final = 4
"""What the command ends with if it has not read a ledger; 2 is a command that is none."""

_PAUSE: Final = 0.1
"""Seconds between two tries at a file that a run is writing."""


def main(
    arguments: Sequence[str] | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Run a command; 0 if it went well, else one of the numbers above."""
    options = _parser().parse_args(arguments)
    try:
        status = _status(options.database, options.wait, sleep)
    except StatusLockedError as error:
        print(error, file=sys.stderr)
        return LOCKED
    except ClaudeBatchError as error:
        print(error, file=sys.stderr)
        return UNREADABLE
    if options.json:
        print(json.dumps([each.as_json() for each in status or ()], indent=2))
    elif status is not None:
        print("\n".join(table_of(status, datetime.now(UTC))))
    if status is None:
        name = without_credentials(options.database)
        print(f"{name} has no ledger: nothing was ever asked from it.", file=sys.stderr)
        return NO_LEDGER
    return 0


def _status(
    database: str, patience_seconds: float, sleep: Callable[[float], None]
) -> list[Out] | None:
    """Read the ledger of a database, which is not written, nor made; None if it has none.

    Raises:
        StatusLockedError: A run has it open for writing all the time.
        StatusUnreadableError: It cannot be opened, or its ledger is older than this code.
        LedgerVersionError: Its ledger is newer.
    """
    name = without_credentials(database)
    if ":" not in database and not Path(database).exists():
        raise StatusUnreadableError(name, "there is no such file.", cure=_PATH)
    try:
        with closing(_open(database, patience_seconds, sleep)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            version = ledger_version(connection)
            if version is None:
                return None
            if version < VERSION:
                problem = f"its ledger has version {version}, and this is version {VERSION}."
                cure = "The next run of any of its assets brings it up to date."
                raise StatusUnreadableError(name, problem, cure=cure)
            return read_status(connection)
    except duckdb.Error as error:
        if duckdb_errors.is_lock(error):
            raise StatusLockedError(
                name, duckdb_errors.holder(error), waited=patience_seconds
            ) from error
        raise StatusUnreadableError(name, duckdb_errors.problem_of(error), cure=_PATH) from error


_PATH: Final = "Give the path that `DuckDBResource(database=…)` is given."


def _open(database: str, patience_seconds: float, sleep: Callable[[float], None]) -> Connection:
    """Open a database that a run may be writing: runs do so for single transactions."""
    until = time.monotonic() + patience_seconds
    while True:
        try:
            return duckdb.connect(database, read_only=True)
        except duckdb.Error as error:
            if not duckdb_errors.is_lock(error) or time.monotonic() >= until:
                raise
        sleep(_PAUSE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="claude-batch", description="What Claude was asked in batches, by the ledger."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status",
        help="what is out, since when, and what it may cost",
        description="What is out or planned, since when, and what it costs at most. Only reads, "
        "and waits while a run writes.",
        epilog="Ends with 0; with 1 if the database cannot be read, 3 if it has no ledger, 4 if a "
        "run writes all the time.",
    )
    status.add_argument("database", help="what `DuckDBResource(database=…)` is given")
    status.add_argument("--json", action="store_true", help="a list, one object a batch")
    status.add_argument(
        "--wait",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for a run that writes (30)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
