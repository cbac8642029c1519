"""Which chunks are sent when: the window, what is in the way, and how long to be patient."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from dagster_claude_batch import caps, chunks, ledger, resending
from dagster_claude_batch.adoption import dissolve_cancelled
from dagster_claude_batch.bodies import MAX_SPOOLED_BYTES, Body, Spooled, spool
from dagster_claude_batch.budget import Budget
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.doubt import LATEST_END, settled_at
from dagster_claude_batch.errors import (
    AccountHaltedError,
    LostChunkError,
    SubmissionRefusedError,
    UnstableSourceError,
)
from dagster_claude_batch.estimate import Estimate, estimate_sending
from dagster_claude_batch.landing import Landing, land
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.outcomes import TOO_LARGE
from dagster_claude_batch.outstanding import in_flight, serialize_sending
from dagster_claude_batch.preflight import Counted, check_model, check_shape
from dagster_claude_batch.reconciling import record
from dagster_claude_batch.sharing import answered_by_copy, asked_by_others
from dagster_claude_batch.steadiness import Steadiness
from dagster_claude_batch.submission import Created, InDoubt, NotCreated, Sent, post
from dagster_claude_batch.warehouse import Connection
from dagster_claude_batch.workbench import Findings, Outstanding, Workbench, asset_of

SHORT_PAUSE: Final = timedelta(seconds=30)
"""The longest single pause that a run makes; a longer one is made in the queue."""

PATIENCE: Final = timedelta(minutes=2)
"""How long one run pauses in all, before it leaves the waiting to the queue."""

_BUSY: Final = timedelta(minutes=5)
"""When to try again where the API does not say."""


@dataclass
class Sender:
    """Sends the chunks of one run's materializations."""

    bench: Workbench
    is_announced: bool = False
    patience: timedelta = PATIENCE
    not_again_before: datetime | None = None
    is_refused: bool = False
    is_full: bool = False
    work: Sequence[Outstanding] = ()
    steadiness: Steadiness = field(default_factory=Steadiness)
    max_spooled_bytes: int = MAX_SPOOLED_BYTES
    budget: Budget = field(init=False)
    estimates: list[Estimate] = field(default_factory=list[Estimate])

    def __post_init__(self) -> None:
        self.budget = Budget(self.bench)

    def send(self, work: Sequence[Outstanding]) -> Findings:
        """Send what fits into the window; ``again_at`` is when more may be accepted.

        Where the window is full, nobody knows when.
        """
        findings, self.work, self.is_full = Findings(), work, False
        wait_until = self._not_before(work)
        if wait_until is not None:
            findings.wait_until(wait_until)
            return findings
        for each in work:
            planned = each.in_state("planned") if each.may_send else []
            if planned:
                self.budget.require_cappable(each)
                check_model(self.bench, each.materialization)
                self._send_all(each, planned, findings)
            if findings.moved or findings.again_at is not None or self.is_full:
                break
        return findings

    def _send_all(
        self, outstanding: Outstanding, planned: Sequence[Chunk], findings: Findings
    ) -> None:
        """Send chunks wave by wave, until all are sent or something is in the way."""
        materialization = outstanding.materialization
        is_unchecked = materialization.model_max_tokens is None
        while planned and not findings.moved:
            spooled = self._spool(materialization, planned)
            self.is_full = spooled is None
            if spooled is None:
                return
            with spooled:
                if self.budget.cap is not None:
                    self.budget.hold(outstanding, spooled.bodies[0].chunk, findings)
                    return
                if is_unchecked and spooled.bodies:
                    counted = check_shape(self.bench, materialization, spooled.bodies[0])
                    self._estimate(planned, counted)
                    is_unchecked = False
                self._send_bodies(outstanding, spooled.bodies, findings)
            if spooled.stale and findings.again_at is None:
                self._plan_anew(outstanding, spooled, findings)
            if findings.again_at is not None:
                return
            planned = planned[len(spooled.bodies) + len(spooled.stale) :]

    def _estimate(self, planned: Sequence[Chunk], counted: Sequence[Counted]) -> None:
        """Say what is about to be spent."""
        estimate = estimate_sending(self.bench, planned, counted)
        self.estimates.append(estimate)
        self.bench.log.info(estimate.said())

    def _plan_anew(self, outstanding: Outstanding, spooled: Spooled, findings: Findings) -> None:
        """Plan stale chunks anew, unless the source is never twice the same."""
        try:
            self.steadiness.check(self.bench, outstanding.materialization, spooled, self.work)
        except UnstableSourceError as error:
            findings.wait_until(self._stop_for(outstanding, error))
            self.is_refused = True
            return
        for chunk in spooled.stale:
            self.bench.log.info("Rows of a planned chunk have changed; planning it anew.")
            self.bench.plan_anew(outstanding.materialization, chunk)
            findings.moved = True

    def _stop_for(self, outstanding: Outstanding, error: UnstableSourceError) -> datetime:
        """Raise the error at once if nothing is out, else when what is out has been collected."""
        (now,) = self.bench.read([outstanding.materialization])
        if now.in_state("sending", "submitted"):
            self.bench.log.error("Sending stops, what is out will be collected: %s", error)
            return self.bench.claude.now() + LATEST_END
        self.bench.close(outstanding.materialization, if_unsent=True)
        raise error

    def _not_before(self, work: Sequence[Outstanding]) -> datetime | None:
        """Until when the API has asked this run not to send; None if it may."""
        now = self.bench.claude.now()
        if self.is_refused and any(each.in_state("sending", "submitted") for each in work):
            return now + LATEST_END  # what is out is collected first
        until = self.not_again_before
        return until if until is not None and now < until else None

    def _spool(self, materialization: Materialization, planned: Sequence[Chunk]) -> Spooled | None:
        """Prepare as many chunks as the window has room for; None when it has none."""
        slices = self.bench.slices_of(materialization.partitions)
        made: list[Spooled] = []

        def work(connection: Connection) -> Spooled | None:
            while made:
                made.pop().close()  # of a transaction that lost against another one
            fitting = self._fitting(connection, materialization, planned)
            if not fitting:
                return None
            declaration = self.bench.declaration
            at = asset_of(connection, declaration.asset)
            most = self.max_spooled_bytes
            spooled = spool(connection, declaration, at, fitting, slices, max_bytes=most)
            made.append(spooled)
            self.budget.look(connection, materialization, spooled.bodies[:1])
            return spooled

        try:
            return self.bench.warehouse.transact(work)
        except BaseException:
            for each in made:
                each.close()
            raise

    def _fitting(
        self, connection: Connection, materialization: Materialization, planned: Sequence[Chunk]
    ) -> list[Chunk]:
        """The next chunks that fit into the window, and but for the first, under the caps."""
        room = self._room(connection)
        left = self.budget.room(connection, materialization)
        fitting: list[Chunk] = []
        for chunk in planned:
            if not self._fits(chunk, room, is_first=not fitting):
                break
            if left is not None:
                left -= caps.planned_usd(self.bench.declaration, chunk) or Decimal(0)
                if left < 0 and fitting:
                    break
            room -= chunk.requests
            fitting.append(chunk)
        return fitting

    def _room(self, connection: Connection) -> int:
        since = self.bench.claude.now() - LATEST_END
        out = in_flight(connection, self.bench.declaration.workspace, since)
        return self.bench.claude.max_in_flight_requests - out

    def _fits(self, chunk: Chunk, room: int, *, is_first: bool) -> bool:
        """A chunk larger than the whole window goes alone, when nothing else is out."""
        is_empty = room == self.bench.claude.max_in_flight_requests
        return chunk.requests <= room or (is_empty and is_first)

    def _send_bodies(
        self, outstanding: Outstanding, bodies: Sequence[Body], findings: Findings
    ) -> None:
        """Send bodies until something changes what is to be sent, or is in the way."""
        for body in bodies:
            self._announce(outstanding.materialization)
            chunk = self._intend(outstanding, body)
            if chunk is None:
                findings.moved = True
                return
            self._send(outstanding, replace(body, chunk=chunk), findings)
            if findings.again_at is not None:
                return

    def _announce(self, materialization: Materialization) -> None:
        if self.is_announced:
            return
        try:
            self.bench.before_sending()
        except Exception:
            self.bench.close(materialization, if_unsent=True)
            raise
        self.is_announced = True

    def _intend(self, outstanding: Outstanding, body: Body) -> Chunk | None:
        """Write down that the chunk is about to be sent; None if it cannot be any more."""
        has_been_asked = False

        def work(connection: Connection) -> datetime | None:
            nonlocal has_been_asked
            serialize_sending(connection, self.bench.declaration.workspace)
            if not self._fits(body.chunk, self._room(connection), is_first=True):
                return None
            self.budget.look(connection, outstanding.materialization, [body])
            if self.budget.cap is not None:
                return None
            plan = self.bench.plan(connection, outstanding.materialization)
            has_been_asked = asked_by_others(plan, body.chunk)
            has_been_asked = has_been_asked or answered_by_copy(plan, body.chunk)
            if has_been_asked:
                return None
            now = self.bench.claude.now()  # not before the database was free
            sending = chunks.Sending(
                nonce=body.nonce,
                body_sha256=body.sha256,
                size=body.size,
                run_id=self.bench.run.run_id,
                now=now,
                model=self.bench.declaration.shape.model,
                most_usd=caps.most_usd(self.bench.declaration, body),
            )
            chunks.mark_sending(connection, body.chunk, sending)
            return now

        try:
            sending_at = self.bench.warehouse.transact(work)
        except LostChunkError:
            return None  # another run has sent it, or cancelled its materialization
        if has_been_asked:
            self.bench.log.info("The same has been asked meanwhile; planning the rest anew.")
            self.bench.plan_anew(outstanding.materialization, body.chunk)
        if sending_at is None:
            return None
        return replace(body.chunk, state="sending", nonce=body.nonce, sending_at=sending_at)

    def _send(self, outstanding: Outstanding, body: Body, findings: Findings) -> None:
        """Send a body, and note what came of it."""
        chunk = body.chunk
        match self._post(body):
            case Created(batch):
                record(self.bench, outstanding, chunk, batch)
                self.bench.log.info(
                    "Submitted batch %s: %s requests.", batch.id, f"{chunk.requests:,}"
                )
            case InDoubt(reason):
                self.bench.log.warning("Nobody knows yet whether a batch was created (%s).", reason)
                findings.wait_until(settled_at(self.bench.claude, self._doubt(chunk)))
            case NotCreated(reason, "too_large"):
                self.bench.log.warning("A chunk is too large and is split (%s).", reason)
                self._split(outstanding.materialization, chunk)
                findings.moved = True
            case NotCreated(reason, "halted" | "refused" as because):
                self._unsend(chunk)
                again_at = self._refused(outstanding, chunk, reason, is_halt=because == "halted")
                findings.wait_until(again_at)
                self.is_refused = True
            case NotCreated(reason, retry_after=pause):
                self._unsend(chunk)
                self.bench.log.warning("A batch was not accepted for now (%s).", reason)
                again_at = self.bench.claude.now() + (pause or _BUSY)
                findings.wait_until(again_at)
                self.not_again_before = again_at if pause else None

    def _doubt(self, chunk: Chunk) -> Chunk:
        """Note that the call is over, from which all can be told that may come of it."""
        now = self.bench.claude.now()
        try:
            self.bench.warehouse.transact(
                lambda connection: chunks.mark_doubted(connection, chunk, now)
            )
        except LostChunkError:
            self.bench.log.info("Another run has taken the chunk over.")
        return replace(chunk, doubted_at=now)

    def _post(self, body: Body) -> Sent:
        """Post a body; again after short pauses, while it surely has not arrived and is wanted."""
        for attempt in itertools.count():
            sent = post(self.bench.claude, body)
            pause = _pause_after(sent, attempt)
            if pause is None or pause > self.patience:
                return sent
            self.patience -= pause
            self.bench.log.info("Trying again in %.0f s.", pause.total_seconds())
            self.bench.sleep(pause.total_seconds())
            if not self._is_still_ours(body.chunk):
                return sent
        raise AssertionError  # pragma: no cover  # counting never ends

    def _is_still_ours(self, chunk: Chunk) -> bool:
        """Whether the chunk may be sent once more: nobody has found it, or cancelled it."""

        def work(connection: Connection) -> None:
            # Who cancels a materialization claims too: one of the two comes first.
            ledger.claim_chunks(connection, asset_of(connection, self.bench.declaration.asset), 0)
            chunks.mark_sending_again(connection, chunk, self.bench.claude.now())

        try:
            self.bench.warehouse.transact(work)
        except LostChunkError:
            return False
        return True

    def _unsend(self, chunk: Chunk) -> None:
        """Plan a chunk again that surely was not created, if anybody still wants it."""
        asset = self.bench.declaration.asset

        def work(connection: Connection) -> None:
            chunks.mark_unsent(connection, chunk)
            dissolve_cancelled(connection, asset_of(connection, asset))

        try:
            self.bench.warehouse.transact(work)
        except LostChunkError:
            self.bench.log.info("Another run has taken the chunk over.")

    def _split(self, materialization: Materialization, chunk: Chunk) -> None:
        """Halve a chunk; one request that is too large by itself fails."""

        def work(connection: Connection) -> None:
            plan = self.bench.plan(connection, materialization)
            if chunk.requests > 1:
                resending.split(plan, chunk)
                dissolve_cancelled(connection, plan.registered)
            else:
                land(plan, Landing(chunk, absent=TOO_LARGE))

        try:
            self.bench.warehouse.transact(work)
        except LostChunkError:
            self.bench.log.info("Another run has taken the chunk over.")

    def _refused(
        self, outstanding: Outstanding, chunk: Chunk, reason: str, *, is_halt: bool
    ) -> datetime:
        """Stop sending: at once if nothing is out, else when what is out has been collected."""
        now = self.bench.read([each.materialization for each in self.work])
        if any(each.in_state("sending", "submitted") for each in now):
            self.bench.log.error("Sending stops, what is out will be collected: %s", reason)
            return self.bench.claude.now() + LATEST_END
        self.bench.close(outstanding.materialization, if_unsent=True)
        asset = self.bench.declaration.asset
        if is_halt:
            planned = [chunk for each in now for chunk in each.in_state("planned")]
            unsent = sum(each.requests for each in planned)
            raise AccountHaltedError(asset, reason, unsent=unsent)
        raise SubmissionRefusedError(asset, chunk.chunk_id, chunk.requests, reason)


def _pause_after(sent: Sent, attempt: int) -> timedelta | None:
    """How long to wait before the same body is posted once more; None if it is not."""
    match sent:
        case NotCreated(because="unreachable"):
            return timedelta(seconds=random.uniform(0.5, 1) * 2 ** min(attempt, 5))  # noqa: S311  # jitter, no secret
        case NotCreated(because="busy", retry_after=timedelta() as pause) if pause <= SHORT_PAUSE:
            return pause
        case _:
            return None
