"""What every step of the engine works with, and how things stand in the ledger."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

import anthropic

from dagster_claude_batch import launches, ledger
from dagster_claude_batch.adoption import dissolve_cancelled
from dagster_claude_batch.chunks import OUT, Chunk, ChunkState
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.doubt import LATEST_END, UNREADABLE, UNSEEN
from dagster_claude_batch.errors import (
    CredentialsRefusedError,
    LostChunkError,
    UnreadableAnswerError,
)
from dagster_claude_batch.launches import RunIdentity
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outstanding import chunks_of, out_elsewhere
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.planning import replan
from dagster_claude_batch.resource import UNANSWERED, ClaudeBatchResource
from dagster_claude_batch.source import PartitionSlice
from dagster_claude_batch.warehouse import Connection, Warehouse

T = TypeVar("T")

CANCEL_SECONDS: Final = 20.0
"""One call: a run that is being terminated has no time for more; whoever comes next asks again."""


@dataclass(frozen=True)
class Waiting:
    """What the materializations still wait for.

    ``batch_ids`` are out. With ``unsent`` chunks left, any of them ending makes room; ``needs``
    is the number of requests of the next one, which nothing can accept before ``send_after``.
    With ``any_end`` each end is worth a look by itself. At ``not_before`` it is time to look,
    whatever has ended; None means that only the batches matter. ``in_vain`` runs in a row came
    for room and found none.
    """

    batch_ids: tuple[str, ...] = ()
    requests: int = 0
    unsent: int = 0
    needs: int = 0
    since: datetime | None = None
    not_before: datetime | None = None
    send_after: datetime | None = None
    any_end: bool = False
    in_vain: int = 0

    @property
    def is_for_room(self) -> bool:
        """Whether nothing is out, and something is to be sent as soon as there is room for it."""
        return bool(self.unsent and not self.batch_ids and not self.requests)

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows yet which batch it is that is out, if there is one."""
        return bool(self.requests and not self.batch_ids)

    @property
    def next_try(self) -> datetime | None:
        """When it may be worth a try at the earliest, whatever has ended."""
        moments = (self.not_before, self.send_after)
        return min((moment for moment in moments if moment is not None), default=None)


@dataclass
class Findings:
    """What a step found: whether it changed anything, and until when it is of no use again.

    ``candidates`` are batches one of which may be a chunk's in doubt.
    """

    moved: bool = False
    again_at: datetime | None = None
    candidates: tuple[str, ...] = ()

    def wait_until(self, moment: datetime) -> None:
        """Look again at this moment, or earlier."""
        self.again_at = moment if self.again_at is None else min(self.again_at, moment)


@dataclass(frozen=True)
class Outstanding:
    """A materialization, and its chunks that have not landed, in the order of their planning.

    ``awaited`` are ids of chunks whose answers others wait for.
    """

    materialization: Materialization
    chunks: list[Chunk]
    is_overdue: bool = False
    awaited: frozenset[int] = frozenset()

    @property
    def is_open(self) -> bool:
        """Whether anything may still be planned."""
        return self.materialization.state == "open"

    @property
    def may_send(self) -> bool:
        """Whether anything may still be sent."""
        halted = self.materialization.halted_because is not None
        return self.is_open and not self.is_overdue and not halted

    @property
    def is_at_rest(self) -> bool:
        """Whether it is to be planned on, or ended."""
        halted = self.materialization.halted_because is not None
        return self.is_open and not self.chunks and not halted

    @property
    def too_late(self) -> list[Chunk]:
        """The chunks that are planned, and will not be sent: their time has passed."""
        return self.in_state("planned") if self.is_overdue else []

    def in_state(self, *states: ChunkState) -> list[Chunk]:
        """The chunks in one of these states."""
        return [chunk for chunk in self.chunks if chunk.state in states]

    def is_unwanted(self, chunk: Chunk) -> bool:
        """Whether a chunk's batch is to be cancelled: nobody waits for more of its answers."""
        is_ours = chunk.materialization_id == self.materialization.materialization_id
        is_cancelled = self.materialization.state == "cancelled"
        is_over = self.is_overdue or (is_cancelled and chunk.chunk_id not in self.awaited)
        return chunk.is_copy or (is_ours and is_over)


