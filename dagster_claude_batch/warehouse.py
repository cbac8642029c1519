"""The DuckDB database, opened only for as long as one transaction lasts.

Another process that holds the file makes every connect fail, so nothing here stays open while
something is sent, downloaded or waited for.
"""

import logging
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import pyarrow as pa

from dagster_claude_batch import duckdb_errors
from dagster_claude_batch.database_file import head_of
from dagster_claude_batch.errors import (
    DatabaseFailedError,
    DatabaseLockedError,
    LedgerLostError,
)

Connection = duckdb.DuckDBPyConnection
OpenConnection = Callable[[], AbstractContextManager[Connection]]
T = TypeVar("T")

ROWS_PER_ARROW_BATCH = 8_192
"""Rows that Python holds at a time while it reads a result."""

_CONFLICTS = 20
"""How often a transaction that lost against another one is tried again."""

_LONGEST_PAUSE: Final = 2.0
_FIRST_WORD: Final = 1.0
_WORRYING: Final = 30.0
"""Seconds: between two tries for a lock; until it is mentioned; until that is a warning."""


@dataclass(frozen=True)
class Warehouse:
    """Where the source, the answers, the failures and the ledger are.

    ``open_connection`` yields a connection that is ours until its context ends. A lock held by
    another process is waited for, ``lock_timeout_seconds`` at most in one transaction, in pauses
    with jitter. ``name`` is what people call the database, ``file`` where it is if it is a local
    file. ``has_ledger``: see `with_ledger`.
    """

    open_connection: OpenConnection
    name: str = "of the run"
    file: Path | None = None
    has_ledger: bool = False
    lock_timeout_seconds: float = 600.0
    log: logging.Logger = field(default=logging.getLogger(__name__))
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def with_ledger(self) -> "Warehouse":
        """The same, known to hold a ledger: without one, nothing is read, written or created.

        DuckDB makes an empty database where a file is missing, and drops the write-ahead log that
        was left beside it: a run that has something out must not come across such a one.
        """
        return replace(self, has_ledger=True)

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, and again as a whole if another one got in its way.

        Raises:
            DatabaseLockedError: Another process held the file for too long. Nothing was changed.
            DatabaseFailedError: The database could not be opened, read or written.
            LedgerLostError: There is no ledger where there was one.
            KeyboardInterrupt: A signal ended a query.
        """
        patience = _Patience(self)
        with self._explaining_failures():
            for attempt in range(_CONFLICTS):
                try:
                    with self._connection(patience) as connection:
                        return _in_transaction(connection, work)
                except duckdb.TransactionException as error:
                    if attempt == _CONFLICTS - 1 or not duckdb_errors.is_conflict(error):
                        raise
                self.sleep(random.uniform(0.01, 0.05 * (attempt + 1)))  # noqa: S311  # jitter, no secret
        raise AssertionError  # pragma: no cover  # the last attempt returned or raised

    @contextmanager
    def _explaining_failures(self) -> Generator[None]:
        try:
            yield
        except (duckdb.Error, OSError, RuntimeError) as error:
            if duckdb_errors.is_signal(error):
                raise KeyboardInterrupt from error
            if not duckdb_errors.is_failure(error):
                raise
            raise DatabaseFailedError(self.name, duckdb_errors.problem_of(error)) from error

    @contextmanager
    def _connection(self, patience: "_Patience") -> Generator[Connection]:
        with ExitStack() as stack:
            connection = self._enter(stack, patience)
            stack.enter_context(closing(connection))
            connection.execute("SET produce_arrow_string_view = false")
            if self.has_ledger:
                self._require_ledger(connection)
            yield connection

    def _enter(self, stack: ExitStack, patience: "_Patience") -> Connection:
        """Open the database, waiting for a lock that another process holds."""
        patience.begin()
        while True:
            if self.has_ledger:
                self.require_file()
            try:
                connection = self._open(stack)
            except duckdb.Error as error:
                if not duckdb_errors.is_lock(error):
                    problem = duckdb_errors.problem_of(error)
                    raise DatabaseFailedError(self.name, problem) from error
                patience.wait(error)
            else:
                if connection is not None:
                    patience.end()
                    return connection

    def _open(self, stack: ExitStack) -> Connection | None:
        """Open the database; None if somebody has written it while it was being opened.

        Then DuckDB may know only what was there before, and must not write: see `database_file`.
        """
        before = head_of(self.file)
        with ExitStack() as opening:
            connection = opening.enter_context(self.open_connection())
            if head_of(self.file) != before:
                connection.close()
                return None
            stack.push(opening.pop_all())
            return connection

    def is_there(self) -> bool:
        """Whether opening the database would not make a new file."""
        return self.file is None or self.file.exists()

    def require_file(self) -> None:
        """Make sure that opening the database does not make a new one.

        Raises:
            LedgerLostError: Its file is not there.
        """
        if not self.is_there():
            raise LedgerLostError(self.name, "the file is not there any more.")

    def _require_ledger(self, connection: Connection) -> None:
        try:
            connection.execute("SELECT version FROM claude_batch.ledger LIMIT 0")
        except duckdb.CatalogException as error:
            problem = "it has no ledger any more; another database has taken its place."
            raise LedgerLostError(self.name, problem) from error


@dataclass
class _Patience:
    """How long one transaction has waited for locks, over all its tries; seconds."""

    warehouse: Warehouse
    waited: float = 0.0
    pause: float = 0.05
    speaks_at: float = _FIRST_WORD
    since: float = 0.0

    def begin(self) -> None:
        self.since = self.warehouse.clock() - self.waited

    def wait(self, error: duckdb.Error) -> None:
        """Pause, unless the time is up.

        Raises:
            DatabaseLockedError: It is.
        """
        house = self.warehouse
        self.waited = house.clock() - self.since
        left = house.lock_timeout_seconds - self.waited
        holder = duckdb_errors.holder(error)
        if left <= 0:
            raise DatabaseLockedError(holder, waited=self.waited, database=house.name) from error
        if self.waited >= self.speaks_at:
            self._say(holder, left)
        house.sleep(min(left, random.uniform(self.pause / 2, self.pause)))  # noqa: S311  # jitter, no secret
        self.pause = min(_LONGEST_PAUSE, self.pause * 1.5)

    def _say(self, holder: str, left: float) -> None:
        """Name the holder, three times as rarely from one time to the next."""
        self.speaks_at = 3 * self.waited
        level = logging.WARNING if self.waited >= _WORRYING else logging.INFO
        self.warehouse.log.log(
            level,
            f"The DuckDB database {self.warehouse.name} is locked by {holder}: waiting for "
            f"{self.waited:.0f} s, giving up in {left:.0f} s.",
        )

    def end(self) -> None:
        self.waited = self.warehouse.clock() - self.since
        if self.speaks_at > _FIRST_WORD:
            self.warehouse.log.info(
                f"The DuckDB database is free again, after {self.waited:.0f} s."
            )
            self.speaks_at = _FIRST_WORD


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
    found = rows(connection, sql, parameters)  # all of it: an open result stops other work
    if not found:
        raise LookupError(sql)
    return found[0]
