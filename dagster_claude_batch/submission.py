"""Chunk → batch: the body, the one call that creates it, and what its answer means."""

import hashlib
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import IO, Any, Final, Literal, Self, TypeAlias, cast

import anthropic
import httpx2
import pyarrow as pa
from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import NO_ROOM, NoTemporarySpaceError, UnreadableAnswerError
from dagster_claude_batch.ledger import LedgerAsset
from dagster_claude_batch.matching import our_keys_as_selected, selected_is_selected
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import is_halt
from dagster_claude_batch.resource import ClaudeBatchResource
from dagster_claude_batch.source import (
    PartitionSlice,
    Query,
    find_source,
    reading,
    refuse_changed_keys,
    select_rows,
)
from dagster_claude_batch.warehouse import Connection, read_arrow, values_of

MAX_SPOOLED_BYTES: Final = 512_000_000
"""Bodies that wait on disk at the same time."""

_CHOSEN: Final = "temp.claude_batch_sent"


@dataclass(frozen=True)
class Body:
    """One chunk's request body on disk, unlinked, so that nothing is left of it afterwards."""

    chunk: Chunk
    nonce: str
    file: IO[bytes]
    size: int
    sha256: str


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


@dataclass(frozen=True)
class Created:
    """The batch exists."""

    batch: MessageBatch


@dataclass(frozen=True)
class NotCreated:
    """The batch surely does not exist, and why.

    ``unreachable`` was not heard at all, ``busy`` may be asked again after ``retry_after``,
    ``too_large`` has to be split; ``halted`` is the account's fault, ``refused`` the batch's.
    """

    reason: str
    because: Literal["unreachable", "busy", "too_large", "halted", "refused"]
    retry_after: timedelta | None = None


@dataclass(frozen=True)
class InDoubt:
    """Nobody can say yet whether the batch exists."""

    reason: str


Sent: TypeAlias = Created | NotCreated | InDoubt


# --- bodies ---------------------------------------------------------------------------------


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
        any(each.lines < each.chunk.requests for each in spools.values()),
    )


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
        _choose(connection, declaration, registered, [each.chunk for each in same])
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
            for batch in _lines(connection, declaration, query, same):
                _distribute(batch, spools)


def _lines(
    connection: Connection,
    declaration: Declaration,
    query: Query,
    spools: Sequence["_Spool"],
) -> pa.RecordBatchReader:
    """The requests of the chosen rows, each behind its comma, in the order of their chunks."""
    return read_arrow(
        connection,
        f"""
        SELECT c.chunk_id, s.hash IS NOT DISTINCT FROM c.hash AS same,
            $opening || n.nonce || '-' || c.ordinal || $before || s.params || '}}',
            c.ordinal
        FROM ({query.sql}) AS s
        JOIN {_CHOSEN} AS c ON {selected_is_selected(declaration, "s", "c")}
        JOIN (SELECT unnest($chunk_ids::BIGINT[]) AS chunk_id, unnest($nonces) AS nonce) AS n
            ON n.chunk_id = c.chunk_id
        ORDER BY c.chunk_id, c.ordinal
        """,
        {
            **query.parameters,
            "opening": ',{"custom_id":"',
            "before": '","params":',
            "chunk_ids": [each.chunk.chunk_id for each in spools],
            "nonces": [each.nonce for each in spools],
        },
    )


def _choose(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    chunks: Sequence[Chunk],
) -> None:
    keys = our_keys_as_selected(declaration, "q")
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_sent AS SELECT {keys}, "
        f"_partition AS partition, _chunk_id AS chunk_id, _ordinal AS ordinal, "
        f"_request_hash AS hash FROM {registered.requests.sql} AS q "
        "WHERE _chunk_id IN (SELECT unnest($chunk_ids::BIGINT[]))",
        {"chunk_ids": [chunk.chunk_id for chunk in chunks]},
    )


