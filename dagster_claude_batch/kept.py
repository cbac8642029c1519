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
from traceback import clear_frames
from typing import Final

import duckdb

from dagster_claude_batch.duckdb_errors import is_failure, is_open_here
from dagster_claude_batch.identifiers import quote_identifier

Connection = duckdb.DuckDBPyConnection

USER_AGENT: Final = {"custom_user_agent": "dagster"}
"""As Dagster's own resource calls itself."""

_OWN_NAME: Final = "dagster_claude_batch"
"""What a kept DuckDB calls the database in memory that it begins with: no file, and no schema that
people write into a query, may have the same name."""

_TAKEN: Final = frozenset(
    {"", "main", "memory", "temp", "system", "pg_catalog", "information_schema", _OWN_NAME}
)


def name_of(file: Path) -> str | None:
    """The name of a file's database, as if one had connected to it; None if it cannot be attached.

    DuckDB takes what stands before the first point.
    """
    name = file.name.split(".")[0]
    return None if name.casefold() in _TAKEN else name


@contextmanager
def in_memory() -> Generator[Connection]:
    """Connect to a DuckDB without tables or files, which can spill nothing to the disk."""
    with _KEPT.lock:
        kept = _KEPT.of(None)
        connection = kept.enter()
    with _leaving(kept, connection):
        connection.execute(f"USE {kept.name}.main")
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
        connection.execute(f"USE {kept.name}.main")
        yield connection


@dataclass
class _Kept:
    """A DuckDB, to which a file is attached as long as somebody here uses it.

    Where somebody has left a result unread, it cannot be detached: it stays, for who comes next.
    """

    file: Path | None
    started: Connection
    users: int = 0
    is_attached: bool = False
    is_spoilt: bool = False

    @property
    def name(self) -> str:
        """What the database is called, quoted."""
        return quote_identifier((self.file and name_of(self.file)) or _OWN_NAME)

    def enter(self) -> Connection:
        """Open the file, unless it is open here, and connect."""
        if self.file is not None and not self.is_attached:
            path = str(self.file).replace("'", "''")
            self.started.execute(f"ATTACH '{path}' AS {self.name}")
            self.is_attached = True
        self.users += 1
        return self.started.cursor()

    def leave(self) -> None:
        """Close the file if nobody here uses it any more."""
        self.users -= 1
        if self.users:
            return
        if self.is_attached:
            with suppress(duckdb.Error):
                self.started.execute(f"DETACH {self.name}")
                self.is_attached = False
        if self.is_spoilt:
            self.started.close()
            _KEPT.databases.pop(self.file, None)


@dataclass
class _AllKept:
    """Those of this process, by file."""

    lock: Lock = field(default_factory=Lock)
    databases: dict[Path | None, _Kept] = field(default_factory=dict[Path | None, _Kept])
    inherited: list[_Kept] = field(default_factory=list[_Kept])

    def of(self, file: Path | None) -> _Kept:
        if file not in self.databases:
            # What it spills goes where it would go if one connected to the file.
            spilled = "" if file is None else f"{file}.tmp"
            started = duckdb.connect(config={**USER_AGENT, "temp_directory": spilled})
            started.execute(f"ATTACH ':memory:' AS {_OWN_NAME}")
            started.execute(f"USE {_OWN_NAME}")
            started.execute("DETACH memory")
            self.databases[file] = _Kept(file, started)
        return self.databases[file]

    def before_fork(self) -> None:
        """Close what nobody uses, and let nobody open anything until the fork is over."""
        self.lock.acquire()
        for file, kept in list(self.databases.items()):
            if kept.users == 0:
                kept.started.close()
                del self.databases[file]

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self.lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: threads do not come along, nor do locks of files."""
        self.inherited += self.databases.values()  # kept, or their ends would write the files
        self.databases.clear()
        self.lock = Lock()


_KEPT: Final = _AllKept()
os.register_at_fork(
    before=_KEPT.before_fork,
    after_in_parent=_KEPT.after_fork_in_parent,
    after_in_child=_KEPT.after_fork_in_child,
)


@contextmanager
def _leaving(kept: _Kept, connection: Connection) -> Generator[None]:
    """Leave a DuckDB, and for good if reading or writing failed: it may not work any more."""
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        is_failed = isinstance(error, (duckdb.Error, OSError, RuntimeError)) and is_failure(error)
        kept.is_spoilt = kept.is_spoilt or is_failed
        # What it names was being read, and would keep the file open for as long as it is known.
        clear_frames(error.__traceback__)
        raise
    finally:
        with suppress(duckdb.Error):
            connection.close()
        with _KEPT.lock:
            kept.leave()
