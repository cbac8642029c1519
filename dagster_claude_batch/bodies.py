"""Rows → request bodies: the bytes of chunks, written to disk by DuckDB and Arrow."""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final, Self, cast

import pyarrow as pa
import pyarrow.compute as pc

from dagster_claude_batch import chunks, warehouse
from dagster_claude_batch.arrow import column_of, values_of
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import NO_ROOM, NoTemporarySpaceError
from dagster_claude_batch.ledger import LedgerAsset
from dagster_claude_batch.matching import our_keys_as_selected, selected_is_selected
from dagster_claude_batch.request.leaf import Scope
from dagster_claude_batch.source import (
    PartitionSlice,
    Query,
    find_source,
    reading,
    refuse_changed_keys,
    select_rows,
)
from dagster_claude_batch.warehouse import Connection, read_arrow

MAX_SPOOLED_BYTES: Final = 512_000_000
"""Bodies that wait on disk at the same time."""

_CHOSEN: Final = "temp.claude_batch_sent"


@dataclass(frozen=True)
class Body:
    """One chunk's request body on disk, unlinked, so that nothing is left of it afterwards.

    All its prompts together, and the largest of them, are no more than so many tokens.
    """

    chunk: Chunk
    nonce: str
    file: IO[bytes]
    size: int
    sha256: str
    most_tokens: int
    most_tokens_of_request: int


