"""The life of a batch as a function of the clock: nothing runs, whoever looks computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

ProcessingStatus: TypeAlias = Literal["in_progress", "canceling", "ended"]

EXPIRES_AFTER = timedelta(hours=24)
ARCHIVED_AFTER = timedelta(days=29)
CANCELING_LASTS = timedelta(seconds=2)
"""How long a cancelled batch is ``canceling``, unless it would have ended before."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """All ``processing`` until the batch has ended, then none."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch at one moment, as the API shows it."""

    id: str
    processing_status: ProcessingStatus
    request_counts: RequestCounts
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    cancel_initiated_at: datetime | None
    archived_at: datetime | None

    @property
    def has_results(self) -> bool:
        """Whether results can be had: after the end, until they are archived."""
        return self.ended_at is not None and self.archived_at is None

    def as_json(self, origin: str) -> dict[str, Any]:
        """Show it as the API's MessageBatch, reached under ``origin`` (``http://host:port``)."""
        results = f"{origin}/v1/messages/batches/{self.id}/results"
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": self.processing_status,
            "request_counts": asdict(self.request_counts),
            "ended_at": _text(self.ended_at),
            "created_at": _text(self.created_at),
            "expires_at": _text(self.expires_at),
            "archived_at": _text(self.archived_at),
            "cancel_initiated_at": _text(self.cancel_initiated_at),
            "results_url": results if self.has_results else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is known of a batch from its creation on, and changes only if it is cancelled.

    Requests finish evenly between ``created_at`` and ``finishes_at``, in the order of
    :func:`finishing_order`; the first ``processed`` of them finish before ``ends_at``, the
    others are expired, or canceled if it was cancelled. ``counts`` are those at the end.
    Times are microseconds since 1970.
    """

    id: str
    size: int
    created_at: int
    finishes_at: int
    ends_at: int
    canceled_at: int | None
    processed: int
    counts: RequestCounts

    @property
    def rest(self) -> Literal["canceled", "expired"]:
        """What the requests end as that were not processed."""
        return "expired" if self.canceled_at is None else "canceled"

    def at(self, now: datetime) -> Batch:
        """See the batch as it is now."""
        moment = microseconds(now)
        ended = moment >= self.ends_at
        created_at = at_microseconds(self.created_at)
        archived_at = created_at + ARCHIVED_AFTER
        canceled_at = self.canceled_at
        return Batch(
            id=self.id,
            processing_status=self._status(ended=ended),
            request_counts=self.counts if ended else RequestCounts(processing=self.size),
            created_at=created_at,
            expires_at=created_at + EXPIRES_AFTER,
            ended_at=at_microseconds(self.ends_at) if ended else None,
            cancel_initiated_at=None if canceled_at is None else at_microseconds(canceled_at),
            archived_at=archived_at if now >= archived_at else None,
        )

    def canceled(self, now: datetime, kinds: bytes) -> Course:
        """Change the course by a cancel: what has not finished by now never will."""
        moment = microseconds(now)
        return replace(
            self,
            canceled_at=moment,
            ends_at=min(self.ends_at, moment + CANCELING_LASTS // _MICROSECOND),
            processed=min(self.processed, self.finished_by(moment)),
        ).counted(kinds)

    def ended(self, now: datetime, kinds: bytes) -> Course:
        """Change the course so that the rest of the processing takes no time at all."""
        moment = microseconds(now)
        course = replace(self, finishes_at=moment, ends_at=moment)
        if self.canceled_at is None:
            course = replace(course, processed=self.size)
        return course.counted(kinds)

    def counted(self, kinds: bytes) -> Course:
        """Count again, from ``kinds``: a letter for each request."""
        return replace(self, counts=_tally(self, kinds))

    def _status(self, *, ended: bool) -> ProcessingStatus:
        if ended:
            return "ended"
        return "in_progress" if self.canceled_at is None else "canceling"

    def finished_by(self, moment: int) -> int:
        """Count the requests that the processing, left alone, is through with by then."""
        if moment >= self.finishes_at:
            return self.size
        return self.size * (moment - self.created_at) // (self.finishes_at - self.created_at)


def begin(batch_id: str, kinds: bytes, *, now: datetime, processing: timedelta) -> Course:
    """Begin a new batch whose processing takes so long, if it may."""
    created_at = microseconds(now)
    finishes_at = created_at + processing // _MICROSECOND
    expires_at = created_at + EXPIRES_AFTER // _MICROSECOND
    course = Course(
        id=batch_id,
        size=len(kinds),
        created_at=created_at,
        finishes_at=finishes_at,
        ends_at=min(finishes_at, expires_at),
        canceled_at=None,
        processed=len(kinds),
        counts=RequestCounts(),
    )
    return replace(course, processed=course.finished_by(expires_at)).counted(kinds)


def finishing_order(batch_id: str, size: int) -> Sequence[int]:
    """Order requests as they finish and stand in the results: shuffled, but always so."""
    order = list(range(size))
    Random(batch_id).shuffle(order)  # noqa: S311 - it has to be the same each time
    return order


def microseconds(moment: datetime) -> int:
    """Count the microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def at_microseconds(count: int) -> datetime:
    """Find the moment so many microseconds after 1970."""
    return _EPOCH + count * _MICROSECOND


def _tally(course: Course, kinds: bytes) -> RequestCounts:
    order = finishing_order(course.id, course.size)
    done = Counter(kinds[position] for position in order[: course.processed])
    left = course.size - course.processed
    return RequestCounts(
        succeeded=sum(done[code] for code in b"smu"),
        errored=done[ord("e")],
        canceled=done[ord("c")] + (left if course.rest == "canceled" else 0),
        expired=done[ord("x")] + (left if course.rest == "expired" else 0),
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
