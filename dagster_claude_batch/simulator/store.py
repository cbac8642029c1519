"""The state that several processes share: a SQLite database beside the batches' files.

Every call opens its own connection, so that threads and forked processes may share a store.
A rollback journal is slower than a write-ahead log but has no trouble with processes that
come and go; what a killed process began is undone by the next one.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_claude_batch.simulator.batch import (
    Course,
    RequestCounts,
    at_microseconds,
    microseconds,
)
from dagster_claude_batch.simulator.files import BatchFiles, open_private

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Generator, Mapping

_SCHEMA = """
CREATE TABLE shared (clock_offset INTEGER NOT NULL, tickets INTEGER NOT NULL);
INSERT INTO shared VALUES (0, 0);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
    created_at INTEGER NOT NULL, finishes_at INTEGER NOT NULL, ends_at INTEGER NOT NULL,
    canceled_at INTEGER, processed INTEGER NOT NULL, succeeded INTEGER NOT NULL,
    errored INTEGER NOT NULL, canceled INTEGER NOT NULL, expired INTEGER NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX batches_by_end ON batches (ends_at);
CREATE TABLE seen (content BLOB PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE prefixes (prefix BLOB PRIMARY KEY, lives_until INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
_COLUMNS = (
    "id, size, created_at, finishes_at, ends_at, canceled_at, processed, "
    "succeeded, errored, canceled, expired"
)
_BUSY_SECONDS = 60


class Store:
    """A directory with the database ``simulator.sqlite`` and a folder for each batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = path / "simulator.sqlite"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("batches", "incoming"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        # SQLite gives its journal the permissions of the database.
        open_private(self._database, "ab").close()
        with self.writing() as session:
            session.set_up()

    @contextmanager
    def reading(self) -> Generator[Session]:
        """Look without holding anything back; each look sees what is committed by then."""
        with closing(self._connect()) as connection:
            yield Session(connection)

    @contextmanager
    def writing(self) -> Generator[Session]:
        """Change something while nobody else does; an exception leaves no trace."""
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Session(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def incoming(self) -> Generator[BatchFiles]:
        """Make a folder for a batch that is not there yet; removed unless it is moved away."""
        files = BatchFiles(Path(tempfile.mkdtemp(dir=self.path / "incoming")))
        try:
            yield files
        finally:
            files.remove()

    def files(self, batch_id: str) -> BatchFiles:
        """Find the files of a batch."""
        return BatchFiles(self.path / "batches" / batch_id)

    def adopt(self, incoming: BatchFiles, batch_id: str) -> None:
        """Make the incoming folder that of a batch."""
        incoming.folder.rename(self.files(batch_id).folder)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, timeout=_BUSY_SECONDS, isolation_level=None)
        # A crash of a process loses nothing; a crash of the machine may, and that is fine here.
        connection.execute("PRAGMA synchronous = OFF")
        return connection


@dataclass(frozen=True, slots=True)
class Session:
    """The questions and changes that the simulator has for its database."""

    connection: sqlite3.Connection

    def set_up(self) -> None:
        """Create the tables where they are missing."""
        if self._value("PRAGMA user_version") == 0:
            for statement in _SCHEMA.split(";"):
                self.connection.execute(statement)

    def clock_offset(self) -> timedelta:
        """Read how far the simulated clock is ahead."""
        return timedelta(microseconds=self._value("SELECT clock_offset FROM shared"))

    def advance(self, duration: timedelta) -> None:
        """Move the clock of everybody."""
        self.connection.execute(
            "UPDATE shared SET clock_offset = clock_offset + ?",
            (duration // timedelta(microseconds=1),),
        )

    def ticket(self) -> int:
        """Give out a number, only once."""
        return self._value("UPDATE shared SET tickets = tickets + 1 RETURNING tickets")

    def queued(self, now: datetime) -> int:
        """Count the requests of batches that have not ended."""
        return self._value(
            "SELECT coalesce(sum(size), 0) FROM batches WHERE ends_at > ?", microseconds(now)
        )

    def insert(self, course: Course) -> None:
        """Make a batch visible."""
        marks = ", ".join("?" * len(_values(course)))
        self.connection.execute(
            f"INSERT INTO batches ({_COLUMNS}) VALUES ({marks})", _values(course)
        )

    def update(self, course: Course) -> None:
        """Store what became of a batch."""
        self.connection.execute(
            f"UPDATE batches SET ({_COLUMNS}) = ({', '.join('?' * len(_values(course)))}) "
            "WHERE id = ?",
            (*_values(course), course.id),
        )

    def mark_deleted(self, batch_id: str) -> None:
        """Hide a batch; cursors that name it still work."""
        self.connection.execute("UPDATE batches SET deleted = 1 WHERE id = ?", (batch_id,))

    def course(self, batch_id: str) -> Course | None:
        """Find the batch of that id, unless it was deleted."""
        found = self._courses("WHERE id = ? AND NOT deleted", batch_id)
        return found[0] if found else None

    def courses(self) -> list[Course]:
        """Find all batches, the oldest first."""
        return self._courses("WHERE NOT deleted ORDER BY number")

    def courses_not_ended(self, now: datetime) -> list[Course]:
        """Find the batches that have not ended."""
        return self._courses("WHERE ends_at > ? AND NOT deleted", microseconds(now))

    def all_ids(self) -> list[tuple[str, bool]]:
        """List each batch there ever was, the oldest first, and whether it was deleted."""
        rows = self.connection.execute("SELECT id, deleted FROM batches ORDER BY number")
        return [(batch_id, bool(deleted)) for batch_id, deleted in rows]

    def number(self, batch_id: str) -> int | None:
        """Find the place of a batch in the list, deleted or not."""
        rows = self.connection.execute("SELECT number FROM batches WHERE id = ?", (batch_id,))
        return next((number for (number,) in rows.fetchall()), None)

    def newest(self, *, before: int | None, limit: int) -> list[Course]:
        """Find the newest batches, of those that are older than number ``before``."""
        return self._courses(
            "WHERE (? IS NULL OR number < ?) AND NOT deleted ORDER BY number DESC LIMIT ?",
            *(before, before, limit),
        )

    def next_newer(self, *, after: int, limit: int) -> list[Course]:
        """Find the batches just newer than number ``after``, the oldest first."""
        return self._courses(
            "WHERE number > ? AND NOT deleted ORDER BY number LIMIT ?", after, limit
        )

    def times_seen(self, content: bytes) -> int:
        """Count how often a question was submitted."""
        return self._value("SELECT coalesce(max(times), 0) FROM seen WHERE content = ?", content)

    def add_seen(self, times: Counter[bytes]) -> None:
        """Count questions."""
        self.connection.executemany(
            "INSERT INTO seen VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET times = times + excluded.times",
            times.items(),
        )

    def lives_until(self, prefix: bytes) -> datetime | None:
        """Find until when a prefix is in the prompt cache."""
        until = self._value("SELECT max(lives_until) FROM prefixes WHERE prefix = ?", prefix)
        return None if until is None else at_microseconds(until)

    def add_prefixes(self, prefixes: Mapping[bytes, datetime], *, now: datetime) -> None:
        """Put prefixes into the prompt cache, and drop those whose time is over."""
        self.connection.execute("DELETE FROM prefixes WHERE lives_until <= ?", (microseconds(now),))
        self.connection.executemany(
            "INSERT OR REPLACE INTO prefixes VALUES (?, ?)",
            ((prefix, microseconds(until)) for prefix, until in prefixes.items()),
        )

    def _courses(self, where: str, *parameters: object) -> list[Course]:
        rows = self.connection.execute(f"SELECT {_COLUMNS} FROM batches {where}", parameters)
        return [_course(row) for row in rows.fetchall()]

    def _value(self, query: str, *parameters: object) -> Any:  # noqa: ANN401 - SQLite has no types
        # All rows are fetched: a statement that is not finished keeps its lock.
        return self.connection.execute(query, parameters).fetchall()[0][0]


def _values(course: Course) -> tuple[str | int | None, ...]:
    counts = course.counts
    return (
        *(course.id, course.size, course.created_at, course.finishes_at, course.ends_at),
        *(course.canceled_at, course.processed),
        *(counts.succeeded, counts.errored, counts.canceled, counts.expired),
    )


def _course(row: tuple[Any, ...]) -> Course:
    batch_id, size, created_at, finishes_at, ends_at, canceled_at, processed, *counts = row
    succeeded, errored, canceled, expired = counts
    return Course(
        id=batch_id,
        size=size,
        created_at=created_at,
        finishes_at=finishes_at,
        ends_at=ends_at,
        canceled_at=canceled_at,
        processed=processed,
        counts=RequestCounts(0, succeeded, errored, canceled, expired),
    )