@dataclass(frozen=True)
class Spooled:
    """What could be prepared: bodies to send, and planned chunks whose rows have changed.

    ``lacks_rows``: some of these rows were not there. As a context it closes the bodies, which
    are gone then.
    """

    bodies: list[Body]
    stale: list[Chunk]
    lacks_rows: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the bodies go."""
        for body in self.bodies:
            body.file.close()


def spool(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    chunks: Sequence[Chunk],
    slices: Sequence[PartitionSlice],
    *,
    max_bytes: int = MAX_SPOOLED_BYTES,
) -> Spooled:
    """Write the request bodies of planned chunks to disk, from the source as it is now.

    Stops at ``max_bytes``, after one chunk at the least.

    Raises:
        SourceNotFoundError, SourceFailedError, MissingColumnError, ColumnTypeChangedError: The
            source has gone or changed; the chunks stay planned.
        NoTemporarySpaceError: The bodies do not fit on the disk; the chunks stay planned.
    """
    sizes = itertools.accumulate(chunk.bytes for chunk in chunks)
    wave = [c for c, used in zip(chunks, sizes, strict=True) if used <= max_bytes]
    spools = {chunk.chunk_id: _Spool(chunk) for chunk in wave or chunks[:1]}
    try:
        _write_all(connection, declaration, registered, slices, spools)
    except BaseException as error:
        for each in spools.values():
            each.discard()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise NoTemporarySpaceError(declaration.asset, tempfile.gettempdir()) from error
        raise
    return Spooled(
        [each.finish() for each in spools.values() if each.is_fresh],
        [each.discard() for each in spools.values() if not each.is_fresh],
        any(each.found < each.planned for each in spools.values()),
    )


def read_requests(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    slices: Sequence[PartitionSlice],
    condition: str,
    parameters: Mapping[str, object],
) -> Iterator[tuple[int, int, str]]:
    """Render planned requests of which a condition on the requests table ``q`` holds.

    Yields chunk id, ordinal and ``params``, with the declared ``max_tokens``, in their order.

    Raises:
        SourceNotFoundError, SourceFailedError, MissingColumnError: The source cannot be read.
    """
    source = find_source(connection, declaration)
    _choose_rows(connection, declaration, registered, condition, parameters)
    query = select_rows(connection, declaration, source, slices, only=_CHOSEN, writes=True)
    scope = Scope({}, parameters=dict(query.parameters))
    found = _shared(declaration, query, scope, max_tokens=declaration.max_tokens)
    sql = f"SELECT chunk_id, ordinal, params FROM ({found}) ORDER BY ALL"
    with query.callable_on(connection), reading(declaration):
        for batch in read_arrow(connection, sql, scope.parameters):
            yield from zip(*(values_of(batch, column) for column in range(3)), strict=True)


def _write_all(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    slices: Sequence[PartitionSlice],
    spools: Mapping[int, "_Spool"],
) -> None:
    """Write the bodies, those of one `max_tokens` in one query."""
    source = find_source(connection, declaration)
    refuse_changed_keys(connection, declaration, registered.requests, source)
    for max_tokens, group in itertools.groupby(
        sorted(spools.values(), key=lambda each: each.chunk.max_tokens),
        key=lambda each: each.chunk.max_tokens,
    ):
        same = list(group)
        known_by = _choose(connection, declaration, registered, same)
        query = select_rows(
            connection,
            declaration,
            source,
            slices,
            only=_CHOSEN,
            max_tokens=max_tokens,
            writes=True,
        )
        with query.callable_on(connection), reading(declaration):
            for batch in _lines(connection, declaration, query, same, known_by):
                _distribute(batch, spools)


def _lines(
    connection: Connection,
    declaration: Declaration,
    query: Query,
    spools: Sequence["_Spool"],
    known_by: str,
) -> pa.RecordBatchReader:
    """The requests of the chosen rows, each behind its comma.

    Columns: chunk id, whether the rows are as they were planned, the request, its ordinal, the
    number of its rows, and what it has more bytes than tokens, if that may be any. They come as
    the source is read, which is how they were numbered: to sort them, all would be in memory.
    """
    scope = Scope({}, parameters=dict(query.parameters))
    if declaration.packing is None and not any(each.shares for each in spools):
        found = _single(declaration, query, known_by)
    else:
        most = spools[0].chunk.max_tokens
        found = _shared(declaration, query, scope, max_tokens=most, known_by=known_by)
    return read_arrow(
        connection,
        f"""
        SELECT p.chunk_id, p.same,
            $opening || n.nonce || '-' || p.ordinal || $before || p.params || '}}',
            p.ordinal, p.rows{", p.surplus" if query.has_surplus else ""}
        FROM ({found}) AS p
        JOIN (SELECT unnest($chunk_ids::BIGINT[]) AS chunk_id, unnest($nonces) AS nonce) AS n
            ON n.chunk_id = p.chunk_id
        """,
        {
            **scope.parameters,
            "opening": ',{"custom_id":"',
            "before": '","params":',
            "chunk_ids": [each.chunk.chunk_id for each in spools],
            "nonces": [each.nonce for each in spools],
        },
    )


def _single(declaration: Declaration, query: Query, known_by: str) -> str:
    """SQL of requests of one row each."""
    return f"""
        SELECT c.chunk_id, c.ordinal, s.params, 1 AS rows,
            s.{known_by} IS NOT DISTINCT FROM c.{known_by} AS same
            {", s.surplus" if query.has_surplus else ""}
        FROM ({query.sql}) AS s
        JOIN {_CHOSEN} AS c ON {selected_is_selected(declaration, "s", "c")}
    """


def _shared(
    declaration: Declaration,
    query: Query,
    scope: Scope,
    *,
    max_tokens: int,
    known_by: str = "hash",
) -> str:
    """SQL of requests that several rows share: by asking the same, or as a list."""
    packing = declaration.packing
    whole = "1" if packing is None else "max(position) + 1"
    own, together, params = "NULL", "NULL", "f.params"
    surplus = "any_value(s.surplus)" if query.has_surplus else "0"
    if packing is not None:
        own, together = "any_value(s.own)", packing.rows_sql("own", "position", scope)
        several = packing.json_sql("f.together", scope, max_tokens=f"f.questions * {max_tokens:d}")
        params = f"CASE WHEN f.questions > 1 THEN {several} ELSE f.params END"
    return f"""
        WITH asked AS (
            SELECT c.chunk_id, c.ordinal, c.position, any_value(s.params) AS params, {own} AS own,
                {surplus} AS surplus, count(*) AS rows,
                bool_and(s.{known_by} IS NOT DISTINCT FROM c.{known_by}) AS same
            FROM ({query.sql}) AS s
            JOIN {_CHOSEN} AS c ON {selected_is_selected(declaration, "s", "c")}
            GROUP BY ALL
        ),
        requests AS (
            SELECT chunk_id, ordinal, any_value(params) AS params, {together} AS together,
                sum(rows)::BIGINT AS rows, count(*) AS questions, sum(surplus)::BIGINT AS surplus,
                bool_and(same) AND count(*) = {whole} AS same
            FROM asked GROUP BY ALL
        )
        SELECT f.chunk_id, f.ordinal, {params} AS params, f.rows, f.same, f.surplus
        FROM requests AS f
    """


def _choose_rows(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    condition: str,
    parameters: Mapping[str, object],
) -> None:
    keys = our_keys_as_selected(declaration, "q")
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_sent AS SELECT {keys}, "
        f"_partition AS partition, _chunk_id AS chunk_id, _ordinal AS ordinal, "
        f"_position AS position, _request_hash AS hash, _fingerprint AS fingerprint "
        f"FROM {registered.requests.sql} AS q "
        f"WHERE {condition}",
        dict(parameters),
    )


def _choose(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    spools: Sequence["_Spool"],
) -> str:
    """Choose the rows of chunks, and note how many each has; by what one knows these again.

    That is their fingerprint, but for what an earlier version of this package has planned.
    """
    _choose_rows(
        connection,
        declaration,
        registered,
        "_chunk_id IN (SELECT unnest($chunk_ids::BIGINT[]))",
        {"chunk_ids": [each.chunk.chunk_id for each in spools]},
    )
    counted = f"SELECT chunk_id, count(*), count(fingerprint) FROM {_CHOSEN} GROUP BY ALL"
    counts = {chunk_id: rest for chunk_id, *rest in warehouse.rows(connection, counted)}
    for each in spools:
        each.planned = counts.get(each.chunk.chunk_id, [0])[0]
    return "fingerprint" if all(rows == known for rows, known in counts.values()) else "hash"


def _distribute(batch: pa.RecordBatch, spools: Mapping[int, "_Spool"]) -> None:
    """Give each chunk its lines, as the bytes that DuckDB made."""
    numbers = list(zip(values_of(batch, 0), values_of(batch, 3), strict=True))
    in_order = sorted(range(len(numbers)), key=numbers.__getitem__)
    if in_order != list(range(len(numbers))):
        batch = batch.take(column_of(in_order, pa.int64()))
    lines = cast("pa.StringArray", batch.column(2))
    unchanged, ordinals, counts = (values_of(batch, column) for column in (1, 3, 4))
    surplus = values_of(batch, _COLUMNS) if batch.num_columns > _COLUMNS else None
    start = 0
    for chunk_id, group in itertools.groupby(values_of(batch, 0)):
        stop = start + sum(1 for _ in group)
        spool = spools[chunk_id]
        spool.found += sum(counts[start:stop])
        spool.ordinals.update(ordinals[start:stop])
        written = lines.slice(start, stop - start)
        is_fresh = all(unchanged[start:stop])
        spool.write(written, is_fresh=is_fresh)
        if is_fresh:  # a row that cannot be asked any more has no request
            spool.weigh(written, surplus[start:stop] if surplus else None)
        start = stop


_COLUMNS: Final = 5


@dataclass
class _Spool:
    """A body while it is being written; of the rows ``planned`` so many were ``found``."""

    chunk: Chunk
    planned: int = 0
    found: int = 0
    nonce: str = field(default_factory=chunks.new_nonce)
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    sha256: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    lines: int = 0
    ordinals: set[int] = field(default_factory=set[int])
    unchanged: bool = True
    surplus: int = 0
    largest: int = 0

    @property
    def shares(self) -> bool:
        """Whether rows share a request."""
        return self.planned != self.chunk.requests

    @property
    def is_fresh(self) -> bool:
        """Whether each planned row is there, once, and as it was planned."""
        are_all_there = self.found == self.planned and len(self.ordinals) == self.chunk.requests
        return self.unchanged and are_all_there and self.lines == self.chunk.requests

    def write(self, lines: pa.StringArray, *, is_fresh: bool) -> None:
        self.unchanged &= is_fresh
        text = _text_of(lines)
        if self.lines == 0:
            self._append(b'{"requests":[')
            text = text[1:]  # the comma before the first request
        self._append(text)
        self.lines += len(lines)

    def weigh(self, lines: pa.StringArray, surplus: Sequence[int] | None) -> None:
        """Note of how many tokens the requests may be: of one a byte, but for files."""
        lengths = pc.binary_length(lines)
        if surplus is None:
            self.largest = max(self.largest, pc.max(lengths).as_py())
            return
        self.surplus += sum(surplus)
        known = cast("list[int]", lengths.to_pylist())
        tokens = (length - more for length, more in zip(known, surplus, strict=True))
        self.largest = max(self.largest, *tokens)

    def discard(self) -> Chunk:
        self.file.close()
        return self.chunk

    def finish(self) -> Body:
        self._append(b"]}")
        self.file.flush()
        return Body(
            self.chunk,
            self.nonce,
            self.file,
            self.size,
            self.sha256.hexdigest(),
            self.size - self.surplus,
            self.largest,
        )

    def _append(self, piece: bytes | memoryview) -> None:
        self.file.write(piece)
        self.sha256.update(piece)
        self.size += len(piece)


def example_params(body: Body, most: int) -> list[dict[str, Any]]:
    """The ``params`` of so many of a body's first requests."""
    body.file.seek(0)
    text, begun = bytearray(), 0
    following = f',{{"custom_id":"{body.nonce}-'.encode()
    while begun < most and (piece := body.file.read(_PIECE)):
        beyond = max(0, len(text) - len(following) + 1)
        text += piece
        begun += text.count(following, beyond)
    first = text.split(following)[:most]
    whole = following.join(first) + b"]}" if begun >= most else text
    return [dict(each["params"]) for each in json.loads(whole)["requests"]]


_PIECE: Final = 2**16


def _text_of(strings: pa.StringArray) -> memoryview:
    """The strings' bytes, one behind the other: Arrow's own buffer, not a copy."""
    _, offsets_buffer, data = cast("list[pa.Buffer]", strings.buffers())
    offsets = memoryview(offsets_buffer).cast("i")
    first, last = offsets[strings.offset], offsets[strings.offset + len(strings)]
    return memoryview(data)[first:last]