def _distribute(batch: pa.RecordBatch, spools: Mapping[int, "_Spool"]) -> None:
    """Give each chunk its lines, as the bytes that DuckDB made."""
    lines = cast("pa.StringArray", batch.column(2))
    unchanged, ordinals = values_of(batch, 1), values_of(batch, 3)
    start = 0
    for chunk_id, group in itertools.groupby(values_of(batch, 0)):
        stop = start + sum(1 for _ in group)
        first = spools[chunk_id].lines
        in_order = ordinals[start:stop] == list(range(first, first + stop - start))
        is_fresh = in_order and all(unchanged[start:stop])
        spools[chunk_id].write(lines.slice(start, stop - start), is_fresh=is_fresh)
        start = stop


@dataclass
class _Spool:
    """A body while it is being written."""

    chunk: Chunk
    nonce: str = field(default_factory=chunks.new_nonce)
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    sha256: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    lines: int = 0
    unchanged: bool = True

    @property
    def is_fresh(self) -> bool:
        """Whether each planned row is there, as it was planned."""
        return self.unchanged and self.lines == self.chunk.requests

    def write(self, lines: pa.StringArray, *, is_fresh: bool) -> None:
        self.unchanged &= is_fresh
        text = _text_of(lines)
        if self.lines == 0:
            self._append(b'{"requests":[')
            text = text[1:]  # the comma before the first request
        self._append(text)
        self.lines += len(lines)

    def discard(self) -> Chunk:
        self.file.close()
        return self.chunk

    def finish(self) -> Body:
        self._append(b"]}")
        self.file.flush()
        return Body(self.chunk, self.nonce, self.file, self.size, self.sha256.hexdigest())

    def _append(self, piece: bytes | memoryview) -> None:
        self.file.write(piece)
        self.sha256.update(piece)
        self.size += len(piece)


def _text_of(strings: pa.StringArray) -> memoryview:
    """The strings' bytes, one behind the other: Arrow's own buffer, not a copy."""
    _, offsets_buffer, data = cast("list[pa.Buffer]", strings.buffers())
    offsets = memoryview(offsets_buffer).cast("i")
    first, last = offsets[strings.offset], offsets[strings.offset + len(strings)]
    return memoryview(data)[first:last]


# --- sending --------------------------------------------------------------------------------


def post(claude: ClaudeBatchResource, body: Body) -> Sent:
    """Send one body, once, and say what is known about the batch then."""
    try:
        return Created(claude.create_from_body(body.file, body.size))
    except anthropic.APIStatusError as error:
        return _refusal(error)
    except anthropic.APIConnectionError as error:
        if isinstance(error.__cause__, _NEVER_SENT):
            return NotCreated(one_line(f"{error.__cause__}"), "unreachable")
        return InDoubt(one_line(f"{type(error.__cause__).__name__}: {error.__cause__}"))
    except UnreadableAnswerError as error:
        return InDoubt(str(error))


_NEVER_SENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
)
"""Errors from before the first byte of the body left."""

_TIMEOUT, _CONFLICT, _TOO_LARGE, _TOO_MANY, _SERVER = 408, 409, 413, 429, 500
_HALTING: Final = frozenset({401, 402, 403})
_HALTING_CODES: Final = frozenset(
    {
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "organization_on_hold",
        "cmek_key_disabled",
    }
)


def _refusal(error: anthropic.APIStatusError) -> Sent:
    """Tell what an error status means for a create."""
    status, message = error.status_code, error.api_message or ""
    reason = f"{status} {one_line(message) or type(error).__name__}"
    if status in {_TIMEOUT, _CONFLICT} or status >= _SERVER:
        return InDoubt(reason)
    if status == _TOO_LARGE:
        return NotCreated(reason, "too_large")
    if status in _HALTING or error.error_code in _HALTING_CODES or is_halt(message):
        return NotCreated(reason, "halted")
    if status == _TOO_MANY:
        return NotCreated(reason, "busy", _retry_after(error))
    return NotCreated(reason, "refused")


def _retry_after(error: anthropic.APIStatusError) -> timedelta | None:
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return timedelta(seconds=min(max(1.0, seconds), _LONGEST_PAUSE.total_seconds()))


_LONGEST_PAUSE: Final = timedelta(hours=1)


# --- what a batch shows ---------------------------------------------------------------------


def size_of(batch: MessageBatch) -> int:
    """How many requests a batch has: the sum of its counts, whatever its status."""
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
