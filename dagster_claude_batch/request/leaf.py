"""A place in a request whose JSON depends on the row: written as SQL, worked out inside DuckDB."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

import duckdb
from duckdb.func import FunctionNullHandling

from dagster_claude_batch.identifiers import quote_identifier


class Leaf(Protocol):
    """Where a row's own values stand in a request.

    ``value`` is worked out first, once; all else is SQL over that. ``size`` is the number of bytes
    of ``json``, at the most; ``identity`` is what the request hash covers, as JSON; ``problem``
    says why the row cannot be asked, and is NULL where it can.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs: a row with NULL in one of them is not asked."""
        ...

    @property
    def structure(self) -> object:
        """What is declared of it besides what ``identity`` covers, as plain values."""
        ...

    def value(self, scope: "Scope") -> str:
        """What all else is worked out from."""
        ...

    def json(self, value: str, scope: "Scope") -> str:
        """Its text in the request."""
        ...

    def size(self, value: str, scope: "Scope") -> str:
        """Bytes of that."""
        ...

    def surplus(self, value: str, scope: "Scope") -> str | None:
        """How many bytes more than tokens it has, at the least; None if none for sure."""
        ...

    def identity(self, value: str, scope: "Scope") -> str:
        """What of it the request hash covers."""
        ...

    def problem(self, value: str, scope: "Scope") -> str:
        """Why the row cannot be asked."""
        ...


Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Function:
    """A Python function for SQL to call, by a name that no other query uses.

    It must not raise: what it says stands in DuckDB's error, which may be stored.
    """

    name: str
    python: Callable[..., Any]
    parameters: tuple[Any, ...]
    returns: Any


@dataclass
class Scope:
    """What the SQL of one query may refer to: the row's columns, bound values, functions.

    ``aliases`` maps each column to the SQL that yields it, ``types`` to its DuckDB type.
    ``writes``: requests will be written, and not only judged.
    """

    aliases: Mapping[str, str]
    types: Mapping[str, str] = field(default_factory=dict[str, str])
    writes: bool = True
    parameters: dict[str, object] = field(default_factory=dict[str, object])
    functions: list[Function] = field(default_factory=list[Function])

    def bind(self, value: object) -> str:
        """The parameter that stands for a value."""
        name = f"prompt_{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"

    def call(
        self, python: Callable[..., Any], argument: str, *, takes: object, returns: object
    ) -> str:
        """SQL that calls a Python function of one argument; NULL is passed as None."""
        function = Function(f"claude_batch_{uuid4().hex}", python, (takes,), returns)
        self.functions.append(function)
        return f"{function.name}({argument})"

    def row(self) -> str:
        """All columns as one STRUCT."""
        pairs = (f"{quote_identifier(name)} := {alias}" for name, alias in self.aliases.items())
        return f"struct_pack({', '.join(pairs)})"

    def row_type(self) -> object:
        """The type of `row`."""
        return duckdb.struct_type({name: duckdb.sqltype(self.types[name]) for name in self.aliases})


@contextmanager
def functions_on(
    connection: duckdb.DuckDBPyConnection, functions: Iterable[Function]
) -> Generator[None]:
    """Let a connection's SQL call functions, for as long as the context lasts."""
    made: list[str] = []
    try:
        for each in functions:
            connection.create_function(  # pyright: ignore[reportUnknownMemberType]  # names types of NumPy
                each.name,
                each.python,
                list(each.parameters),
                each.returns,
                null_handling=FunctionNullHandling.SPECIAL,
            )
            made.append(each.name)
        yield
    finally:
        for name in made:
            with suppress(duckdb.Error):  # gone with a transaction that was rolled back
                connection.remove_function(name)
