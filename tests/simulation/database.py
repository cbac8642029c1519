"""The warehouse as a run sees it: each transaction is a place where its process may end."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from simulation.baton import Boundary
from simulation.boundaries import site_here

CONFIG = {"custom_user_agent": "dagster"}


class Database:
    """What `engine_for` opens: connections that pause before, within and after a transaction."""

    def __init__(self, path: Path, pause: Callable[[Boundary], Any]) -> None:
        self._path = path
        self._pause = pause

    @contextmanager
    def get_connection(self) -> Generator["_Paused"]:
        site = site_here()
        self._pause(Boundary(site, "before"))
        real = duckdb.connect(str(self._path), config=CONFIG)
        connection = _Paused(real, lambda moment: self._pause(Boundary(site, moment)))
        try:
            yield connection
        finally:
            real.close()


class _Paused:
    """A connection whose commit is watched."""

    def __init__(self, real: duckdb.DuckDBPyConnection, pause: Callable[[Any], Any]) -> None:
        self._real = real
        self._pause = pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def commit(self) -> None:
        self._pause("commit")
        self._real.commit()
        self._pause("after")
