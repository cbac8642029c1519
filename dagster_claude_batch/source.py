"""The rows of a partition: what is asked about, selected and rendered inside DuckDB."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import duckdb

from dagster_claude_batch import duckdb_errors
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import (
    ColumnTypeChangedError,
    DeclarationError,
    MissingColumnError,
    SourceFailedError,
    SourceNotFoundError,
)
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.matching import selected_is_selected
from dagster_claude_batch.request.leaf import Function, Scope, functions_on
from dagster_claude_batch.request.packing import own_sql
from dagster_claude_batch.tables import TableName, columns_of, exists
from dagster_claude_batch.warehouse import Connection

_TIMESTAMPTZ: Final = "TIMESTAMP WITH TIME ZONE"


@dataclass(frozen=True)
class Equals:
    """One value of one partition dimension."""

    value: str


@dataclass(frozen=True)
class Within:
    """One time window of a partition dimension: start included, end not. Both aware."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class PartitionSlice:
    """A partition key and the rows it stands for; no bounds and key None: all rows."""

    key: str | None
    bounds: tuple[Equals | Within, ...] = ()


@dataclass(frozen=True)
class Query:
    """SQL with its parameters, and the functions that it calls."""

    sql: str
    parameters: Mapping[str, object]
    functions: tuple[Function, ...] = ()
    has_surplus: bool = False

    def callable_on(self, connection: Connection) -> AbstractContextManager[None]:
        """Let a connection run it: a context in which it knows the query's functions."""
        return functions_on(connection, self.functions)


@dataclass(frozen=True)
class SourceTable:
    """The source as it is now: what to select from, and the types of its columns."""

    relation: str
    columns: Mapping[str, str]

    def column(self, asset: str, argument: str, name: str) -> str:
        """The column's own spelling of a name, which DuckDB matches whatever its case.

        Raises:
            MissingColumnError: There is none.
        """
        for candidate in self.columns:
            if candidate.casefold() == name.casefold():
                return candidate
        raise MissingColumnError(asset, argument, name, list(self.columns))

    def expression(self, text: str) -> str:
        """What the user wrote, as SQL: a column, even of an odd name, or an expression."""
        named = [name for name in self.columns if name.casefold() == text.strip().casefold()]
        return quote_identifier(named[0]) if named else f"(\n{text}\n)"

    def type_of(self, asset: str, argument: str, name: str) -> str:
        """The DuckDB type of a column."""
        return self.columns[self.column(asset, argument, name)]


def find_source(connection: Connection, declaration: Declaration) -> SourceTable:
    """Look at the source table or query.

    Raises:
        SourceNotFoundError: It does not exist, or its SQL does not run.
        MissingColumnError: A column that the declaration names is not there.
    """
    relation = declaration.query_relation or _found(connection, declaration).sql
    try:
        source = SourceTable(relation, columns_of(connection, relation))
    except duckdb_errors.RAISED as error:
        if not duckdb_errors.is_of_source(error):
            raise
        problem = duckdb_errors.problem_of_source(error)
        # Not chained: DuckDB's own message quotes the query, and Dagster stores whole chains.
        raise SourceNotFoundError(declaration.asset, declaration.source_label, problem) from None
    _check_columns(declaration, source)
    return source


def _found(connection: Connection, declaration: Declaration) -> TableName:
    """The first of the candidates that is there; if none is, the first of all."""
    first, *others = declaration.source_candidates
    if not others or exists(connection, first):
        return first
    return next((table for table in others if exists(connection, table)), first)


@contextmanager
def reading(declaration: Declaration) -> Generator[None]:
    """Explain what goes wrong while the source's rows are read, without showing any of them.

    Raises:
        SourceFailedError: A value or an expression of the source cannot be worked with.
    """
    try:
        yield
    except duckdb_errors.RAISED as error:
        if not duckdb_errors.is_of_source(error):
            raise
        problem = duckdb_errors.problem_of_source(error)
        problem = re.sub(r"column e\d+\b", "`partition_expr`", problem)  # as `_picked` names it
        # Not chained: DuckDB's own message quotes values, and Dagster stores whole chains.
        raise SourceFailedError(declaration.asset, problem) from None


def _check_columns(declaration: Declaration, source: SourceTable) -> None:
    for argument, names in (
        ("row_key", declaration.row_key),
        ("include", declaration.include),
        ("prompt", declaration.shape.columns),
    ):
        for name in names:
            source.column(declaration.asset, argument, name)


def row_key_types(declaration: Declaration, source: SourceTable) -> dict[str, str]:
    """Name and type of the key columns, as declared."""
    asset = declaration.asset
    return {name: source.type_of(asset, "row_key", name) for name in declaration.row_key}


def include_types(declaration: Declaration, source: SourceTable) -> dict[str, str]:
    """Name and type of the `include` columns, as declared."""
    asset = declaration.asset
    return {name: source.type_of(asset, "include", name) for name in declaration.include}


