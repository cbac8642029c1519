"""Planted secrets, and a search of everything that a run leaves behind for them."""

import logging
import os
import stat
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from kit import Project

KEY = "sk-ant-api03-PLANTEDKEY"
ROW = "PLANTEDROW"
TEMPLATE = "PLANTEDTEMPLATE"
SYSTEM = "PLANTEDSYSTEM"
SECRETS = (KEY, ROW, TEMPLATE, SYSTEM)
PLANTED = {"prompt": f"Rate {{{{ id }}}} {TEMPLATE}: {{{{ text }}}}", "system": f"Be {SYSTEM}."}


def secrets_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def plant(project: Project, rows: int = 4) -> Project:
    project.load([("tweets", f"t{n}", f"{ROW} number {n}") for n in range(rows)])
    return project


class Records(logging.Handler):
    """Everything that any logger says, at any level."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.told: list[str] = []
        self.loggers: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name)
        self.told += [record.getMessage(), repr(record.args), repr(vars(record))]
        if record.exc_info and record.exc_info[1]:
            self.told.append(everything_about(record.exc_info[1]))


@contextmanager
def all_logs() -> Iterator[Records]:
    """Let every logger that there is tell everything."""
    records = Records()
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in list(root.manager.loggerDict))]
    levels = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    root.addHandler(records)
    try:
        yield records
    finally:
        root.removeHandler(records)
        for logger, level in levels.items():
            logger.setLevel(level)


def everything_about(error: BaseException) -> str:
    """What an error says, and all errors that it comes from."""
    told = ["".join(traceback.format_exception(error))]
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            told += [str(each), repr(each), repr(each.args), repr(getattr(each, "body", None))]
            left += [each.__cause__, each.__context__]
    return "\n".join(told)


def ledger_text(project: Project) -> str:
    """All columns of all tables of the ledger."""
    tables = project.sql(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'claude_batch'"
    )
    return "\n".join(
        str(row)
        for (table,) in tables
        for row in project.sql(f'SELECT CAST(t AS VARCHAR) FROM claude_batch."{table}" AS t')
    )


class WatchedFiles(httpx2.BaseTransport):
    """A transport that looks at the temporary files whenever bytes pass it."""

    def __init__(self, transport: httpx2.BaseTransport, directory: Path) -> None:
        self.transport = transport
        self.directory = directory
        self.looks = 0
        self.unlinked: list[str] = []
        self.problems: list[str] = []
        self.bodies: list[bytes] = []
        self.keys: set[str] = set()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(request.read())
        self.keys.add(request.headers.get("authorization", ""))
        self._look()
        response = self.transport.handle_request(request)
        return httpx2.Response(
            response.status_code, headers=response.headers, content=self._pieces(response)
        )

    def _pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        body = response.read()
        for start in range(0, len(body), 1_000):
            yield body[start : start + 1_000]
            self._look()

    def _look(self) -> None:
        self.looks += 1
        for path in self.directory.rglob("*"):
            mode = path.stat().st_mode
            if stat.S_IMODE(mode) & 0o077:
                self.problems.append(f"{path.name} is open to others: {stat.filemode(mode)}")
            elif path.is_file():
                self.problems.append(f"{path.name} has a name")
        for status in open_files(self.directory):
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_size:
                self.unlinked.append(stat.filemode(status.st_mode))


def open_files(directory: Path) -> Iterator[os.stat_result]:
    """The files that are open here and are, or were, in a directory."""
    for path in Path("/dev/fd").iterdir():
        try:
            if path.readlink().is_relative_to(directory):
                yield os.fstat(int(path.name))
        except OSError:
            continue
