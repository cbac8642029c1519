"""What DuckDB's errors mean: a lock, a conflict, a database that cannot be worked with."""

import re
from typing import Final

import duckdb

_SHOWN: Final = 400
"""Characters of a message: a fatal error's goes on with a stack trace."""

_FAILURES: Final = (
    duckdb.IOException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.ConnectionException,
    duckdb.InterruptException,
    duckdb.OutOfMemoryException,
)

_FAILURES_IN_STREAMS: Final = re.compile(
    r"(IO|FATAL|INTERNAL|Connection|INTERRUPT|Out of Memory|HTTP) Error:"
)
"""How such a message begins when it passed through an Arrow stream, which makes it an OSError."""

_FAILURES_OF_SOURCES: Final = re.compile(r"(?:[A-Z][a-z]+ )+Error:")
"""How a message begins that is about some SQL or its data, and passed through an Arrow stream."""

_ABOUT_NAMES: Final = ("Binder Error:", "Catalog Error:")
"""Such messages name columns, tables and functions; all others may quote a value of the data."""

_NO_SUCH_FILE: Final = "No files found that match the pattern"

_TELLING: Final = re.compile(
    r"invalid \w+ field format|malformed json|could not parse string|could not convert string"
    r"|can't be cast|out of range|overflow|division by zero|more than one row returned"
    r"|syntax error|not recognized",
    re.IGNORECASE,
)
_CAST_COLUMN: Final = re.compile(r"casting from source column (\w{1,64})$")

RAISED: Final = (duckdb.Error, OSError, UnicodeDecodeError)
"""What a statement may raise: its own error; the same, when it passed through an Arrow stream; and
what Python makes of a message that quotes a value and was cut in the middle of a letter."""

_SECRETS: Final = re.compile(r"(?i)((?:token|password|secret|key)\w*\s*=\s*)[^\s&'\";]+")


_HELD_HERE: Final = "Unique file handle conflict"
"""Another thread is opening or closing the same file at this moment."""


def is_lock(error: duckdb.Error) -> bool:
    """Whether somebody else holds the database file, so that it is worth waiting for it."""
    return any(sign in str(error) for sign in ("set lock on file", "Conflicting lock", _HELD_HERE))


def is_open_here(error: duckdb.Error) -> bool:
    """Whether this process itself has the database file open in another DuckDB."""
    return _HELD_HERE in str(error)


def is_conflict(error: duckdb.Error) -> bool:
    """Whether the transaction lost against another one and can be run again."""
    is_meant = "conflict" in str(error).lower() and not is_lock(error)
    return is_meant and not _could_not_write(error)


def is_failure(error: Exception) -> bool:
    """Whether the database failed, or what is below it; never what is wrong with some SQL."""
    if isinstance(error, duckdb.TransactionException):
        return _could_not_write(error) or is_conflict(error)
    if isinstance(error, _FAILURES) or "attached in read-only mode" in str(error):
        return True
    if isinstance(error, OSError):
        return _FAILURES_IN_STREAMS.match(str(error)) is not None
    return type(error) is duckdb.Error  # a checksum that does not match has no class of its own


def is_of_source(error: Exception) -> bool:
    """Whether reading a table or query failed because of its SQL or its data."""
    if isinstance(error, duckdb.TransactionException):
        return False
    if isinstance(error, UnicodeDecodeError):
        return True
    if isinstance(error, duckdb.Error):
        # A file that a query names, and that is not there, is the query's trouble.
        is_lock_or_disk = is_failure(error) or is_lock(error)
        return _NO_SUCH_FILE in str(error) or not is_lock_or_disk
    # What came through an Arrow stream; the operating system's own errors have a number.
    is_streamed = isinstance(error, OSError) and error.errno is None
    return is_streamed and not is_failure(error) and bool(_FAILURES_OF_SOURCES.match(str(error)))


def is_signal(error: Exception) -> bool:
    """Whether a signal ended a query; DuckDB puts this in place of what its handler raised."""
    return isinstance(error, RuntimeError | OSError) and "Query interrupted" in str(error)


def holder(error: duckdb.Error) -> str:
    """Name the process that holds the lock, as DuckDB names it."""
    if is_open_here(error):
        return "another connection of this process"
    found = re.search(r"held in (.+?\(PID \d+\))", str(error))
    return found.group(1) if found else "another process"


def problem_of(error: Exception) -> str:
    """What DuckDB says, as one line and without credentials."""
    text = " ".join(str(error).partition("\nStack Trace")[0].split())
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return without_credentials(shown).rstrip(".!") + "."


def problem_of_source(error: Exception) -> str:
    """What DuckDB says of a table or query, without any value of its data or text of its SQL."""
    text = re.split(r"\s*\n\s*LINE \d+: ", _message_of(error), maxsplit=1)[0]
    if text.startswith(_ABOUT_NAMES):
        return problem_of(duckdb.Error(text))
    if _NO_SUCH_FILE in text:
        return "IO Error: a file that it names is not there."
    kind = text.partition(":")[0] if _FAILURES_OF_SOURCES.match(text) else type(error).__name__
    told = _TELLING.search(text)
    column = _CAST_COLUMN.search(text)
    said = [told.group().lower()] if told else []
    said += [f"in a cast of column {column.group(1)}"] if column else []
    return f"{kind}: {', '.join(said) or 'one of its values, or of its expressions, is invalid'}."


def _message_of(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode(errors="replace")
    return str(error)


def without_credentials(text: str) -> str:
    """A database's name or a message, without what may let somebody in."""
    return _SECRETS.sub(r"\1…", text)


def _could_not_write(error: duckdb.Error) -> bool:
    return "Failed to commit: Could not" in str(error)
