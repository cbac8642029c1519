"""The one loop: find out, land, plan, send, and say what is still waited for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import anthropic
import duckdb
from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks, ledger
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.errors import ClaudeBatchError, LostChunkError
from dagster_claude_batch.landing import Landing, counts_of, land
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.planning import attach, plan_retries
from dagster_claude_batch.resource import RESULTS_LAST
from dagster_claude_batch.results import STAGED, fetch
from dagster_claude_batch.sending import Progress, Sender
from dagster_claude_batch.source import PartitionSlice
from dagster_claude_batch.warehouse import Connection
from dagster_claude_batch.workbench import (
    Outstanding,
    Waiting,
    Workbench,
    asset_of,
    waiting_for,
)


@dataclass
class Engine(Workbench):
    """The engine of one run: whatever the state of things, `advance` is what to do."""

    _sender: Sender = field(init=False)

    def __post_init__(self) -> None:
        self._sender = Sender(self)

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
            work = self.read(materializations)
            moved, unsettled = self._sender.reconcile(work)
            moved |= self._land_ended(work)
            if moved or self._plan_or_end(work):
                continue
            progress = Progress(not_before=unsettled) if unsettled else self._sender.send(work)
            if not progress.again:
                after = self.read(materializations) if progress.moved else work
                return waiting_for(after, progress.not_before)

    def may_be_out(self, materializations: Sequence[Materialization]) -> bool:
        """Whether something was, or may have been, paid for that has not been collected.

        A ledger that cannot be read says yes: then somebody has to go on waiting.
        """
        try:
            work = self.read(materializations)
        except (duckdb.Error, ClaudeBatchError):
            return True
        return any(each.in_state("sending", "submitted") for each in work)

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
            work = self.read([each])
            self._sender.reconcile(work)
            self._land_ended(work)
            left += len(self.read([each])[0].in_state("sending", "submitted"))
        return left

    def _unlanded(self, connection: Connection) -> list[tuple[Materialization, set[str]]]:
        """Materializations that have something out, and the runs that work on them."""
        if not ledger.is_ledger(connection):
            return []
        found = ledger.unlanded_materializations(connection, self.declaration.asset)
        return [(each, ledger.runs_of(connection, each.materialization_id)) for each in found]

    def cancel(self, materialization: Materialization) -> None:
        """Send nothing more on its behalf, and ask for the end of what is out."""
        self.close(materialization)
        for chunk in self.read([materialization])[0].in_state("submitted"):
            try:
                self.claude.cancel(str(chunk.batch_id))
            except anthropic.APIStatusError as error:
                # It has ended meanwhile, or is gone: there is nothing to cancel then.
                self.log.info("Batch %s was not cancelled: %s", chunk.batch_id, error.message)

    def _land_ended(self, work: Sequence[Outstanding]) -> bool:
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
            at = asset_of(connection, self.declaration.asset)
            land(connection, self.declaration, at, materialization, landing, now)

        try:
            self.warehouse.transact(work)
        except LostChunkError:
            self.log.info("Batch %s has been collected by another run.", landing.batch_id)
            return
        self.log.info(
            "Collected batch %s: %s requests.", landing.batch_id, f"{landing.chunk.requests:,}"
        )

    def _plan_or_end(self, work: Sequence[Outstanding]) -> bool:
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
        plan = self.plan(connection, materialization)
        ledger.claim_chunks(connection, plan.registered, 0)
        identity = materialization.materialization_id
        if chunks.chunks_of(connection, [identity], chunks.OUT):
            return 0  # another run has planned meanwhile
        retried = plan_retries(plan, slices)
        if not retried:
            ledger.end_materialization(connection, identity, "done", plan.now)
        return retried


def _expired_landing(chunk: Chunk, counts: dict[str, int], ended_at: datetime | None) -> Landing:
    return Landing(
        chunk,
        chunk.batch_id or "",
        counts,
        ended_at,
        STAGED.empty_table(),
        absent_as="results_expired",
    )
