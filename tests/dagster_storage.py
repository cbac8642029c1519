"""Where the Dagsters of these tests keep runs and events: SQLite, or a PostgreSQL of their own.

With ``E2E_STORAGE=PostgreSQL`` each Dagster gets a server on loopback, gone when it is.
"""

import atexit
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

STORAGE: Final = os.environ.get("E2E_STORAGE", "SQLite")
IS_SQLITE: Final = STORAGE == "SQLite"

_USER: Final = "postgres"
"""Whom PostgreSQL runs as if these tests run as root, which it refuses to be."""


@contextmanager
def storage_yaml(home: Path, port: int) -> Generator[str]:
    """Start what the storage needs; what ``dagster.yaml`` says of it. ``port`` is a free one.

    A Dagster that is started again in the same home finds there what it had left.
    """
    if IS_SQLITE:
        yield ""
        return
    if STORAGE != "PostgreSQL":
        raise ValueError(f"E2E_STORAGE is SQLite or PostgreSQL, not {STORAGE!r}")
    with _postgres(home, port) as url:
        yield f"storage:\n  postgres:\n    postgres_url: {url}\n"


_DIRECTORIES: Final[dict[Path, Path]] = {}
"""Where the PostgreSQL of each home keeps its data, until these tests end."""


def _directory_of(home: Path, user: dict[str, Any]) -> Path:
    """The directory of a home's PostgreSQL, made when it is first asked for."""
    if home not in _DIRECTORIES:
        directory = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # sockets: a short path
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        if user:
            owner = pwd.getpwnam(_USER)
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        init = [_program("initdb"), "-D", directory / "data", "-A", "trust", "-U", "dagster"]
        init.append("--no-sync")
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, cwd="/", **user)
        _DIRECTORIES[home] = directory
    return _DIRECTORIES[home]


@contextmanager
def _postgres(home: Path, port: int) -> Generator[str]:
    user: dict[str, Any] = {"user": _USER, "group": _USER} if os.geteuid() == 0 else {}
    directory = _directory_of(home, user)
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": directory,
        "fsync": "off",
        "max_connections": 300,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    server = subprocess.Popen(
        [_program("postgres"), "-D", directory / "data", "-p", str(port), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **user,
    )
    try:
        ready = [_program("pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "30"]
        while subprocess.run(ready, check=False, stdout=subprocess.DEVNULL).returncode:
            if server.poll() is not None:
                raise RuntimeError(f"PostgreSQL has ended with {server.returncode}")
        # SQLAlchemy would take another driver than the one that comes with dagster-postgres.
        yield f"postgresql+psycopg2://dagster@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def events_locked(home: Path, run_id: str) -> Generator[None]:
    """Stop whoever writes events of a run into the PostgreSQL of the Dagster in ``home``."""
    import psycopg2  # noqa: PLC0415  # comes with dagster-postgres, which few have

    (url,) = re.findall(r"postgres_url: .+(://.+)", (home / "dagster.yaml").read_text())
    with closing(psycopg2.connect(f"postgresql{url}")) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SELECT pg_advisory_lock(1)")
        cursor.execute(_WAITING_TRIGGER, {"run_id": run_id})
        try:
            yield
        finally:
            # What the killed were about to write would be written as soon as it could be.
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks "
                "WHERE locktype = 'advisory' AND NOT granted"
            )
            cursor.execute("SELECT pg_advisory_unlock(1)")
            cursor.execute("DROP TRIGGER waits ON event_logs")


_WAITING_TRIGGER: Final = """
    CREATE OR REPLACE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END';
    CREATE TRIGGER waits BEFORE INSERT ON event_logs
        FOR EACH ROW WHEN (NEW.run_id = %(run_id)s) EXECUTE FUNCTION waits();
"""


def _program(name: str) -> str:
    """A program of PostgreSQL, which Debian keeps out of the way."""
    directories = [os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which(name, path=os.pathsep.join(directories))
    if found is None:
        raise FileNotFoundError(f"{name}: install PostgreSQL for E2E_STORAGE=PostgreSQL")
    return found