@dataclass
class Workbench:
    """One asset's declaration, with all that is needed to work on it.

    ``slices_of`` tells which rows a partition key stands for; ``before_sending`` is called once,
    after all checks and before anything is paid for; ``before_giving_up`` each time before
    something is sent anew whose first batch, if there is one, may still appear;
    ``after_collecting`` each time that something has landed. ``downloads_at_once`` is
    how many threads read results while others land.
    """

    declaration: Declaration
    warehouse: Warehouse
    claude: ClaudeBatchResource
    run: RunIdentity
    slices_of: Callable[[Sequence[str | None]], list[PartitionSlice]]
    before_sending: Callable[[], None] = lambda: None
    log: logging.Logger = field(default=logging.getLogger(__name__))
    sleep: Callable[[float], None] = time.sleep
    before_giving_up: Callable[[], None] = lambda: None
    after_collecting: Callable[[], None] = lambda: None
    downloads_at_once: int = 1

    def read(self, materializations: Sequence[Materialization]) -> list[Outstanding]:
        """How the materializations stand now, and what they have out."""
        ids = [each.materialization_id for each in materializations]
        now = self.claude.now()

        def work(connection: Connection) -> list[Outstanding]:
            out = chunks_of(connection, ids, OUT)
            found = [ledger.get_materialization(connection, identity) for identity in ids]
            awaited = ledger.awaited_by_others(connection, self.declaration.asset, ids)
            return [
                Outstanding(
                    each,
                    [
                        *(c for c in out if c.materialization_id == each.materialization_id),
                        *self._out_elsewhere(connection, each),
                    ],
                    self.is_overdue(each, now),
                    awaited,
                )
                for each in found
            ]

        return self.warehouse.transact(work)

    def _out_elsewhere(
        self, connection: Connection, materialization: Materialization
    ) -> list[Chunk]:
        """What other materializations have out of the partitions of one that is open.

        A run of several partitions was cancelled, and these are now materialized one by one.
        """
        if (
            materialization.state != "open"
            or not materialization.awaits
            or self.is_overdue(materialization, self.claude.now())
        ):
            return []
        return out_elsewhere(connection, materialization)

    def deadline_of(self, materialization: Materialization) -> datetime | None:
        """When a materialization ends with what it has."""
        longest = self.declaration.max_wait
        return None if longest is None else materialization.started_at + longest

    def is_overdue(self, materialization: Materialization, now: datetime) -> bool:
        """Whether that has come."""
        deadline = self.deadline_of(materialization)
        return deadline is not None and now >= deadline and materialization.state == "open"

    def asking(self, findings: Findings, ask: Callable[[], T]) -> T | None:
        """Ask the API; None if it cannot be reached now, and then when to ask again.

        Raises:
            CredentialsRefusedError: It can be, but not with these credentials.
        """
        try:
            return ask()
        except UNANSWERED as error:
            if not is_passing(error):
                asset, reason = self.declaration.asset, one_line(str(error))
                raise CredentialsRefusedError(asset, reason) from error
            self.log.warning("The API cannot be asked now (%s).", type(error).__name__)
            findings.wait_until(self.claude.now() + UNREADABLE)
            return None

    def cancel_batch(self, batch_id: str) -> str | None:
        """Ask for the end of a batch; why that failed, if it did: one that has ended needs none."""
        try:
            self.claude.cancel(batch_id, timeout_seconds=CANCEL_SECONDS)
        except UNANSWERED as error:
            self.log.info("Batch %s was not cancelled (%s).", batch_id, type(error).__name__)
            return one_line(str(error))
        self.log.info("Asked for the end of batch %s.", batch_id)
        return None

    def plan(self, connection: Connection, materialization: Materialization) -> Plan:
        """Where one materialization is planned, within a transaction."""
        return Plan(
            connection,
            self.declaration,
            asset_of(connection, self.declaration.asset),
            materialization,
            self.claude.now(),
        )

    def plan_anew(self, materialization: Materialization, chunk: Chunk) -> None:
        """Plan what is still to be asked of a planned chunk's rows, unless it has been sent."""

        def work(connection: Connection) -> None:
            plan = self.plan(connection, materialization).of_owner(chunk)
            replan(plan, chunk, self.slices_of(plan.materialization.partitions))

        try:
            self.warehouse.transact(work)
        except LostChunkError:
            self.log.info("Another run has sent it meanwhile.")

    def close(
        self,
        materialization: Materialization,
        *,
        if_unsent: bool = False,
        unless: Callable[[Sequence[str]], bool] = lambda _: False,
    ) -> bool:
        """Cancel a materialization in the ledger; what it has out stays to be landed.

        With ``if_unsent`` only what this run alone began and has not sent any of. It stays open if
        ``unless`` holds of the runs that work on it, in the order in which they came: whoever
        comes meanwhile finds it cancelled, or is among them. False if it stays open.
        """
        now, asset, this_run = self.claude.now(), self.declaration.asset, {self.run.run_id}

        def work(connection: Connection) -> bool:
            identity = materialization.materialization_id
            registered = asset_of(connection, asset)
            ledger.claim_chunks(connection, registered, 0)  # as whoever joins it
            runs = launches.runs_of(connection, identity)
            sent = chunks_of(connection, [identity], ("sending", "submitted", "landed"))
            if if_unsent and (sent or not this_run.issuperset(runs)):
                return False
            if unless(runs):
                return False
            if ledger.end_materialization(connection, identity, "cancelled", now):
                dissolve_cancelled(connection, registered)
            return True

        return self.warehouse.transact(work)


