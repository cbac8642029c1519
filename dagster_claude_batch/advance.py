"""The one loop: find out, land, plan, send, and say what is still waited for."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import anthropic
from anthropic.types import ModelInfo
from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks, ledger
from dagster_claude_batch.chunks import Chunk, ChunkState
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.due import Plan
from dagster_claude_batch.errors import (
    AccountHaltedError,
    LostChunkError,
    ModelUnavailableError,
    SubmissionRefusedError,
)
from dagster_claude_batch.landing import Landing, counts_of, land
from dagster_claude_batch.ledger import LedgerAsset, Materialization, MaterializationConfig
from dagster_claude_batch.planning import RunIdentity, attach, plan_retries, replan
from dagster_claude_batch.resource import RESULTS_LAST, ClaudeBatchResource
from dagster_claude_batch.results import STAGED, fetch
from dagster_claude_batch.source import PartitionSlice
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
from dagster_claude_batch.warehouse import Connection, Warehouse

LATEST_END: Final = timedelta(hours=25)
"""A batch expires after 24 hours; one that has not been seen to end by then is looked at again."""


@dataclass(frozen=True)
class Waiting:
    """What the materializations still wait for.

    ``batch_ids`` are out. With ``unsent`` chunks left, any of them ending makes room; ``needs``
    is the number of requests of the next one. Before ``not_before`` nothing new can be known;
    None means that only the batches matter.
    """

    batch_ids: tuple[str, ...] = ()
    requests: int = 0
    unsent: int = 0
    needs: int = 0
    since: datetime | None = None
    not_before: datetime | None = None


@dataclass
class Engine:
    """One asset's declaration, with all that is needed to work on it.

    ``slices_of`` tells which rows a partition key stands for; ``before_sending`` is called once,
    after all checks and before anything is paid for.
    """

    declaration: Declaration
    warehouse: Warehouse
    claude: ClaudeBatchResource
    run: RunIdentity
    slices_of: Callable[[Sequence[str | None]], list[PartitionSlice]]
    before_sending: Callable[[], None] = lambda: None
    log: logging.Logger = field(default=logging.getLogger(__name__))
    _is_announced: bool = False

    def attach(
        self, partitions: Sequence[str | None], config: MaterializationConfig
    ) -> list[Materialization]:
        """Find or begin what this run works on. See `planning.attach`."""
        now = self.claude.now()
        slices = self.slices_of(partitions)
        return self.warehouse.transact(
            lambda connection: attach(connection, self.declaration, self.run, slices, config, now)
        )

    def attach_run(self, run_id: str, materializations: Sequence[Materialization]) -> None:
        """Note that another run is going to work on these."""
        now = self.claude.now()
        self.warehouse.transact(
            lambda connection: ledger.attach_run(
                connection, self.declaration.asset, run_id, materializations, now
            )
        )

    def advance(self, materializations: Sequence[Materialization]) -> Waiting | None:
        """Do all that can be done now; None when nothing is left to wait for.

        Raises:
            ModelUnavailableError, SubmissionRefusedError, AccountHaltedError: See there. What had
                been sent before stays sent, and is collected by whoever comes next.
        """
        while True:
            work = self._read(materializations)
            moved, unsettled = self._reconcile(work)
            moved |= self._land_ended(work)
            if moved or self._plan_or_end(work):
                continue
            progress = _Progress(not_before=unsettled) if unsettled else self._send(work)
            if not progress.again:
                after = self._read(materializations) if progress.moved else work
                return _waiting(after, progress.not_before)

    def settle(self, abandoned_runs: Sequence[str], *, is_alive: Callable[[str], bool]) -> int:
        """Land what nobody waits for, and cancel what was abandoned; how many batches are left.

        A materialization is abandoned if one of ``abandoned_runs`` worked on it and no run that
        is alive does. What is left has to be settled again, later.
        """
        left = 0
        for each, runs in self.warehouse.transact(self._unlanded):
            if any(is_alive(run_id) for run_id in runs):
                continue
            if each.state == "open" and not runs.isdisjoint(abandoned_runs):
                self.cancel(each)
            work = self._read([each])
            self._reconcile(work)
            self._land_ended(work)
            left += len(self._read([each])[0].in_state("sending", "submitted"))
        return left

    def _unlanded(self, connection: Connection) -> list[tuple[Materialization, set[str]]]:
        """Materializations that have something out, and the runs that work on them."""
        if not ledger.is_ledger(connection):
            return []
        found = ledger.unlanded_materializations(connection, self.declaration.asset)
        return [(each, ledger.runs_of(connection, each.materialization_id)) for each in found]

    def cancel(self, materialization: Materialization) -> None:
        """Send nothing more on its behalf, and ask for the end of what is out."""
        self._close(materialization)
        for chunk in self._read([materialization])[0].in_state("submitted"):
            try:
                self.claude.cancel(str(chunk.batch_id))
            except anthropic.APIStatusError as error:
                # It has ended meanwhile, or is gone: there is nothing to cancel then.
                self.log.info("Batch %s was not cancelled: %s", chunk.batch_id, error.message)

    def _close(self, materialization: Materialization, *, if_unsent: bool = False) -> None:
        """Cancel a materialization in the ledger; what it has out stays to be landed.

        With ``if_unsent`` only what this run alone began and has not sent any of.
        """
        now, asset, this_run = self.claude.now(), self.declaration.asset, {self.run.run_id}

        def work(connection: Connection) -> None:
            identity = materialization.materialization_id
            sent = chunks.chunks_of(connection, [identity], ("sending", "submitted", "landed"))
            if if_unsent and (sent or not ledger.runs_of(connection, identity) <= this_run):
                return
            if ledger.end_materialization(connection, identity, "cancelled", now):
                chunks.dissolve_planned(connection, _registered(connection, asset), identity)

        self.warehouse.transact(work)

    # --- reading ----------------------------------------------------------------------------

    def _read(self, materializations: Sequence[Materialization]) -> list["Outstanding"]:
        """How the materializations stand now, and what they have out."""
        ids = [each.materialization_id for each in materializations]

        def work(connection: Connection) -> list[Outstanding]:
            out = chunks.chunks_of(connection, ids, chunks.OUT)
            return [
                Outstanding(
                    ledger.get_materialization(connection, identity),
                    [chunk for chunk in out if chunk.materialization_id == identity],
                )
                for identity in ids
            ]

        return self.warehouse.transact(work)

    def _plan(self, connection: Connection, materialization: Materialization) -> Plan:
        return Plan(
            connection,
            self.declaration,
            _registered(connection, self.declaration.asset),
            materialization,
            self.claude.now(),
        )

    # --- 1. find out ------------------------------------------------------------------------

    def _reconcile(self, work: Sequence["Outstanding"]) -> tuple[bool, datetime | None]:
        """Settle what is in doubt: whether something was, and until when something is not."""
        doubtful = [chunk for each in work for chunk in each.in_state("sending")]
        if not doubtful:
            return False, None
        known = self.warehouse.transact(chunks.known_batches)
        unsettled: list[datetime] = []
        for chunk in doubtful:
            match reconcile(self.claude, chunk, known=known, now=self.claude.now()):
                case Found(batch):
                    self._record(chunk, batch)
                    known.add(batch.id)
                case NotFound():
                    self._unsend(chunk)
                case Unsettled(until):
                    unsettled.append(until)
        return len(unsettled) < len(doubtful), min(unsettled, default=None)

    def _record(self, chunk: Chunk, batch: MessageBatch) -> None:
        now = self.claude.now()
        self.warehouse.transact(
            lambda connection: chunks.mark_submitted(connection, chunk, batch.id, now)
        )

    def _unsend(self, chunk: Chunk) -> None:
        self.warehouse.transact(lambda connection: chunks.mark_unsent(connection, chunk))

    # --- 2. land ----------------------------------------------------------------------------

    def _land_ended(self, work: Sequence["Outstanding"]) -> bool:
        out = [(each.materialization, c) for each in work for c in each.in_state("submitted")]
        if not out:
            return False
        batches = self.claude.look([chunk.batch_id for _, chunk in out if chunk.batch_id])
        landed = False
        for materialization, chunk in out:
            landing = self._landing_of(chunk, batches.get(chunk.batch_id or ""))
            if landing is not None:
                self._land(materialization, landing)
                landed = True
        return landed

    def _landing_of(self, chunk: Chunk, batch: MessageBatch | None) -> Landing | None:
        if batch is None:
            return self._landing_of_lost(chunk)
        if batch.processing_status != "ended":
            return None
        counts = counts_of(batch)
        if batch.results_url is None:
            return _expired_landing(chunk, counts, batch.ended_at)
        staged = fetch(self.claude, batch, self.declaration.output, nonce=chunk.nonce)
        return Landing(chunk, batch.id, counts, batch.ended_at, staged)

    def _landing_of_lost(self, chunk: Chunk) -> Landing | None:
        """A batch that the API does not show: given up only when its results must be gone."""
        if chunk.submitted_at is None or self.claude.now() - chunk.submitted_at < RESULTS_LAST:
            return None
        nothing = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        return _expired_landing(chunk, nothing, None)

    def _land(self, materialization: Materialization, landing: Landing) -> None:
        now = self.claude.now()

        def work(connection: Connection) -> None:
            registered = _registered(connection, self.declaration.asset)
            land(connection, self.declaration, registered, materialization, landing, now)

        try:
            self.warehouse.transact(work)
        except LostChunkError:
            self.log.info("Batch %s has been collected by another run.", landing.batch_id)
            return
        self.log.info(
            "Collected batch %s: %s requests.", landing.batch_id, f"{landing.chunk.requests:,}"
        )

    # --- 3. plan ----------------------------------------------------------------------------

    def _plan_or_end(self, work: Sequence["Outstanding"]) -> bool:
        """Plan the retries of each materialization that is at rest, or end it."""
        at_rest = [e.materialization for e in work if e.is_open and not e.chunks]
        for each in at_rest:
            slices = self.slices_of(each.partitions)
            retried = self.warehouse.transact(
                lambda connection, each=each, slices=slices: self._retry_or_end(
                    connection, each, slices
                )
            )
            if retried:
                self.log.info("Asking %s rows again that failed.", f"{retried:,}")
        return bool(at_rest)

    def _retry_or_end(
        self,
        connection: Connection,
        materialization: Materialization,
        slices: list[PartitionSlice],
    ) -> int:
        plan = self._plan(connection, materialization)
        ledger.claim_chunks(connection, plan.registered, 0)
        identity = materialization.materialization_id
        if chunks.chunks_of(connection, [identity], chunks.OUT):
            return 0  # another run has planned meanwhile
        retried = plan_retries(plan, slices)
        if not retried:
            ledger.end_materialization(connection, identity, "done", plan.now)
        return retried

    # --- 4. send ----------------------------------------------------------------------------

    def _send(self, work: Sequence["Outstanding"]) -> "_Progress":
        """Send what fits into the window."""
        progress = _Progress()
        for each in work:
            planned = each.in_state("planned") if each.is_open else []
            if planned:
                self._check_model(each.materialization)
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
        slices = self.slices_of(materialization.partitions)

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
            registered = _registered(connection, self.declaration.asset)
            return spool(connection, self.declaration, registered, fitting, slices)

        return self.warehouse.transact(work)

    def _room(self, connection: Connection) -> int:
        out = chunks.in_flight(connection, self.declaration.workspace)
        return self.claude.max_in_flight_requests - out

    def _fits(self, chunk: Chunk, room: int, *, is_first: bool) -> bool:
        """A chunk larger than the whole window goes alone, when nothing else is out."""
        is_empty = room == self.claude.max_in_flight_requests
        return chunk.requests <= room or (is_empty and is_first)

    def _replan(self, materialization: Materialization, chunk: Chunk) -> None:
        slices = self.slices_of(materialization.partitions)
        self.log.info("Rows of a planned chunk have changed; planning it anew.")
        self.warehouse.transact(
            lambda connection: replan(self._plan(connection, materialization), chunk, slices)
        )

    def _check_model(self, materialization: Materialization) -> None:
        """Ask once whether the model exists, before the first chunk; that costs nothing.

        Raises:
            ModelUnavailableError: It does not, or cannot be used. The materialization is closed.
        """
        if materialization.model_max_tokens is not None or self._is_announced:
            return
        model = self.declaration.shape.model
        try:
            found = self.claude.model(model)
        except anthropic.APIConnectionError as error:
            self.log.warning("The model could not be checked (%s); going on.", error)
            return
        problem = _problem_with(found, self.declaration)
        if problem is not None:
            self._close(materialization, if_unsent=True)
            raise ModelUnavailableError(self.declaration.asset, model, problem)
        limit = found.max_tokens if found else None
        if limit is not None:
            self.warehouse.transact(
                lambda connection: ledger.note_model_limit(
                    connection, materialization.materialization_id, limit
                )
            )

    def _send_bodies(
        self, outstanding: "Outstanding", bodies: Sequence[Body], progress: "_Progress"
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
        if self._is_announced:
            return
        try:
            self.before_sending()
        except Exception:
            self._close(materialization, if_unsent=True)
            raise
        self._is_announced = True

    def _intend(self, body: Body) -> Chunk | None:
        """Write down that the chunk is about to be sent; None when there is no room any more."""
        now = self.claude.now()

        def work(connection: Connection) -> bool:
            chunks.serialize_sending(connection, self.declaration.workspace)
            if not self._fits(body.chunk, self._room(connection), is_first=True):
                return False
            chunks.mark_sending(
                connection,
                body.chunk,
                nonce=body.nonce,
                body_sha256=body.sha256,
                size=body.size,
                run_id=self.run.run_id,
                now=now,
            )
            return True

        return body.chunk if self.warehouse.transact(work) else None

    def _post(self, outstanding: "Outstanding", chunk: Chunk, body: Body) -> datetime | None:
        """Send a body; until when nothing more may be sent, if something is in the way."""
        match post(self.claude, body):
            case Created(batch):
                self._record(chunk, batch)
                self.log.info("Submitted batch %s: %s requests.", batch.id, f"{chunk.requests:,}")
                return None
            case InDoubt(reason):
                self.log.warning("Nobody knows yet whether a batch was created (%s).", reason)
                return self.claude.now() + timedelta(seconds=self.claude.timeout_seconds)
            case NotCreated(reason, retry_after=timedelta() as pause):
                self._unsend(chunk)
                self.log.warning("A batch was not accepted for now (%s).", reason)
                return self.claude.now() + pause
            case NotCreated(reason, is_halt=is_halt):
                self._unsend(chunk)
                return self._refused(outstanding, chunk, reason, is_halt=is_halt)

    def _refused(
        self, outstanding: "Outstanding", chunk: Chunk, reason: str, *, is_halt: bool
    ) -> datetime:
        """Stop sending: at once if nothing is out, else when what is out has been collected."""
        (now,) = self._read([outstanding.materialization])
        if now.in_state("sending", "submitted"):
            self.log.error("Sending stops, what is out will be collected: %s", reason)
            return self.claude.now() + LATEST_END
        self._close(outstanding.materialization, if_unsent=True)
        asset = self.declaration.asset
        if is_halt:
            unsent = sum(each.requests for each in now.in_state("planned"))
            raise AccountHaltedError(asset, reason, unsent=unsent)
        raise SubmissionRefusedError(asset, chunk.chunk_id, chunk.requests, reason)


@dataclass(frozen=True)
class Outstanding:
    """A materialization, and its chunks that have not landed, in the order of their planning."""

    materialization: Materialization
    chunks: list[Chunk]

    @property
    def is_open(self) -> bool:
        """Whether anything may still be planned or sent."""
        return self.materialization.state == "open"

    def in_state(self, *states: ChunkState) -> list[Chunk]:
        """The chunks in one of these states."""
        return [chunk for chunk in self.chunks if chunk.state in states]


@dataclass
class _Progress:
    """How far sending came: stopped by ``not_before``, or to be looked at ``again``."""

    moved: bool = False
    again: bool = False
    not_before: datetime | None = None


def _waiting(work: Sequence[Outstanding], delayed: datetime | None) -> Waiting | None:
    out = [chunk for each in work for chunk in each.in_state("submitted")]
    doubtful = [chunk for each in work for chunk in each.in_state("sending")]
    planned = [chunk for each in work if each.is_open for chunk in each.in_state("planned")]
    if not (out or planned or doubtful):
        return None
    submitted = [chunk.submitted_at for chunk in out if chunk.submitted_at]
    latest = max(submitted) + LATEST_END if submitted else None
    moments = [moment for moment in (delayed, latest) if moment is not None]
    return Waiting(
        batch_ids=tuple(chunk.batch_id for chunk in out if chunk.batch_id),
        requests=sum(chunk.requests for chunk in out),
        unsent=len(planned),
        needs=planned[0].requests if planned else 0,
        since=min(submitted, default=None),
        not_before=min(moments, default=None),
    )


def _registered(connection: Connection, asset: str) -> LedgerAsset:
    registered = ledger.find_asset(connection, asset)
    if registered is None:
        raise LookupError(asset)
    return registered


def _expired_landing(chunk: Chunk, counts: dict[str, int], ended_at: datetime | None) -> Landing:
    return Landing(
        chunk,
        chunk.batch_id or "",
        counts,
        ended_at,
        STAGED.empty_table(),
        absent_as="results_expired",
    )


def _problem_with(found: ModelInfo | None, declaration: Declaration) -> str | None:
    """Why the API would refuse each row, as the end of a sentence about the model."""
    if found is None:
        return "does not exist, or this API key may not use it."
    if found.lifecycle == "retired":
        return "is retired."
    if found.max_tokens is not None and declaration.max_tokens > found.max_tokens:
        return (
            f"answers with at most {found.max_tokens:,} tokens, but `max_tokens` is "
            f"{declaration.max_tokens:,}."
        )
    abilities = found.capabilities
    if abilities is not None and not abilities.batch.supported:
        return "cannot be used in batches."
    if (
        abilities is not None
        and declaration.output.schema is not None
        and not abilities.structured_outputs.supported
    ):
        return "has no structured outputs, which `output` needs."
    return None
