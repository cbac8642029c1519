"""The one loop: find out, land, plan, send, and say what is still waited for."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import anthropic
from anthropic.types import ModelInfo
from anthropic.types.messages import MessageBatch

from dagster_claude_batch import ledger
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.due import Plan
from dagster_claude_batch.errors import (
    AccountHaltedError,
    LostChunkError,
    ModelUnavailableError,
    SubmissionRefusedError,
)
from dagster_claude_batch.landing import Landing, counts_of, land
from dagster_claude_batch.ledger import (
    Chunk,
    ChunkState,
    LedgerAsset,
    Materialization,
    MaterializationConfig,
)
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
            current = [self._reload(each) for each in materializations]
            still_open = [each for each in current if each.state == "open"]
            in_doubt = self._reconcile(still_open)
            moved = self._land_ended(still_open)
            moved |= self._plan_or_end(still_open)
            delayed = in_doubt or self._send(still_open)
            if not moved:
                return self._waiting(materializations, delayed)

    def settle(self, abandoned_runs: Sequence[str], *, is_alive: Callable[[str], bool]) -> int:
        """Land what nobody waits for, and cancel what was abandoned; how many batches are left.

        A materialization is abandoned if one of ``abandoned_runs`` worked on it and no run that
        is alive does. What is left has to be settled again, later.
        """
        asset = self.declaration.asset
        read = self.warehouse.transact
        if read(lambda connection: _find_registered(connection, asset)) is None:
            return 0
        left = 0
        for each in read(lambda connection: ledger.unlanded_materializations(connection, asset)):
            runs = read(lambda c, each=each: ledger.runs_of(c, each.materialization_id))
            if any(is_alive(run_id) for run_id in runs):
                continue
            if each.state == "open" and not runs.isdisjoint(abandoned_runs):
                self.cancel(each)
            self._reconcile([each])
            self._land_ended([each])
            left += len(self._chunks(each, "sending", "submitted"))
        return left

    def cancel(self, materialization: Materialization) -> None:
        """Send nothing more on its behalf, and ask for the end of what is out."""
        self.close(materialization)
        for chunk in self._chunks(materialization, "submitted"):
            try:
                self.claude.cancel(str(chunk.batch_id))
            except anthropic.APIStatusError as error:
                # It has ended meanwhile, or is gone: there is nothing to cancel then.
                self.log.info("Batch %s was not cancelled: %s", chunk.batch_id, error.message)

    def close(self, materialization: Materialization) -> None:
        """Cancel a materialization in the ledger; what it has out stays to be landed."""
        now, asset = self.claude.now(), self.declaration.asset

        def work(connection: Connection) -> None:
            registered = _registered(connection, asset)
            if ledger.end_materialization(
                connection, materialization.materialization_id, "cancelled", now
            ):
                ledger.dissolve_planned(connection, registered, materialization.materialization_id)

        self.warehouse.transact(work)

    # --- reading ----------------------------------------------------------------------------

    def _reload(self, materialization: Materialization) -> Materialization:
        return self.warehouse.transact(
            lambda connection: ledger.get_materialization(
                connection, materialization.materialization_id
            )
        )

    def _chunks(self, materialization: Materialization, *states: ChunkState) -> list[Chunk]:
        return self.warehouse.transact(
            lambda connection: ledger.chunks_of(
                connection, materialization.materialization_id, states
            )
        )

    def _plan(self, connection: Connection, materialization: Materialization) -> Plan:
        return Plan(
            connection,
            self.declaration,
            _registered(connection, self.declaration.asset),
            materialization,
            self.claude.now(),
        )

    # --- 1. find out ------------------------------------------------------------------------

    def _reconcile(self, materializations: Sequence[Materialization]) -> datetime | None:
        """Settle what is in doubt; until when nothing may be sent, if some of it stays so."""
        unsettled: list[datetime] = []
        for each in materializations:
            for chunk in self._chunks(each, "sending"):
                known = self.warehouse.transact(ledger.known_batches)
                verdict = reconcile(self.claude, chunk, known=known, now=self.claude.now())
                match verdict:
                    case Found(batch):
                        self._record(chunk, batch)
                    case NotFound():
                        self._unsend(chunk)
                    case Unsettled(until):
                        unsettled.append(until)
        return min(unsettled) if unsettled else None

    def _record(self, chunk: Chunk, batch: MessageBatch) -> None:
        now = self.claude.now()
        self.warehouse.transact(
            lambda connection: ledger.mark_submitted(connection, chunk, batch.id, now)
        )

    def _unsend(self, chunk: Chunk) -> None:
        self.warehouse.transact(lambda connection: ledger.mark_unsent(connection, chunk))

    # --- 2. land ----------------------------------------------------------------------------

    def _land_ended(self, materializations: Sequence[Materialization]) -> bool:
        out = [(each, c) for each in materializations for c in self._chunks(each, "submitted")]
        if not out:
            return False
        batches = self.claude.look([c.batch_id for _, c in out if c.batch_id])
        landed = False
        for materialization, chunk in out:
            batch = batches.get(chunk.batch_id or "")
            landing = self._landing_of(chunk, batch)
            if landing is not None:
                landed |= self._land(materialization, landing)
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

    def _land(self, materialization: Materialization, landing: Landing) -> bool:
        now = self.claude.now()

        def work(connection: Connection) -> None:
            registered = _registered(connection, self.declaration.asset)
            land(connection, self.declaration, registered, materialization, landing, now)

        try:
            self.warehouse.transact(work)
        except LostChunkError:
            self.log.info("Batch %s has been collected by another run.", landing.batch_id)
            return True
        self.log.info(
            "Collected batch %s: %s requests.", landing.batch_id, f"{landing.chunk.requests:,}"
        )
        return True

    # --- 3. plan ----------------------------------------------------------------------------

    def _plan_or_end(self, materializations: Sequence[Materialization]) -> bool:
        """Plan the retries of each materialization that is at rest, or end it."""
        moved = False
        for each in materializations:
            if self._chunks(each, "planned", "sending", "submitted"):
                continue
            slices = self.slices_of(each.partitions)

            def work(
                connection: Connection,
                materialization: Materialization = each,
                slices: list[PartitionSlice] = slices,
            ) -> int:
                plan = self._plan(connection, materialization)
                ledger.claim_chunks(connection, plan.registered, 0)
                retried = plan_retries(plan, slices)
                if not retried:
                    ledger.end_materialization(
                        connection, materialization.materialization_id, "done", plan.now
                    )
                return retried

            retried = self.warehouse.transact(work)
            if retried:
                self.log.info("Asking %s rows again that failed.", f"{retried:,}")
            moved = True
        return moved

    # --- 4. send ----------------------------------------------------------------------------

    def _send(self, materializations: Sequence[Materialization]) -> datetime | None:
        """Send what fits into the window; until when the rest has to wait, if that is known."""
        for each in materializations:
            while planned := self._chunks(each, "planned"):
                spooled = self._spool(self._check_model(each), planned)
                if spooled is None:
                    break
                for chunk in spooled.stale:
                    self._replan(each, chunk)
                delayed = self._send_bodies(each, spooled.bodies)
                if delayed is not None:
                    return delayed
        return None

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
        out = ledger.in_flight(connection, self.declaration.workspace)
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

    def _check_model(self, materialization: Materialization) -> Materialization:
        """Ask once whether the model exists, before the first chunk; that costs nothing.

        Raises:
            ModelUnavailableError: It does not, or cannot be used. The materialization is closed.
        """
        if materialization.model_max_tokens is not None or self._is_announced:
            return materialization
        model = self.declaration.shape.model
        try:
            found = self.claude.model(model)
        except anthropic.APIConnectionError as error:
            self.log.warning("The model could not be checked (%s); going on.", error)
            return materialization
        problem = _problem_with(found, self.declaration)
        if problem is not None:
            self._close_unsent([materialization])
            raise ModelUnavailableError(self.declaration.asset, model, problem)
        limit = found.max_tokens if found else None
        if limit is not None:
            self.warehouse.transact(
                lambda connection: ledger.note_model_limit(
                    connection, materialization.materialization_id, limit
                )
            )
        return materialization

    def _send_bodies(
        self, materialization: Materialization, bodies: Sequence[Body]
    ) -> datetime | None:
        for body in bodies:
            with body.file:
                if not self._is_announced:
                    self._announce(materialization)
                chunk = self._intend(body)
                if chunk is None:
                    return self.claude.now()
                delayed = self._post(materialization, chunk, body)
                if delayed is not None:
                    return delayed
        return None

    def _announce(self, materialization: Materialization) -> None:
        self._is_announced = True
        try:
            self.before_sending()
        except Exception:
            self._close_unsent([materialization])
            raise

    def _close_unsent(self, materializations: Sequence[Materialization]) -> None:
        """Give up what this run alone began, so that the next one begins anew."""
        for each in materializations:
            sent = self._chunks(each, "sending", "submitted", "landed")
            runs = self.warehouse.transact(
                lambda connection, each=each: ledger.runs_of(connection, each.materialization_id)
            )
            if not sent and runs <= {self.run.run_id}:
                self.close(each)

    def _intend(self, body: Body) -> Chunk | None:
        """Write down that the chunk is about to be sent; None when there is no room any more."""
        now = self.claude.now()

        def work(connection: Connection) -> bool:
            ledger.serialize_sending(connection, self.declaration.workspace)
            if not self._fits(body.chunk, self._room(connection), is_first=True):
                return False
            ledger.mark_sending(
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

    def _post(self, materialization: Materialization, chunk: Chunk, body: Body) -> datetime | None:
        sent = post(self.claude, body)
        match sent:
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
                return self._refused(materialization, chunk, reason, is_halt=is_halt)

    def _refused(
        self, materialization: Materialization, chunk: Chunk, reason: str, *, is_halt: bool
    ) -> datetime:
        """Stop sending: at once if nothing is out, else when what is out has been collected."""
        out = self._chunks(materialization, "sending", "submitted")
        if out:
            self.log.error("Sending stops, what is out will be collected: %s", reason)
            return self.claude.now() + LATEST_END
        asset = self.declaration.asset
        unsent = sum(each.requests for each in self._chunks(materialization, "planned"))
        self._close_unsent([materialization])
        if is_halt:
            raise AccountHaltedError(asset, reason, unsent=unsent)
        raise SubmissionRefusedError(asset, chunk.chunk_id, chunk.requests, reason)

    # --- waiting ----------------------------------------------------------------------------

    def _waiting(
        self, materializations: Sequence[Materialization], delayed: datetime | None
    ) -> Waiting | None:
        out = [c for each in materializations for c in self._chunks(each, "submitted")]
        doubtful = [c for each in materializations for c in self._chunks(each, "sending")]
        planned = [
            c
            for each in materializations
            if self._reload(each).state == "open"
            for c in self._chunks(each, "planned")
        ]
        if not (out or planned or doubtful):
            return None
        submitted = [c.submitted_at for c in out if c.submitted_at]
        latest = max(submitted) + LATEST_END if submitted else None
        moments = [moment for moment in (delayed, latest) if moment is not None]
        return Waiting(
            batch_ids=tuple(c.batch_id for c in out if c.batch_id),
            requests=sum(c.requests for c in out),
            unsent=len(planned),
            needs=planned[0].requests if planned else 0,
            since=min(submitted) if submitted else None,
            not_before=min(moments) if moments else None,
        )


def _find_registered(connection: Connection, asset: str) -> LedgerAsset | None:
    return ledger.find_asset(connection, asset) if ledger.is_ledger(connection) else None


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
