"""The DuckDBs that this process keeps: to start one takes ten times as long as to open a file.

A file is attached to one of them for as long as it is used, and detached afterwards: nothing of it
stays open, and nothing stays locked.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

import duckdb

from dagster_claude_batch.duckdb_errors import is_open_here
from dagster_claude_batch.identifiers import quote_identifier

Connection = duckdb.DuckDBPyConnection

USER_AGENT: Final = {"custom_user_agent": "dagster"}
"""As Dagster's own resource calls itself."""

TAKEN: Final = frozenset({"memory", "temp", "system"})
"""Names that a DuckDB has for databases of its own: a file called so cannot be attached."""


@contextmanager
def in_memory() -> Generator[Connection]:
    """Connect to a DuckDB without tables or files, which can spill nothing to the disk."""
    with _KEPT.lock:
        kept = _KEPT.of(None)
        connection = kept.enter()
    with _leaving(kept, connection):
        yield connection


@contextmanager
def attached(file: Path) -> Generator[Connection | None]:
    """Connect to a file's database; None if it is open in another DuckDB of this process."""
    with _KEPT.lock:
        kept = _KEPT.of(file)
        try:
            connection = kept.enter()
        except duckdb.Error as error:
            if not is_open_here(error):
                raise
            connection = None
    if connection is None:
        yield None
        return
    with _leaving(kept, connection):
        connection.execute(f"USE {kept.name}")
        yield connection


@dataclass
class _Kept:
    """A DuckDB, to which a file is attached as long as somebody here uses it."""

    file: Path | None
    started: Connection
    users: int = 0
    is_spoilt: bool = False

    @property
    def name(self) -> str:
        """What the database is called: as its file, as if one had connected to that."""
        return quote_identifier(self.file.stem if self.file else "memory")

    def enter(self) -> Connection:
        """Open the file, unless it is open here, and connect."""
        if self.users == 0 and self.file is not None:
            path = str(self.file).replace("'", "''")
            self.started.execute(f"ATTACH '{path}' AS {self.name}")
        self.users += 1
        return self.started.cursor()

    def leave(self) -> None:
        """Close the file if nobody here uses it any more."""
        self.users -= 1
        if self.users:
            return
        if self.file is not None and not self.is_spoilt:
            try:
                self.started.execute(f"DETACH {self.name}")
            except duckdb.Error:
                self.is_spoilt = True
        if self.is_spoilt:
            self.started.close()
            _KEPT.databases.pop(self.file, None)


@dataclass
class _AllKept:
    """Those of this process, by file."""

    lock: Lock = field(default_factory=Lock)
    databases: dict[Path | None, _Kept] = field(default_factory=dict[Path | None, _Kept])

    def of(self, file: Path | None) -> _Kept:
        if file not in self.databases:
            # What it spills goes where it would go if one connected to the file.
            spilled = "" if file is None else f"{file}.tmp"
            started = duckdb.connect(config={**USER_AGENT, "temp_directory": spilled})
            self.databases[file] = _Kept(file, started)
        return self.databases[file]

    def close_idle(self) -> None:
        """Close what nobody uses: its threads do not come along into a forked process."""
        with self.lock:
            for file, kept in list(self.databases.items()):
                if kept.users == 0:
                    kept.started.close()
                    del self.databases[file]


_KEPT: Final = _AllKept()
os.register_at_fork(before=_KEPT.close_idle)


@contextmanager
def _leaving(kept: _Kept, connection: Connection) -> Generator[None]:
    """Leave a DuckDB, and for good after an error: nobody knows in what state it is then."""
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException:
        kept.is_spoilt = True
        raise
    finally:
        with suppress(duckdb.Error):
            connection.close()
        with _KEPT.lock:
            kept.leave()
