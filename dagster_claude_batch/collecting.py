"""Which batches have ended, are gone or unwanted; and landing what they hold."""

import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

from anthropic.types.messages import MessageBatch

from dagster_claude_batch import chunks
from dagster_claude_batch.ahead import begun_ahead
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.doubt import UNREADABLE, UNSEEN, proof
from dagster_claude_batch.errors import (
    NO_ROOM,
    CredentialsRefusedError,
    LostChunkError,
    NoTemporarySpaceError,
    ResultsUnavailableError,
)
from dagster_claude_batch.landing import Landing, counts_of, land_all
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.matching import ours_is_ours
from dagster_claude_batch.outcomes import NOT_SENT, RESULTS_EXPIRED
from dagster_claude_batch.outstanding import answered_by_copy, batches_before, questions_of
from dagster_claude_batch.resource import RESULTS_LAST
from dagster_claude_batch.results import fetch
from dagster_claude_batch.staged import Staged
from dagster_claude_batch.workbench import Findings, Outstanding, Workbench, asset_of

Batches = Mapping[str, MessageBatch]

_GONE: dict[str, int] = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)


_STAGED_ROWS: Final = 100_000
_STAGED_BYTES: Final = 200_000_000
"""What is landed together, if there is so much. Each landing makes a row group of DuckDB's, which
has up to 122,880 rows; smaller ones are joined, and written once more with each that follows."""

_FIRST_ROWS: Final = 50_000
"""The first landing begins earlier, for while it lasts the next results are read."""

_READY_BYTES: Final = 200_000_000
"""What waits to be staged while others land, on the disk."""


