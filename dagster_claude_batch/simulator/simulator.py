"""The behaviour of the API's endpoints, without HTTP."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from dagster_claude_batch.simulator.answers import Answer, import_function
from dagster_claude_batch.simulator.batch import Batch, Course, begin, finishing_order
from dagster_claude_batch.simulator.body import receive
from dagster_claude_batch.simulator.errors import ApiError, invalid
from dagster_claude_batch.simulator.json_values import Params, content_key, identifier
from dagster_claude_batch.simulator.rows import Row, RowWorker
from dagster_claude_batch.simulator.store import Session, Store
from dagster_claude_batch.simulator.tokens import PromptCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from os import PathLike

    from dagster_claude_batch.simulator.files import BatchFiles, BilledRequest
    from dagster_claude_batch.simulator.outcomes import Outcome

MAX_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Page:
    """A page of batches, the newest first."""

    batches: list[Batch]
    has_more: bool


class Simulator:
    """A Message Batches API whose whole state is a directory.

    Any number of processes may open the same ``path`` at once; they see the same batches and
    the same clock. ``path`` is made if it does not exist, and its files are private.

    All work on the rows (validation, outcomes, answers, result lines) is done by ``create``,
    in the calling process and before the batch becomes visible. From then on everything
    follows from the clock: there is no background process, and looking at batches is cheap
    however large they are.

    Args:
        answer: Answers a request; a function, or the name of one that is imported when the
            first batch is created. If it raises, the row is errored with ``api_error``.
            Left out, answers fit the schema or tool that was asked for.
        outcome: Makes rows fail; see :data:`Outcome`.
        processing_seconds: A batch takes a time between these two, its requests finish
            evenly within it. The default suits a demonstration: long enough to be seen
            ``in_progress``, too short to wait for.
        max_queued_requests: A batch is refused (429) while the requests of batches that have
            not ended would be more.
        seed: The same seed, clock and calls give the same ids, answers and times.
        now: Stands in for real time, which it returns as an aware datetime.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        answer: Answer | str | None = None,
        outcome: Outcome | str | None = None,
        processing_seconds: tuple[float, float] = (2.0, 6.0),
        max_queued_requests: int = 200_000,
        seed: int = 0,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        least, most = processing_seconds
        if not 0 <= least <= most:
            raise ValueError(f"processing_seconds={processing_seconds!r}: want 0 <= least <= most")
        self.path = Path(path)
        self._answer = answer
        self._outcome = outcome
        self._processing_seconds = (least, most)
        self._max_queued_requests = max_queued_requests
        self._seed = seed
        self._real_now = now or _real_now
        self._store = Store(self.path)

    @cached_property
    def answer(self) -> Answer | None:
        """The answer function, imported.

        Raises:
            FunctionNotFoundError: It cannot be.
        """
        named = self._answer
        return import_function("answer", named) if isinstance(named, str) else named

    @cached_property
    def outcome(self) -> Outcome | None:
        """The outcome function, imported.

        Raises:
            FunctionNotFoundError: It cannot be.
        """
        named = self._outcome
        return import_function("outcome", named) if isinstance(named, str) else named

    # The clock

    def now(self) -> datetime:
        """Tell the simulated time: real time, and what the clock was advanced by."""
        with self._store.reading() as session:
            return self._now(session)

    def advance(self, duration: timedelta) -> None:
        """Let time pass, for all processes that share the directory; it never runs back."""
        if duration < timedelta(0):
            raise ValueError(f"The clock cannot go back by {-duration}.")
        with self._store.writing() as session:
            session.advance(duration)

    def end_batches(self) -> None:
        """Let all batches end now: every request processed that was not cancelled before."""
        with self._store.writing() as session:
            now = self._now(session)
            for course in session.courses_not_ended(now):
                session.update(course.ended(now, self._store.files(course.id).kinds()))

    # The endpoints

    def create(self, body: Iterable[bytes]) -> Batch:
        """Create a batch from the bytes of a request's body.

        Raises:
            ApiError: 400, 413 or 429; nothing was created.
            SimulatorSetupError: A function is at fault; nothing was created.
        """
        with self._store.incoming() as incoming:
            with incoming.create_requests() as lines:
                size = receive(body, lines)
            batch_id = self._accept(size)
            work = self._work(incoming, batch_id)
            with self._store.writing() as session:
                now = self._now(session)
                self._refuse_if_full(session, size, now)
                processing = self._processing(batch_id)
                course = begin(batch_id, work.kinds, now=now, processing=processing)
                session.insert(course)
                session.add_seen(work.seen)
                session.add_prefixes(work.prefixes, now=now)
                self._store.adopt(incoming, batch_id)
        return course.at(now)

    def retrieve(self, batch_id: str) -> Batch:
        """Look at one batch.

        Raises:
            ApiError: 404.
        """
        with self._store.reading() as session:
            return _found(session, batch_id).at(self._now(session))

    def page(
        self, *, limit: int = 20, after_id: str | None = None, before_id: str | None = None
    ) -> Page:
        """Look at many batches, the newest first; ``after_id`` asks for older ones.

        Raises:
            ApiError: 400 for a limit out of range, both cursors, or one that never existed.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise invalid(f"limit: Input should be between 1 and {MAX_PAGE}")
        if after_id is not None and before_id is not None:
            raise invalid("before_id: cannot be given together with after_id")
        with self._store.reading() as session:
            now = self._now(session)
            if before_id is not None:
                after = _number(session, "before_id", before_id)
                courses = session.next_newer(after=after, limit=limit + 1)
                shown = courses[:limit][::-1]
            else:
                before = None if after_id is None else _number(session, "after_id", after_id)
                courses = session.newest(before=before, limit=limit + 1)
                shown = courses[:limit]
        return Page([course.at(now) for course in shown], has_more=len(courses) > limit)

    def results(self, batch_id: str) -> Iterator[bytes]:
        """Read the lines of the results, in the order in which the requests finished.

        Raises:
            ApiError: 404 for an unknown batch or archived results, 400 before the end; at
                once, not when the first line is read.
        """
        with self._store.reading() as session:
            course = _found(session, batch_id)
            batch = course.at(self._now(session))
        if batch.ended_at is None:
            raise invalid(f"Batch {batch_id} has not ended: it has no results yet.")
        if batch.archived_at is not None:
            raise ApiError("not_found_error", f"The results of batch {batch_id} are archived.")
        order = finishing_order(course.id, course.size)
        return self._store.files(batch_id).results(course, order)

    def cancel(self, batch_id: str) -> Batch:
        """Cancel a batch; to cancel it again changes nothing.

        Raises:
            ApiError: 404, or 400 if it has ended.
        """
        with self._store.writing() as session:
            course, now = _found(session, batch_id), self._now(session)
            if course.at(now).ended_at is not None:
                raise invalid(f"Batch {batch_id} cannot be canceled because it has ended.")
            if course.canceled_at is None:
                course = course.canceled(now, self._store.files(batch_id).kinds())
                session.update(course)
        return course.at(now)

    def delete(self, batch_id: str) -> None:
        """Delete a batch with its requests and results; :meth:`bill` still knows it.

        Raises:
            ApiError: 404, or 400 if it has not ended.
        """
        with self._store.writing() as session:
            course = _found(session, batch_id)
            if course.at(self._now(session)).ended_at is None:
                raise invalid(f"Batch {batch_id} cannot be deleted before it has ended.")
            self._store.files(batch_id).write_bill(self._billed(course))
            session.mark_deleted(batch_id)
        self._store.files(batch_id).keep_only_bill()

    # What tests want to know

    def batches(self) -> list[Batch]:
        """List all batches that were not deleted, the oldest first."""
        with self._store.reading() as session:
            now = self._now(session)
            return [course.at(now) for course in session.courses()]

    def requests(self, batch_id: str) -> Iterator[tuple[str, Params]]:
        """Read the custom id and params of each request of a batch, as submitted.

        Raises:
            ApiError: 404; at once, not when the first request is read.
        """
        with self._store.reading() as session:
            _found(session, batch_id)
        return self._store.files(batch_id).requests()

    def bill(self) -> list[BilledRequest]:
        """List every request that was paid for, in batches that have ended, deleted ones too.

        Those are the succeeded ones, whatever their ``stop_reason``, and the missing ones.
        """
        billed: list[BilledRequest] = []
        with self._store.reading() as session:
            now = self._now(session)
            for batch_id, deleted in session.all_ids():
                course = None if deleted else session.course(batch_id)
                if course is None:
                    billed += self._store.files(batch_id).kept_bill()
                elif course.at(now).ended_at is not None:
                    billed += self._billed(course)
        return billed

    # Inside

    def _now(self, session: Session) -> datetime:
        return self._real_now() + session.clock_offset()

    def _accept(self, size: int) -> str:
        """Give an id to a batch that there is room for; it may still be refused later."""
        with self._store.writing() as session:
            now = self._now(session)
            self._refuse_if_full(session, size, now)
            return identifier("msgbatch", self._seed, now.isoformat(), session.ticket())

    def _refuse_if_full(self, session: Session, size: int, now: datetime) -> None:
        queued = session.queued(now)
        if queued + size > self._max_queued_requests:
            raise ApiError(
                "rate_limit_error",
                f"This batch of {size} requests would exceed the limit of "
                f"{self._max_queued_requests} requests in the processing queue, which holds "
                f"{queued}.",
            )

    def _work(self, incoming: BatchFiles, batch_id: str) -> _Work:
        """Write the results of all requests; what it looks up does not hold up anybody."""
        with self._store.reading() as session:
            cache = PromptCache(session.lives_until, now=self._now(session))
            worker = RowWorker(batch_id, self._seed, self.answer, self.outcome, cache)
            seen = Counter[bytes]()
            kinds = incoming.write_results(_rows(incoming, worker, session, seen))
        return _Work(kinds, seen, cache.added)

    def _processing(self, batch_id: str) -> timedelta:
        random = Random(f"processing:{batch_id}")  # noqa: S311 - it has to be the same each time
        return timedelta(seconds=random.uniform(*self._processing_seconds))

    def _billed(self, course: Course) -> Iterator[BilledRequest]:
        order = finishing_order(course.id, course.size)
        return self._store.files(course.id).bill(course, order)


@dataclass(frozen=True, slots=True)
class _Work:
    """What working through a batch left behind, besides its results."""

    kinds: bytes
    seen: Counter[bytes]
    prefixes: dict[bytes, datetime]


def _rows(
    incoming: BatchFiles, worker: RowWorker, session: Session, seen: Counter[bytes]
) -> Iterator[Row]:
    for custom_id, params in incoming.requests():
        content = content_key(params)
        before = session.times_seen(content) + seen[content]
        seen[content] += 1
        yield worker.work(custom_id, params, seen=before)


def _real_now() -> datetime:
    return datetime.now(UTC)


def _found(session: Session, batch_id: str) -> Course:
    course = session.course(batch_id)
    if course is None:
        raise ApiError("not_found_error", f"Message batch {batch_id} not found")
    return course


def _number(session: Session, argument: str, batch_id: str) -> int:
    number = session.number(batch_id)
    if number is None:
        raise invalid(f"{argument}: {batch_id} is not a known message batch")
    return number
