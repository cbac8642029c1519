"""Settling doubts: which batch is whose, what is sent anew, and what was created twice."""

from collections.abc import Sequence
from dataclasses import dataclass

from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.doubt import (
    WATCHED,
    Found,
    NotFound,
    Unsettled,
    Verdict,
    appeared,
    reconcile,
    shown_since,
)
from dagster_claude_batch.errors import LedgerOverwrittenError, LostChunkError
from dagster_claude_batch.outstanding import given_up, known_batches
from dagster_claude_batch.resending import record_copy, send_anew
from dagster_claude_batch.warehouse import Connection
from dagster_claude_batch.workbench import Findings, Outstanding, Workbench


@dataclass
class Reconciler:
    """Settles the doubts of one run's materializations."""

    bench: Workbench

    def reconcile(self, work: Sequence[Outstanding]) -> Findings:
        """Find out about every chunk whose sending is in doubt."""
        findings = Findings()
        doubtful = [(each, chunk) for each in work for chunk in each.in_state("sending")]
        now = self.bench.claude.now()  # before the API is asked: it says nothing of later
        strangers = self._strangers([chunk for _, chunk in doubtful], findings)
        if strangers is not None:
            for each, chunk in doubtful:
                verdict = reconcile(self.bench.claude, chunk, strangers, now)
                self._act(each, chunk, verdict, findings)
        return findings

    def _strangers(self, sought: Sequence[Chunk], findings: Findings) -> list[MessageBatch] | None:
        """Batches that the ledger lacks, as old as these chunks; None if the API does not say.

        The ledger is read after the API: what is recorded in between is no stranger.
        """
        if not sought:
            return []
        shown = self.bench.asking(findings, lambda: shown_since(self.bench.claude, sought))
        if shown is None:
            return None
        known = self.bench.warehouse.transact(known_batches)
        return [batch for batch in shown if batch.id not in known]

    def _act(
        self, outstanding: Outstanding, chunk: Chunk, verdict: Verdict, findings: Findings
    ) -> None:
        try:
            match verdict:
                case Found(batch, copies):
                    record(self.bench, outstanding, chunk, batch)
                    self._record_copies(outstanding, chunk, copies)
                case NotFound():
                    self._send_anew(outstanding, chunk)
                case Unsettled(until, candidates):
                    findings.wait_until(until)
                    findings.candidates += candidates
                    return
        except LostChunkError:
            self.bench.log.info("Another run has settled what was in doubt.")
        findings.moved = True

    def _record_copies(
        self, outstanding: Outstanding, chunk: Chunk, copies: Sequence[MessageBatch]
    ) -> None:
        for batch in copies:
            self.bench.log.warning(
                "Batch %s is a second copy: one call has created two batches.", batch.id
            )
            self.bench.warehouse.transact(
                lambda connection, batch=batch: record_copy(
                    self.bench.plan(connection, outstanding.materialization), chunk, batch.id
                )
            )

    def _send_anew(self, outstanding: Outstanding, chunk: Chunk) -> None:
        self.bench.log.warning(
            "The batch of a chunk of %s requests was never created; sending it anew.",
            f"{chunk.requests:,}",
        )
        self.bench.before_giving_up()
        self.bench.warehouse.transact(
            lambda connection: send_anew(
                self.bench.plan(connection, outstanding.materialization), chunk
            )
        )

    def watch(self) -> Findings:
        """Look for the batches of chunks that were given up; one that exists is a second copy.

        It is cancelled, and collected when it has ended, as any other.
        """
        findings = Findings()
        watched = self.bench.warehouse.transact(self.watched)
        now = self.bench.claude.now()
        strangers = self._strangers(watched, findings) or []
        for chunk in watched:
            found = appeared(self.bench.claude, chunk, strangers, now)
            if found is not None:
                strangers.remove(found)
                record_late(self.bench, chunk, found)
                findings.moved = True
        return findings

    def watched(self, connection: Connection) -> list[Chunk]:
        """Chunks that were given up, and whose batches may still appear."""
        since = self.bench.claude.now() - WATCHED
        return given_up(connection, self.bench.declaration.asset, since)


def record(bench: Workbench, outstanding: Outstanding, chunk: Chunk, batch: MessageBatch) -> None:
    """Note at once that a chunk's batch exists, whoever else may have an opinion of it by now.

    Raises:
        LedgerOverwrittenError: The ledger has never heard of the chunk.
    """
    now = bench.claude.now()
    try:
        bench.warehouse.transact(
            lambda connection: chunks.mark_submitted(connection, chunk, batch.id, now)
        )
    except LostChunkError:
        if batch.id in bench.warehouse.transact(known_batches):
            return
        if not record_late(bench, chunk, batch):
            _record_copy(bench, outstanding, chunk, batch)


def _record_copy(
    bench: Workbench, outstanding: Outstanding, chunk: Chunk, batch: MessageBatch
) -> None:
    def work(connection: Connection) -> bool:
        if not chunks.is_known(connection, chunk):
            return False
        record_copy(bench.plan(connection, outstanding.materialization), chunk, batch.id)
        return True

    if not bench.warehouse.transact(work):
        bench.cancel_batch(batch.id)
        asset, database = bench.declaration.asset, bench.warehouse.name
        raise LedgerOverwrittenError(asset, database, batch.id, chunk.requests)
    _say_copy(bench, batch)


def record_late(bench: Workbench, chunk: Chunk, batch: MessageBatch) -> bool:
    """Note the batch of a chunk that had been given up; False if it is not any more."""
    now = bench.claude.now()
    try:
        bench.warehouse.transact(
            lambda connection: chunks.mark_copy(connection, chunk, batch.id, now)
        )
    except LostChunkError:
        return False
    _say_copy(bench, batch)
    return True


def _say_copy(bench: Workbench, batch: MessageBatch) -> None:
    bench.log.warning("Batch %s is a second copy of what has been sent since.", batch.id)