def is_passing(error: anthropic.AnthropicError | UnreadableAnswerError) -> bool:
    """Whether asking later may help: nobody answered, or not the API's own word."""
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code >= _SERVER or error.status_code in {408, 409, 429}
    return isinstance(error, anthropic.APIError | UnreadableAnswerError)


_SERVER: Final = 500


def asset_of(connection: Connection, asset: str) -> LedgerAsset:
    """An asset's place in the ledger, which it has since its first plan."""
    found = ledger.find_asset(connection, asset)
    if found is None:
        raise LookupError(asset)
    return found


def waiting_for(
    bench: Workbench, work: Sequence[Outstanding], doubts: Findings, others: Sequence[Findings]
) -> Waiting | None:
    """What is still waited for; None if nothing is out or left to send."""
    out = [chunk for each in work for chunk in each.in_state("submitted")]
    doubtful = [chunk for each in work for chunk in each.in_state("sending")]
    planned = [chunk for each in work if each.may_send for chunk in each.in_state("planned")]
    if not (out or planned or doubtful):
        return None
    submitted = [chunk.submitted_at for chunk in out if chunk.submitted_at]
    now = bench.claude.now()
    *_, sending = others
    moments = [each.again_at for each in (doubts, *others) if each is not sending]
    # Who has only to send is let go when there is room: at the latest when the window is empty.
    moments += [sending.again_at if out or doubtful else now + LATEST_END]
    moments += [_latest_look(submitted, now)]
    moments += [
        bench.deadline_of(each.materialization)
        for each in work
        if each.is_open and not each.is_overdue
    ]
    return Waiting(
        batch_ids=tuple(dict.fromkeys((*_ids_of(out), *doubts.candidates))),
        requests=sum(chunk.requests for chunk in (*out, *doubtful)),
        unsent=len(planned),
        needs=planned[0].requests if planned else 0,
        since=min(submitted, default=None),
        not_before=min((moment for moment in moments if moment is not None), default=None),
        send_after=sending.again_at,
        any_end=bool(doubts.candidates),
    )


def _ids_of(out: Sequence[Chunk]) -> list[str]:
    return [chunk.batch_id for chunk in out if chunk.batch_id]


def _latest_look(submitted: Sequence[datetime], now: datetime) -> datetime | None:
    """When to look even if no batch has been seen to end: one of them must have, by then."""
    if not submitted:
        return None
    ends = [moment + LATEST_END for moment in submitted]
    return min((end for end in ends if end > now), default=now + UNSEEN)
