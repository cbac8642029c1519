"""Which chunks are sent when: the window, what is in the way, and what is in doubt."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.errors import AccountHaltedError, SubmissionRefusedError
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.planning import replan
from dagster_claude_batch.preflight import check_model
from dagster_claude_batch.submission import (
    Body,
    Created,
    Found,
    InDoubt,
    NotCreated,
    NotFound,
    Spooled,
    Unsettled,
    post,
    reconcile,
    spool,
)
from dagster_claude_batch.warehouse import Connection
from dagster_claude_batch.workbench import LATEST_END, Outstanding, Workbench, asset_of


@dataclass
class Progress:
    """How far sending came: stopped by ``not_before``, or to be looked at ``again``."""

    moved: bool = False
    again: bool = False
    not_before: datetime | None = None


@dataclass
class Sender:
    """Sends the chunks of one run's materializations."""

    bench: Workbench
    is_announced: bool = False

    def reconcile(self, work: Sequence[Outstanding]) -> tuple[bool, datetime | None]:
        """Settle what is in doubt: whether something was, and until when something is not."""
        doubtful = [chunk for each in work for chunk in each.in_state("sending")]
        if not doubtful:
            return False, None
        known = self.bench.warehouse.transact(chunks.known_batches)
        unsettled: list[datetime] = []
        for chunk in doubtful:
            match reconcile(self.bench.claude, chunk, known=known, now=self.bench.claude.now()):
                case Found(batch):
                    self._record(chunk, batch)
                    known.add(batch.id)
                case NotFound():
                    self._unsend(chunk)
                case Unsettled(until):
                    unsettled.append(until)
        return len(unsettled) < len(doubtful), min(unsettled, default=None)

    def _record(self, chunk: Chunk, batch: MessageBatch) -> None:
        now = self.bench.claude.now()
        self.bench.warehouse.transact(
            lambda connection: chunks.mark_submitted(connection, chunk, batch.id, now)
        )

    def _unsend(self, chunk: Chunk) -> None:
        self.bench.warehouse.transact(lambda connection: chunks.mark_unsent(connection, chunk))

    def send(self, work: Sequence[Outstanding]) -> Progress:
        """Send what fits into the window."""
        progress = Progress()
        for each in work:
            planned = each.in_state("planned") if each.is_open else []
            if planned and not self.is_announced:
                check_model(self.bench, each.materialization)
            while planned and not progress.again:
                spooled = self._spool(each.materialization, planned)
                if spooled is None:
                    return progress
                with spooled:
                    self._send_bodies(each, spooled.bodies, progress)
                for chunk in spooled.stale:
                    self._replan(each.materialization, chunk)
                    progress.again = True
                if progress.not_before is not None:
                    return progress
                planned = planned[len(spooled.bodies) + len(spooled.stale) :]
        return progress

    def _spool(self, materialization: Materialization, planned: Sequence[Chunk]) -> Spooled | None:
        """Prepare as many chunks as the window has room for; None when it has none."""
        slices = self.bench.slices_of(materialization.partitions)

        def work(connection: Connection) -> Spooled | None:
            room = self._room(connection)
            fitting: list[Chunk] = []
            for chunk in planned:
                if not self._fits(chunk, room, is_first=not fitting):
                    break
                room -= chunk.requests
                fitting.append(chunk)
            if not fitting:
                return None
            at = asset_of(connection, self.bench.declaration.asset)
            return spool(connection, self.bench.declaration, at, fitting, slices)

        return self.bench.warehouse.transact(work)

    def _room(self, connection: Connection) -> int:
        out = chunks.in_flight(connection, self.bench.declaration.workspace)
        return self.bench.claude.max_in_flight_requests - out

    def _fits(self, chunk: Chunk, room: int, *, is_first: bool) -> bool:
        """A chunk larger than the whole window goes alone, when nothing else is out."""
        is_empty = room == self.bench.claude.max_in_flight_requests
        return chunk.requests <= room or (is_empty and is_first)

    def _replan(self, materialization: Materialization, chunk: Chunk) -> None:
        slices = self.bench.slices_of(materialization.partitions)
        self.bench.log.info("Rows of a planned chunk have changed; planning it anew.")
        self.bench.warehouse.transact(
            lambda connection: replan(self.bench.plan(connection, materialization), chunk, slices)
        )

    def _send_bodies(
        self, outstanding: Outstanding, bodies: Sequence[Body], progress: Progress
    ) -> None:
        for body in bodies:
            self._announce(outstanding.materialization)
            chunk = self._intend(body)
            if chunk is None:
                progress.again = True
                return
            progress.not_before = self._post(outstanding, chunk, body)
            progress.moved = True
            if progress.not_before is not None:
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

    def _intend(self, body: Body) -> Chunk | None:
        """Write down that the chunk is about to be sent; None when there is no room any more."""
        now = self.bench.claude.now()

        def work(connection: Connection) -> bool:
            chunks.serialize_sending(connection, self.bench.declaration.workspace)
            if not self._fits(body.chunk, self._room(connection), is_first=True):
                return False
            chunks.mark_sending(
                connection,
                body.chunk,
                nonce=body.nonce,
                body_sha256=body.sha256,
                size=body.size,
                run_id=self.bench.run.run_id,
                now=now,
            )
            return True

        return body.chunk if self.bench.warehouse.transact(work) else None

    def _post(self, outstanding: Outstanding, chunk: Chunk, body: Body) -> datetime | None:
        """Send a body; until when nothing more may be sent, if something is in the way."""
        match post(self.bench.claude, body):
            case Created(batch):
                self._record(chunk, batch)
                self.bench.log.info(
                    "Submitted batch %s: %s requests.", batch.id, f"{chunk.requests:,}"
                )
                return None
            case InDoubt(reason):
                self.bench.log.warning("Nobody knows yet whether a batch was created (%s).", reason)
                return self.bench.claude.now() + timedelta(
                    seconds=self.bench.claude.timeout_seconds
                )
            case NotCreated(reason, retry_after=timedelta() as pause):
                self._unsend(chunk)
                self.bench.log.warning("A batch was not accepted for now (%s).", reason)
                return self.bench.claude.now() + pause
            case NotCreated(reason, is_halt=is_halt):
                self._unsend(chunk)
                return self._refused(outstanding, chunk, reason, is_halt=is_halt)

    def _refused(
        self, outstanding: Outstanding, chunk: Chunk, reason: str, *, is_halt: bool
    ) -> datetime:
        """Stop sending: at once if nothing is out, else when what is out has been collected."""
        (now,) = self.bench.read([outstanding.materialization])
        if now.in_state("sending", "submitted"):
            self.bench.log.error("Sending stops, what is out will be collected: %s", reason)
            return self.bench.claude.now() + LATEST_END
        self.bench.close(outstanding.materialization, if_unsent=True)
        asset = self.bench.declaration.asset
        if is_halt:
            unsent = sum(each.requests for each in now.in_state("planned"))
            raise AccountHaltedError(asset, reason, unsent=unsent)
        raise SubmissionRefusedError(asset, chunk.chunk_id, chunk.requests, reason)