def refuse_changed_keys(
    connection: Connection, declaration: Declaration, ours: TableName, source: SourceTable
) -> None:
    """Check that the source's rows can still be told by the keys that were planned.

    Raises:
        ColumnTypeChangedError: A key column has another type now.
    """
    known = {name.casefold(): kind for name, kind in columns_of(connection, ours.sql).items()}
    for name, kind in row_key_types(declaration, source).items():
        if known.get(name.casefold(), kind) != kind:
            is_type = known[name.casefold()]
            raise ColumnTypeChangedError(str(ours), name, is_type=is_type, should_be=kind)


def select_rows(
    connection: Connection,
    declaration: Declaration,
    source: SourceTable,
    slices: Sequence[PartitionSlice],
    *,
    only: str | None = None,
    max_tokens: int | None = None,
    writes: bool = False,
) -> Query:
    """Select the partitions' rows, rendered.

    Columns: ``k0`` … the row key, ``i0`` … the `include` columns, ``partition``, ``reason`` (why
    the row cannot be asked, else NULL), ``hash`` and ``fingerprint`` (both NULL where ``reason`` is
    not), ``bytes`` (of the row's own part of its request) and ``params`` (all of the request's, as
    JSON, with ``max_tokens``). Where rows may share a request, ``own`` is what is theirs of what
    they are asked; with ``writes``, ``surplus`` is how many bytes more than tokens the request has,
    if it is not all text. ``only`` names a relation with ``k0`` … and ``partition``: other rows are
    left out before anything is rendered. Only with ``writes`` are the ``params`` whole.
    """
    shape = declaration.shape
    used = tuple(source.columns) if shape.needs_whole_row else shape.columns
    picked = _picked(declaration, source, used)
    sliced, bound = _sliced(connection, declaration, source, slices)
    restricted = _restricted(declaration, only)
    aliases = {column: f"c{number}" for number, column in enumerate(used)}
    types = {column: source.type_of(declaration.asset, "prompt", column) for column in used}
    scope = Scope(aliases, types, writes=writes)
    leaves = [f"{leaf.value(scope)} AS v{number}" for number, leaf in enumerate(shape.leaves)]
    values = [f"v{number}" for number in range(len(leaves))]
    keys = _aliases("k", declaration.row_key) + _aliases("i", declaration.include)
    # A value may be the work of a Python function, which must not be done once more for each use.
    once = "MATERIALIZED" if scope.functions else ""
    nulls = {column: aliases[column] for column in shape.columns}
    shares = writes and declaration.packing is not None
    surplus = shape.surplus_sql(values, scope) if writes else None
    more = f", ({surplus})::BIGINT AS surplus" if surplus else ""
    own = f", {own_sql(shape, values, scope)} AS own" if shares else ""
    sql = f"""
        WITH picked AS ({picked}),
        sliced AS ({sliced}),
        restricted AS ({restricted}),
        rendered AS {once} (
            SELECT {", ".join([*keys, "partition", *leaves])}, {_null_reason(nulls)} AS null_reason
            FROM restricted
        ),
        judged AS (
            SELECT * EXCLUDE (null_reason),
                coalesce(null_reason, {shape.problem_sql(values, scope)}) AS reason
            FROM rendered
        )
        SELECT * EXCLUDE ({", ".join(values)}),
            CASE WHEN reason IS NULL THEN {shape.hash_sql(values, scope)} END AS hash,
            CASE WHEN reason IS NULL THEN {shape.fingerprint_sql(values, scope)} END
                AS fingerprint,
            {shape.size_sql(values, scope)} AS bytes,
            {shape.json_sql(values, scope, max_tokens=f"{max_tokens or declaration.max_tokens:d}")}
                AS params {own} {more}
        FROM judged
    """
    parameters = {**bound, **scope.parameters, **_null_reasons(shape.columns)}
    return Query(sql, parameters, tuple(scope.functions), has_surplus=bool(surplus))


def _aliases(letter: str, names: Sequence[str]) -> list[str]:
    return [f"{letter}{number}" for number in range(len(names))]


def _picked(declaration: Declaration, source: SourceTable, used: Sequence[str]) -> str:
    """The source's columns under names of our own, so that no name of theirs can collide."""
    groups = (("k", "row_key", declaration.row_key), ("i", "include", declaration.include))
    columns = [
        f"{quote_identifier(source.column(declaration.asset, argument, name))} AS {letter}{number}"
        for letter, argument, names in (*groups, ("c", "prompt", used))
        for number, name in enumerate(names)
    ]
    columns += [
        f"{source.expression(expression)} AS e{number}"
        for number, expression in enumerate(declaration.partition_exprs)
    ]
    return f"SELECT {', '.join(columns)} FROM {source.relation} AS source"