@dataclass
class Collector:
    """Collects for one run's materializations."""

    bench: Workbench
    _begun: dict[int, Callable[[], Staged]] = field(
        default_factory=dict[int, Callable[[], Staged]], init=False
    )
    _is_first: bool = field(default=True, init=False)
    _staged: list[tuple[Outstanding, Landing]] = field(
        default_factory=list[tuple[Outstanding, Landing]], init=False
    )

    def collect(self, work: Sequence[Outstanding]) -> Findings:
        """Land all that has ended, and cancel what nobody wants any more.

        Raises:
            CredentialsRefusedError: The results of a batch are refused; all others have landed.
        """
        findings = Findings(moved=self._expire_unsent(work))
        out = [(each, chunk) for each in work for chunk in each.in_state("submitted")]
        if not out:
            return findings
        batches = self.bench.asking(
            findings, lambda: self.bench.claude.look([str(chunk.batch_id) for _, chunk in out])
        )
        if batches is None:
            return findings
        with begun_ahead(
            self._downloads(out, batches),
            threads=self.bench.downloads_at_once,
            max_bytes=_READY_BYTES,
        ) as self._begun:
            try:
                self._collect_all(out, batches, findings)
            finally:
                self._let_go()
        return findings

    def _downloads(
        self, out: Sequence[tuple[Outstanding, Chunk]], batches: Batches
    ) -> dict[int, Callable[[], Staged]]:
        """How to download what is surely to be, by chunk."""
        found = ((chunk, batches.get(str(chunk.batch_id))) for _, chunk in out)
        return {
            chunk.chunk_id: self._download(chunk, batch)
            for chunk, batch in found
            if batch is not None
            and batch.processing_status == "ended"
            and not (chunk.is_copy or self._is_gone(batch))
        }

    def _collect_all(
        self, out: Sequence[tuple[Outstanding, Chunk]], batches: Batches, findings: Findings
    ) -> None:
        refused: list[CredentialsRefusedError] = []
        try:
            for each, chunk in out:
                batch = batches.get(str(chunk.batch_id))
                try:
                    if batch is None:
                        self._miss(each, chunk, batches, findings)
                    else:
                        self._proceed(each, chunk, batch, findings)
                except CredentialsRefusedError as error:
                    refused.append(error)
        except Exception:
            with self._noting_troubles():  # the first one is raised
                self._land_staged(findings)
            raise
        self._land_staged(findings)
        if refused:
            raise refused[0]

    def _proceed(
        self, outstanding: Outstanding, chunk: Chunk, batch: MessageBatch, findings: Findings
    ) -> None:
        """Do with a batch what its status calls for."""
        if batch.processing_status == "ended":
            self._collect(outstanding, chunk, batch, findings)
        elif batch.processing_status == "in_progress" and outstanding.is_unwanted(chunk):
            self.bench.cancel_batch(str(chunk.batch_id))

    def _collect(
        self, outstanding: Outstanding, chunk: Chunk, batch: MessageBatch, findings: Findings
    ) -> None:
        """Download and land a batch that has ended; what cannot be read now is read later."""
        if self._is_gone(batch):
            self._land(outstanding, _gone(chunk, batch), findings)
            return
        if chunk.is_copy and self._is_not_ours(chunk, batch):
            findings.moved = True
            return
        begun = self._begun.pop(chunk.chunk_id, None)  # several may wait for the same one
        try:
            staged = self.bench.asking(findings, begun or self._download(chunk, batch))
        except ResultsUnavailableError as error:
            if error.is_gone:
                self._land(outstanding, _gone(chunk, batch), findings)
                return
            self.bench.log.warning(
                "The results of batch %s are not whole: %s Nothing is lost; they are downloaded "
                "again in %d minutes.",
                *(batch.id, error.reason, UNREADABLE.total_seconds() / 60),
            )
            findings.wait_until(self.bench.claude.now() + UNREADABLE)
            return
        except OSError as error:
            if error.errno in NO_ROOM:
                asset = self.bench.declaration.asset
                raise NoTemporarySpaceError(asset, tempfile.gettempdir()) from error
            raise
        if staged is None:
            return
        landing = Landing(
            chunk,
            batch.id,
            counts_of(batch),
            batch.ended_at,
            staged,
            was_cancelled=batch.cancel_initiated_at is not None,
        )
        self._staged.append((outstanding, landing))
        all_staged = [each.staged for _, each in self._staged]
        rows = sum(len(each.outcomes) for each in all_staged)
        enough = _FIRST_ROWS if self._is_first else _STAGED_ROWS
        if rows > enough or sum(each.nbytes for each in all_staged) > _STAGED_BYTES:
            self._is_first = False
            self._land_staged(findings)

    def _is_gone(self, batch: MessageBatch) -> bool:
        """Whether the time is over for which the API keeps results."""
        age = self.bench.claude.now() - batch.created_at
        return batch.archived_at is not None or age > RESULTS_LAST

    def _download(self, chunk: Chunk, batch: MessageBatch) -> Callable[[], Staged]:
        """How to download and read a chunk's results."""
        bench = self.bench
        return partial(
            fetch,
            bench.claude,
            batch,
            bench.declaration.output,
            nonce=chunk.nonce,
            questions=self._questions_of(chunk),
            sleep=bench.sleep,
        )

    def _questions_of(self, chunk: Chunk) -> Mapping[int, int]:
        """How many questions each request of a chunk has, of those that have several."""
        if not chunk.is_packed:
            return {}
        asset = self.bench.declaration.asset
        return self.bench.warehouse.transact(
            lambda connection: questions_of(connection, asset_of(connection, asset), chunk)
        )

    def _is_not_ours(self, chunk: Chunk, batch: MessageBatch) -> bool:
        """Let go of a batch that was taken for a second copy, and turns out to be another's."""
        if proof(self.bench.claude, batch, chunk, self.bench.claude.now()) is not False:
            return False
        self.bench.log.warning("Batch %s is not ours, and is left alone.", batch.id)
        with suppress(LostChunkError):
            self.bench.warehouse.transact(
                lambda connection: chunks.mark_not_ours(connection, chunk)
            )
        return True

    def _miss(
        self, outstanding: Outstanding, chunk: Chunk, batches: Batches, findings: Findings
    ) -> None:
        """Give up a batch that the API does not show, but only if its results must be gone.

        That is so past their time, or if the same credentials do show a batch that was sent
        before it: then it was deleted, and is not just another workspace's.
        """
        now = self.bench.claude.now()
        age = now - chunk.submitted_at if chunk.submitted_at else timedelta()
        if age > RESULTS_LAST:
            self._land(outstanding, _gone(chunk, None), findings)
        elif age > UNSEEN and self._sees_older(chunk, batches, findings):
            self._ask_for(outstanding, chunk, findings)
        else:
            self.bench.log.warning(
                "The API does not show batch %s: it was deleted, or these credentials belong to "
                "another workspace than the one that sent it. Waiting.",
                chunk.batch_id,
            )
            findings.wait_until(now + UNSEEN)

    def _ask_for(self, outstanding: Outstanding, chunk: Chunk, findings: Findings) -> None:
        """Ask for a batch by its id, for a list may lack it, before it is given up."""
        claude, batch_id = self.bench.claude, str(chunk.batch_id)
        shown = self.bench.asking(findings, lambda: claude.look([batch_id]))
        if shown is None:
            return
        if batch_id in shown:
            self._proceed(outstanding, chunk, shown[batch_id], findings)
        else:
            self._land(outstanding, _gone(chunk, None), findings)

    def _sees_older(self, chunk: Chunk, batches: Batches, findings: Findings) -> bool:
        """Whether the API shows any batch that was sent before this one, with its credentials."""
        since = self.bench.claude.now() - RESULTS_LAST
        older = self.bench.warehouse.transact(
            lambda connection: batches_before(connection, chunk, since)
        )
        if not older.isdisjoint(batches):
            return True
        claude = self.bench.claude
        seen = self.bench.asking(
            findings,
            lambda: any(
                batch.id in older
                for batch in itertools.takewhile(lambda b: b.created_at > since, claude.list())
            ),
        )
        return bool(older and seen)

    def _land_staged(self, findings: Findings) -> None:
        """Land what has been downloaded."""
        try:
            self._land_by_materialization(findings)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Land no more of what has been downloaded."""
        for _, landing in self._staged:
            landing.staged.close()
        self._staged.clear()

    def _land_by_materialization(self, findings: Findings) -> None:
        """Land together what belongs to one materialization."""
        by_materialization: defaultdict[str, list[tuple[Outstanding, Landing]]] = defaultdict(list)
        for outstanding, landing in self._staged:
            identity = outstanding.materialization.materialization_id
            by_materialization[identity].append((outstanding, landing))
        troubles: list[Exception] = []
        for together in by_materialization.values():
            outstanding, _ = together[0]
            try:
                self._land_all(outstanding, [landing for _, landing in together], findings)
            except Exception as error:  # noqa: BLE001  # it keeps no other's answers from their tables
                troubles.append(error)
        if troubles:
            raise troubles[0]

    @contextmanager
    def _noting_troubles(self) -> Generator[None]:
        try:
            yield
        except Exception:  # another one is raised
            self.bench.log.exception("Not all that was downloaded could be landed.")

    def _land(self, outstanding: Outstanding, landing: Landing, findings: Findings) -> None:
        self._land_all(outstanding, [landing], findings)

    def _land_all(
        self, outstanding: Outstanding, landings: Sequence[Landing], findings: Findings
    ) -> None:
        """Land in one transaction, and say so."""
        findings.moved = True
        landed = self._landed(outstanding.materialization, landings)
        ids = {landing.chunk.chunk_id for landing in landed}
        for landing in landings:
            if landing.chunk.chunk_id in ids:
                self._say_landed(outstanding, landing)
            else:
                self.bench.log.info("Batch %s has been collected by another run.", landing.batch_id)

    def _landed(
        self, materialization: Materialization, landings: Sequence[Landing]
    ) -> list[Landing]:
        """Land in one transaction; those that nobody else has landed."""
        return self.bench.warehouse.transact(
            lambda connection: land_all(self.bench.plan(connection, materialization), landings)
        )

    def _say_landed(self, outstanding: Outstanding, landing: Landing) -> None:
        self.bench.log.info(
            "Collected batch %s: %s requests.", landing.batch_id, f"{landing.chunk.requests:,}"
        )
        if landing.chunk.is_copy:
            self._drop_what_it_answered(outstanding, landing.chunk)

    def _drop_what_it_answered(self, outstanding: Outstanding, copy: Chunk) -> None:
        """A second copy that has answered first makes what is sent instead of it needless."""
        declaration = self.bench.declaration
        same_row = ours_is_ours(declaration, "theirs", "ours")
        needless = self.bench.warehouse.transact(
            lambda connection: answered_by_copy(
                connection, asset_of(connection, declaration.asset), copy, same_row
            )
        )
        for chunk in needless:
            if chunk.state == "planned":
                self.bench.plan_anew(outstanding.materialization, chunk)
            else:
                self.bench.cancel_batch(str(chunk.batch_id))

    def _expire_unsent(self, work: Sequence[Outstanding]) -> bool:
        """Let rows fail that were not sent in time; whether there were any."""
        late = [(each, chunk) for each in work for chunk in each.too_late]
        for each, chunk in late:
            self._landed(each.materialization, [Landing(chunk, absent=NOT_SENT)])
        if late:
            self.bench.log.warning("`max_wait_hours` has passed; what is out is cancelled.")
        return bool(late)


def _gone(chunk: Chunk, batch: MessageBatch | None) -> Landing:
    """What a batch comes to whose results are gone."""
    counts = counts_of(batch) if batch else _GONE
    ended_at = batch.ended_at if batch else None
    return Landing(chunk, chunk.batch_id, counts, ended_at, absent=RESULTS_EXPIRED)
