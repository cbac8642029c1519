"""The DuckDB database, opened only for as long as one transaction lasts.

Another process that holds the file makes every connect fail, so nothing here stays open while
something is sent, downloaded or waited for.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import duckdb
import pyarrow as pa

from dagster_claude_batch.errors import DatabaseLockedError

Connection = duckdb.DuckDBPyConnection
OpenConnection = Callable[[], AbstractContextManager[Connection]]
T = TypeVar("T")

ROWS_PER_ARROW_BATCH = 8_192
"""Rows that Python holds at a time while it reads a result."""

_CONFLICTS = 20
"""How often a transaction that lost against another one is tried again."""


@dataclass(frozen=True)
class Warehouse:
    """Where the source, the answers, the failures and the ledger are.

    ``open_connection`` yields a connection that is ours until its context ends. A lock held by
    another process is waited for, ``lock_timeout_seconds`` at most, in pauses with jitter.
    """

    open_connection: OpenConnection
    lock_timeout_seconds: float = 600.0
    log: logging.Logger = field(default=logging.getLogger(__name__))
    sleep: Callable[[float], None] = time.sleep

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, and again as a whole if another one got in its way.

        Raises:
            DatabaseLockedError: Another process held the file for too long. Nothing was changed.
        """
        for attempt in range(_CONFLICTS):
            try:
                with self._connection() as connection:
                    return _in_transaction(connection, work)
            except duckdb.TransactionException as error:
                if attempt == _CONFLICTS - 1 or not is_conflict(error):
                    raise
            self.sleep(random.uniform(0.01, 0.05 * (attempt + 1)))  # noqa: S311  # jitter, no secret
        raise AssertionError  # pragma: no cover  # the last attempt returned or raised

    @contextmanager
    def _connection(self) -> Generator[Connection]:
        with ExitStack() as stack:
            connection = self._enter(stack)
            stack.enter_context(closing(connection))
            connection.execute("SET produce_arrow_string_view = false")
            yield connection

    def _enter(self, stack: ExitStack) -> Connection:
        """Open the database, waiting for a lock that another process holds."""
        deadline = time.monotonic() + self.lock_timeout_seconds
        pause = 0.05
        while True:
            try:
                return stack.enter_context(self.open_connection())
            except duckdb.IOException as error:
                left = deadline - time.monotonic()
                if not is_lock(error):
                    raise
                if left <= 0:
                    raise DatabaseLockedError(
                        holder(error), waited=self.lock_timeout_seconds
                    ) from error
                self.log.debug("The database is held by %s; waiting.", holder(error))
            self.sleep(min(left, random.uniform(pause / 2, pause)))  # noqa: S311  # jitter, no secret
            pause = min(2.0, pause * 1.5)


def _in_transaction(connection: Connection, work: Callable[[Connection], T]) -> T:
    connection.begin()
    try:
        result = work(connection)
    except BaseException:
        _roll_back(connection)
        raise
    connection.commit()
    return result


def _roll_back(connection: Connection) -> None:
    """Undo, but never hide the error that made it necessary."""
    try:
        connection.rollback()
    except duckdb.Error:
        return


def is_lock(error: duckdb.Error) -> bool:
    """Whether another process holds the database file."""
    return "set lock on file" in str(error) or "Conflicting lock" in str(error)


def is_conflict(error: duckdb.Error) -> bool:
    """Whether the transaction lost against another one and can be run again."""
    return "conflict" in str(error).lower()


def holder(error: duckdb.Error) -> str:
    """Name the process that holds the lock, as DuckDB names it."""
    found = re.search(r"held in (.+?\(PID \d+\))", str(error))
    return found.group(1) if found else "another process"


def read_arrow(
    connection: Connection, sql: str, parameters: Mapping[str, object] | None = None
) -> pa.RecordBatchReader:
    """Stream a query's rows as Arrow record batches; strings with 32-bit offsets."""
    return connection.sql(sql, params=dict(parameters or {})).to_arrow_reader(ROWS_PER_ARROW_BATCH)


def rows(
    connection: Connection, sql: str, parameters: Mapping[str, object] | None = None
) -> list[tuple[Any, ...]]:
    """All rows of a small result."""
    return connection.execute(sql, dict(parameters or {})).fetchall()


def row(
    connection: Connection, sql: str, parameters: Mapping[str, object] | None = None
) -> tuple[Any, ...]:
    """The one row of a query that always has one."""
    found = connection.execute(sql, dict(parameters or {})).fetchone()
    if found is None:
        raise LookupError(sql)
    return found


def values_of(batch: pa.RecordBatch, column: int) -> list[Any]:
    """A column's values as Python objects."""
    return cast("list[Any]", batch.column(column).to_pylist())  # pyright: ignore[reportUnknownMemberType]  # pyarrow's stubs leave the values open


def columns_of(batch: pa.RecordBatch) -> list[list[Any]]:
    """All columns' values as Python objects."""
    return [values_of(batch, number) for number in range(batch.num_columns)]
