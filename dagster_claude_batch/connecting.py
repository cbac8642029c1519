"""How the database of a resource is opened, for one transaction at a time."""

import re
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
from dagster_duckdb import DuckDBResource

from dagster_claude_batch import kept
from dagster_claude_batch.duckdb_errors import without_credentials
from dagster_claude_batch.warehouse import Connection, Warehouse


def warehouse_of(database: object, *, log: Any) -> Warehouse:  # noqa: ANN401  # Dagster's log manager, see `engine_for`
    """The database that a resource opens."""
    return Warehouse(
        lambda: open_connection(database),
        name=_name_of(database),
        file=_file_of(database),
        log=log,
    )


def _name_of(resource: object) -> str:
    """What to call a resource's database; an address may carry a token."""
    database = getattr(resource, "database", None)
    return without_credentials(database) if isinstance(database, str) else "of the run"


def _file_of(resource: object) -> Path | None:
    """The database's file; None for one that is in memory or has an address (``md:…``)."""
    if not isinstance(resource, DuckDBResource):
        return None
    has_address = re.match(r"[a-z0-9_]{2,}:|:memory:|$", resource.database, re.IGNORECASE)
    return None if has_address else Path(resource.database)


def open_connection(resource: Any) -> AbstractContextManager[Connection]:  # noqa: ANN401  # any resource that opens DuckDB
    """Open what a resource yields: `get_connection()`, or `duckdb_connect()` of dagster-ducklake.

    Raises:
        TypeError: The resource has neither.
    """
    if isinstance(resource, DuckDBResource) and _is_plain(resource):
        file = _file_of(resource)
        if file is None or resource.connection_config or kept.name_of(file) is None:
            return _connect(resource)
        return _attached(file, resource)
    for name in ("get_connection", "duckdb_connect"):
        opener = getattr(resource, name, None)
        if opener is not None:
            return opener()
    raise TypeError(
        f"The DuckDB resource is a {type(resource)!r}, which has neither get_connection() "
        "nor duckdb_connect(). Use dagster_duckdb.DuckDBResource."
    )


def _is_plain(resource: DuckDBResource) -> bool:
    """Whether a resource connects as Dagster's own does."""
    return type(resource).get_connection is DuckDBResource.get_connection


@contextmanager
def _connect(resource: DuckDBResource) -> Generator[Connection]:
    """Connect as the resource would, but once, and in UTC.

    Its own retries double their pauses for 102 s, and so notice a lock's end far too late. A
    prompt says an aware time in the connection's zone, by default the machine's: on another
    machine it would be another question.
    """
    config = {**kept.USER_AGENT, **resource.connection_config}
    with closing(duckdb.connect(resource.database, read_only=False, config=config)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@contextmanager
def _attached(file: Path, resource: DuckDBResource) -> Generator[Connection]:
    """Open a file for one transaction, or share what somebody else in this process has open."""
    with kept.attached(file) as own:
        if own is not None:
            own.execute("SET TimeZone = 'UTC'")
            yield own
            return
    with _connect(resource) as shared:
        yield shared
