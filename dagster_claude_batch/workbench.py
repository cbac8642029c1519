"""What every step of the engine works with, and how things stand in the ledger."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from dagster_claude_batch import chunks, ledger
from dagster_claude_batch.chunks import Chunk, ChunkState
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.due import Plan
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.planning import RunIdentity
from dagster_claude_batch.resource import ClaudeBatchResource
from dagster_claude_batch.source import PartitionSlice
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
class Workbench:
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

    def read(self, materializations: Sequence[Materialization]) -> list[Outstanding]:
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

    def plan(self, connection: Connection, materialization: Materialization) -> Plan:
        """Where one materialization is planned, within a transaction."""
        return Plan(
            connection,
            self.declaration,
            asset_of(connection, self.declaration.asset),
            materialization,
            self.claude.now(),
        )

    def close(self, materialization: Materialization, *, if_unsent: bool = False) -> None:
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
                chunks.dissolve_planned(connection, asset_of(connection, asset), identity)

        self.warehouse.transact(work)


def asset_of(connection: Connection, asset: str) -> LedgerAsset:
    """An asset's place in the ledger, which it has since its first plan."""
    found = ledger.find_asset(connection, asset)
    if found is None:
        raise LookupError(asset)
    return found


def waiting_for(work: Sequence[Outstanding], delayed: datetime | None) -> Waiting | None:
    """What is still waited for; None if nothing is out or left to send."""
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