def _sliced(
    connection: Connection,
    declaration: Declaration,
    source: SourceTable,
    slices: Sequence[PartitionSlice],
) -> tuple[str, dict[str, object]]:
    """Give each row its partition; rows of no partition asked for are left out."""
    if not declaration.partition_exprs:
        return "SELECT *, CAST(NULL AS VARCHAR) AS partition FROM picked", {}
    columns = ["unnest($slice_keys) AS slice_key"]
    conditions: list[str] = []
    bound: dict[str, object] = {"slice_keys": [part.key for part in slices]}
    for number, expression in enumerate(declaration.partition_exprs):
        with reading(declaration):
            kind = _type_of_expression(connection, source, expression)
        bounds = [part.bounds[number] for part in slices]
        if all(isinstance(bound_, Equals) for bound_ in bounds):
            columns.append(f"unnest($slice_{number}) AS value{number}")
            bound[f"slice_{number}"] = [b.value for b in bounds if isinstance(b, Equals)]
            conditions.append(f"e{number} = {_cast('value', number, kind)}")
        else:
            columns += [
                f"unnest($slice_{number}_start) AS start{number}",
                f"unnest($slice_{number}_end) AS end{number}",
            ]
            windows = [b for b in bounds if isinstance(b, Within)]
            bound[f"slice_{number}_start"] = [_moment(b.start, kind) for b in windows]
            bound[f"slice_{number}_end"] = [_moment(b.end, kind) for b in windows]
            conditions += _window_conditions(number, kind)
    sql = f"""
        SELECT picked.*, slice_key AS partition
        FROM picked JOIN (SELECT {", ".join(columns)}) AS slices ON {" AND ".join(conditions)}
    """
    return sql, bound


def _cast(name: str, number: int, kind: str) -> str:
    """A bound as a value of the expression's type; one that is none matches no row."""
    return f"{name}{number}" if kind == "VARCHAR" else f"TRY_CAST({name}{number} AS {kind})"


def _window_conditions(number: int, kind: str) -> list[str]:
    moment = "TIMESTAMP" if kind == "VARCHAR" else kind
    value = f"CAST(e{number} AS {moment})" if kind == "VARCHAR" else f"e{number}"
    return [
        f"{value} >= CAST(start{number} AS {moment})",
        f"{value} < CAST(end{number} AS {moment})",
    ]


def _moment(moment: datetime, kind: str) -> str:
    """A bound in local time, as Dagster's IO managers write it, unless the column is aware."""
    if kind == _TIMESTAMPTZ:
        return moment.isoformat(" ")
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def _type_of_expression(connection: Connection, source: SourceTable, expression: str) -> str:
    (kind,) = columns_of(
        connection,
        f"(SELECT {source.expression(expression)} AS e FROM {source.relation} AS source)",
    ).values()
    return kind


def _restricted(declaration: Declaration, only: str | None) -> str:
    if only is None:
        return "FROM sliced"
    same = selected_is_selected(declaration, "sliced", "chosen")
    return f"FROM sliced SEMI JOIN {only} AS chosen ON {same}"


def _null_reason(aliases: Mapping[str, str]) -> str:
    """Which of the columns that the prompt needs is NULL, as a sentence."""
    cases = [
        f"WHEN {alias} IS NULL THEN $null_reason_{number}"
        for number, alias in enumerate(aliases.values())
    ]
    return f"CASE {' '.join(cases)} END" if cases else "CAST(NULL AS VARCHAR)"


def _null_reasons(columns: Sequence[str]) -> dict[str, str]:
    return {
        f"null_reason_{number}": f"Column {column!r}, which the prompt needs, is NULL."
        for number, column in enumerate(columns)
    }


_NAME_PART: Final = re.compile(r'"((?:[^"]|"")+)"|([^."]+)')


def parse_table_name(text: str) -> TableName | None:
    """Read ``table``, ``schema.table`` or ``database.schema.table``; parts may be quoted."""
    parts: list[str] = []
    position = 0
    while True:
        found = _NAME_PART.match(text, position)
        if found is None:
            return None
        quoted, plain = found.groups()
        parts.append(quoted.replace('""', '"') if quoted is not None else plain.strip())
        position = found.end()
        if position == len(text):
            break
        if text[position] != ".":
            return None
        position += 1
    if len(parts) > 3 or not all(parts):  # noqa: PLR2004  # database, schema, table
        return None
    name, schema, database = ([*reversed(parts), None, None])[:3]
    return TableName(str(name), schema, database)


def parse_query(asset: str, query: str) -> str:
    """Check that a text is one SELECT, and write it as a relation.

    Raises:
        DeclarationError: It is something else.
    """
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise DeclarationError(asset, "query", str(error), cure="Correct the SQL.") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise DeclarationError(
            asset, "query", "it is not one SELECT.", cure="Write a single SELECT statement."
        )
    return f"(\n{statements[0].query.strip().removesuffix(';')}\n)"
