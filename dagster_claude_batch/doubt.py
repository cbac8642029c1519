"""Doubt: whether a batch exists whose creation nobody has seen, and which one it is."""

import io
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from anthropic.types.messages import MessageBatch

from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.errors import LostChunkError
from dagster_claude_batch.resource import RESULTS_LAST, UNANSWERED, ClaudeBatchResource
from dagster_claude_batch.submission import size_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far the clock of a machine of ours and the API's may disagree."""

SETTLING: Final = timedelta(minutes=5)
"""How long a batch may take to show up in `list` before we believe that there is none."""

LATEST_END: Final = timedelta(hours=25)
"""A batch expires after 24 hours; one that has not been seen to end by then is looked at again."""

LATEST_APPEARANCE: Final = timedelta(hours=24)
"""How long after it was given up a batch may still turn up."""

WATCHED: Final = LATEST_APPEARANCE + LATEST_END + timedelta(hours=1)
"""How long after its sending a chunk that was given up is looked for: until it must have ended."""

UNREADABLE: Final = timedelta(minutes=10)
"""When to try results again that could not be read."""

UNSEEN: Final = timedelta(hours=1)
"""When to look again for what should have been seen by now."""


@dataclass(frozen=True)
class Found:
    """The batch of a chunk in doubt, and any further one that was made of the same call."""

    batch: MessageBatch
    copies: tuple[MessageBatch, ...] = ()


@dataclass(frozen=True)
class NotFound:
    """There is no such batch."""


@dataclass(frozen=True)
class Unsettled:
    """It cannot be told before ``until``, or before one of the ``candidates`` has ended."""

    until: datetime
    candidates: tuple[str, ...] = ()


Verdict: TypeAlias = Found | NotFound | Unsettled


def settled_at(claude: ClaudeBatchResource, chunk: Chunk) -> datetime:
    """From when on a batch of this sending that is not in `list` does not exist.

    The clock of the machine that sent may have been slow, and that of the one that judges be fast.
    """
    return _over_at(claude, chunk) + SETTLING + 2 * CLOCK_SKEW


def _over_at(claude: ClaudeBatchResource, chunk: Chunk) -> datetime:
    """When the call was over at the latest, by the clock of the machine that sent.

    A call that has broken off may still have its effect for as long as it could have lasted by
    itself. One that nobody has seen to end, for its process was killed, took as long as a call
    can: as long as an upload may, and then as long as the API may be silent.
    """
    if chunk.sending_at is None:
        raise LostChunkError(chunk.chunk_id, expected="sending")
    timeout = timedelta(seconds=claude.timeout_seconds)
    if chunk.doubted_at is None:
        return chunk.sending_at + 2 * timeout
    return max(chunk.doubted_at, chunk.sending_at + timeout)


def reconcile(
    claude: ClaudeBatchResource,
    chunk: Chunk,
    strangers: Sequence[MessageBatch],
    now: datetime,
) -> Verdict:
    """Look for the batch of a chunk whose sending is in doubt, among those the ledger lacks.

    Candidates were created around the sending, are unknown to the ledger and have the chunk's
    number of requests. One that has ended proves itself by the nonce in its custom ids; one
    still running is waited for. Nothing is concluded before each has spoken, and before all that
    there can be must show.
    """
    settled = settled_at(claude, chunk)
    candidates = candidates_for(chunk, strangers, before=settled)
    proofs = {batch.id: proof(claude, batch, chunk, now) for batch in candidates}
    open_ = [batch for batch in candidates if proofs[batch.id] is None]
    if open_:
        # Also beside a proven one: one call may have made two batches, and this be the other.
        return Unsettled(_looked_at_again(open_, now), tuple(batch.id for batch in open_))
    if now < settled:
        return Unsettled(settled)  # until then, another one may not show yet
    proven = [batch for batch in candidates if proofs[batch.id]]
    return Found(proven[0], tuple(proven[1:])) if proven else NotFound()


def _looked_at_again(candidates: Sequence[MessageBatch], now: datetime) -> datetime:
    """When to look, if none of them is seen to end before."""
    if any(batch.processing_status == "ended" for batch in candidates):
        return now + UNREADABLE
    return max(max(batch.created_at for batch in candidates) + LATEST_END, now + UNSEEN)


def appeared(
    claude: ClaudeBatchResource, chunk: Chunk, strangers: Sequence[MessageBatch], now: datetime
) -> MessageBatch | None:
    """Look for the batch of a chunk that was given up: a second copy of what was sent since.

    One still running proves nothing. But one that was created soon after the sending must have
    been invisible when the chunk was given up, which somebody else's would not have been; should
    it prove to be theirs after all, it is let go.
    """
    until = settled_at(claude, chunk)
    for batch in candidates_for(chunk, strangers, before=until + LATEST_APPEARANCE):
        proven = proof(claude, batch, chunk, now)
        soon = _over_at(claude, chunk)
        is_late = batch.processing_status != "ended" and batch.created_at <= soon
        if proven or (proven is None and is_late):
            return batch
    return None


def candidates_for(
    chunk: Chunk, strangers: Sequence[MessageBatch], *, before: datetime
) -> list[MessageBatch]:
    """Batches that may be this chunk's, oldest first: of its size, and not older than it.

    ``strangers`` come as the API lists them, newest first.
    """
    if chunk.sending_at is None:
        return []
    after = chunk.sending_at - CLOCK_SKEW
    found = [b for b in strangers if size_of(b) == chunk.requests]
    return [b for b in reversed(found) if after <= b.created_at <= before]


def shown_since(claude: ClaudeBatchResource, chunks: Iterable[Chunk]) -> list[MessageBatch]:
    """All batches that are not older than the oldest of these sendings, in one listing."""
    sendings = [chunk.sending_at for chunk in chunks if chunk.sending_at is not None]
    if not sendings:
        return []
    after = min(sendings) - CLOCK_SKEW
    return list(itertools.takewhile(lambda batch: batch.created_at >= after, claude.list()))


def proof(
    claude: ClaudeBatchResource, batch: MessageBatch, chunk: Chunk, now: datetime
) -> bool | None:
    """Whether a batch's results carry the chunk's nonce; None while none of them can be read."""
    if batch.processing_status != "ended":
        return None
    if not batch.results_url:
        # Archived results prove nothing any more, nor can they be lost once more.
        return False if now - batch.created_at > RESULTS_LAST else None
    head = _Head(f"{chunk.nonce}-")
    try:
        claude.download(batch, head)
    except _EnoughError:
        pass
    except (*UNANSWERED, LookupError):
        return None
    return head.proof()


class _EnoughError(Exception):
    """No more of a download is needed."""


class _Head(io.BytesIO):
    """The beginning of a results file, as far as it takes to know whose it is."""

    def __init__(self, ours: str) -> None:
        super().__init__()
        self._ours = ours.encode()

    def write(self, piece: "Buffer", /) -> int:
        written = super().write(piece)
        if self.tell() >= _ENOUGH_BYTES and self.proof() is not None:
            raise _EnoughError
        return written

    def proof(self) -> bool | None:
        """Whether our nonce is in what has come; None while no custom id is."""
        ids = _CUSTOM_ID.findall(self.getvalue())
        return any(each.startswith(self._ours) for each in ids) if ids else None


_ENOUGH_BYTES: Final = 2**16
_CUSTOM_ID: Final = re.compile(rb'"custom_id"\s*:\s*"([^"]*)"')
