"""Requests → chunks within the limits of one batch. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dagster_claude_batch.errors import OversizedRequestError

MAX_BATCH_REQUESTS: Final = 100_000
"""Requests in one batch. Source: the Message Batches API's documentation."""

MAX_BATCH_BYTES: Final = 250_000_000
"""Bytes of one batch's body: the API takes 256 MB, counted in decimal, less a margin."""

MAX_REQUEST_BYTES: Final = 32_000_000
"""Bytes of a single request, the Messages API's own limit."""

DISTINCT_SIZES: Final = 97
"""So many chunks in a row have sizes of their own, once chunks are large enough."""


@dataclass(frozen=True)
class SizeLimits:
    """How large chunks may become.

    Neighbouring chunks get different numbers of requests (``chunk_size``, one less, two less …),
    because a batch whose creation is in doubt can only be recognized by its number of requests.
    """

    chunk_size: int
    max_bytes: int = MAX_BATCH_BYTES
    max_request_bytes: int = MAX_REQUEST_BYTES

    def requests_in(self, chunk: int) -> int:
        """How many requests the chunk with this running number may hold."""
        variants = min(DISTINCT_SIZES, self.chunk_size // 50)
        return self.chunk_size - (chunk % variants if variants > 1 else 0)


def into_chunks_by_count(requests: int, largest: int, limits: SizeLimits) -> Sequence[range] | None:
    """The chunks of `into_chunks` where no request is larger than ``largest`` bytes.

    None if their bytes might matter, so that one has to know those of each request.
    """
    if largest > limits.max_request_bytes or largest * limits.chunk_size > limits.max_bytes:
        return None
    chunks: list[range] = []
    start = 0
    while start < requests:
        stop = min(requests, start + limits.requests_in(len(chunks)))
        chunks.append(range(start, stop))
        start = stop
    return chunks


def into_chunks(
    sizes: Iterable[int], limits: SizeLimits, *, first: int = 0
) -> Iterator[tuple[range, int]]:
    """Group consecutive requests into chunks that each fit in one batch.

    Order is kept and chunks are filled greedily, so the same requests always give the same
    chunks. ``sizes`` are bytes on the wire; ``first`` is the running number of the first chunk.
    Yields the positions in a chunk and their bytes.

    Raises:
        OversizedRequestError: One request alone is too large. Its position is the error's.
    """
    start, used, chunk = 0, 0, first
    position = -1
    for position, size in enumerate(sizes):
        if size > limits.max_request_bytes:
            raise OversizedRequestError(position, size=size, limit=limits.max_request_bytes)
        full = position - start >= limits.requests_in(chunk) or used + size > limits.max_bytes
        if full and position > start:
            yield range(start, position), used
            start, used, chunk = position, 0, chunk + 1
        used += size
    if position >= start:
        yield range(start, position + 1), used
