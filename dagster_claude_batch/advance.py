"""The one loop: find out, land, plan, send, and say what is still waited for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import duckdb

from dagster_claude_batch import launches, ledger, pilot
from dagster_claude_batch.adoption import adopt_chunks
from dagster_claude_batch.chunks import OUT
from dagster_claude_batch.collecting import Collector
from dagster_claude_batch.due import count_unanswered
from dagster_claude_batch.ending import end
from dagster_claude_batch.errors import (
    AccountHaltedError,
    ClaudeBatchError,
    CredentialsRefusedError,
    PilotFailedError,
)
from dagster_claude_batch.estimate import Estimate, estimate
from dagster_claude_batch.joining import Asking
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.outstanding import chunks_of
from dagster_claude_batch.planning import plan_next_pilot, plan_retries
from dagster_claude_batch.preflight import check_for_rehearsal
from dagster_claude_batch.reconciling import Reconciler
from dagster_claude_batch.rehearsal import Rehearsal, rehearse
from dagster_claude_batch.sending import Sender
from dagster_claude_batch.source import PartitionSlice
from dagster_claude_batch.warehouse import Connection
from dagster_claude_batch.workbench import (
    Outstanding,
    Waiting,
    Workbench,
    asset_of,
    waiting_for,
)


class _RolledBack(Exception):  # noqa: N818  # no error
    """Carries a rehearsal out of its transaction."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
        super().__init__()


@dataclass
class Engine(Workbench):
    """The engine of one run: whatever the state of things, `advance` is what to do."""

    _reconciler: Reconciler = field(init=False)
    _collector: Collector = field(init=False)
    _sender: Sender = field(init=False)

    def __post_init__(self) -> None:
        self._reconciler = Reconciler(self)
        self._collector = Collector(self)
        self._sender = Sender(self)

    def attach(
        self,
        partitions: Sequence[str | None],
        config: MaterializationConfig,
        *,
        is_given_up: Callable[[Sequence[str]], bool] = lambda _: False,
    ) -> list[Materialization]:
        """Find or begin what this run works on. See `Asking.attach`."""
        attached = self.warehouse.transact(self._asking(partitions, config, is_given_up).attach)
        self.warehouse = self.warehouse.with_ledger()
        return attached

    def catch_up(
        self,
        partitions: Sequence[str | None],
        config: MaterializationConfig,
        *,
        is_given_up: Callable[[Sequence[str]], bool] = lambda _: False,
    ) -> list[Materialization]:
        """Find what is left to do for the run when all is done. See `Asking.catch_up`."""
        found = self.warehouse.transact(self._asking(partitions, config, is_given_up).catch_up)
        if found:
            self.log.info("What this run had joined is done; asking what has come since.")
        return found

    def _asking(
        self,
        partitions: Sequence[str | None],
        config: MaterializationConfig,
        is_given_up: Callable[[Sequence[str]], bool],
    ) -> Asking:
        now, slices = self.claude.now(), self.slices_of(partitions)
        return Asking(self.declaration, self.run, slices, config, now, is_given_up)

    def rehearse(
        self,
        partitions: Sequence[str | None],
        config: MaterializationConfig,
        *,
        requests_path: str | None = None,
    ) -> Rehearsal:
        """Find out what `attach` and `advance` would send, and change nothing.

        With ``requests_path``, all requests are written there as JSON Lines.

        Raises:
            What `attach` raises, and `preflight.check_for_rehearsal`, and `estimate`.
        """
        now, slices = self.claude.now(), self.slices_of(partitions)

        def work(connection: Connection) -> None:
            raise _RolledBack(
                rehearse(
                    connection,
                    self.declaration,
                    slices,
                    config,
                    now,
                    requests_path=requests_path,
                )
            )

        try:
            self.warehouse.transact(work)
        except _RolledBack as rolled_back:
            rehearsal = replace(rolled_back.rehearsal, unchecked=check_for_rehearsal(self))
            return replace(
                rehearsal, estimates=[estimate(self, part) for part in rehearsal.partitions]
            )
        raise AssertionError  # pragma: no cover  # it always is

    @property
    def estimates(self) -> Sequence[Estimate]:
        """What was about to be spent, of each materialization that this run has begun to send."""
        return self._sender.estimates

    def attach_run(self, run_id: str, materializations: Sequence[Materialization]) -> None:
        """Note that another run is going to work on these, in the place of this one."""
        now, asset = self.claude.now(), self.declaration.asset
        self.warehouse.transact(
            lambda connection: launches.attach(
                connection, asset, run_id, materializations, now, like=self.run.run_id
            )
        )

    def partitions_of_run(self) -> list[str | None]:
        """All partitions of what this run works on, as far as the ledger knows it."""

        def work(connection: Connection) -> list[Materialization]:
            if not ledger.is_ledger(connection):
                return []
            asset, run_id = self.declaration.asset, self.run.run_id
            return launches.materializations_of(connection, asset, run_id)

        known = self.warehouse.transact(work)
        return [partition for each in known for partition in each.partitions]

    def advance(self, materializations: Sequence[Materialization]) -> Waiting | None:
        """Do all that can be done now; None when nothing is left to wait for.

        Raises:
            ModelUnavailableError, SubmissionRefusedError, AccountHaltedError,
            CredentialsRefusedError, UnstableSourceError, PilotFailedError: See there. What had
                been sent before stays sent, and is collected by whoever comes next.
        """
        if self._reconciler.watch().moved:
            self._adopt(materializations)
        while True:
            work = self.read(materializations)
            doubts = self._reconciler.reconcile(work)
            collected = self._collector.collect(work)
            if collected.moved:
                self.after_collecting()
            if doubts.moved or collected.moved or self._plan_or_end(work):
                continue
            sent = self._sender.send(work)
            if sent.moved:
                continue
            after = self.read(materializations)
            if any(each.is_at_rest or each.too_late for each in after):
                continue  # another run has collected it meanwhile, or its time has passed
            self._refuse_to_go_on_halted(after)
            waiting = waiting_for(self, after, doubts, [collected, sent])
            if waiting is None:
                self._refuse_after_pilot(after)
            return waiting

    def reconcile(self, work: Sequence[Outstanding]) -> bool:
        """Settle doubts about what is out; whether any was."""
        return self._reconciler.reconcile(work).moved

    def _adopt(self, materializations: Sequence[Materialization]) -> None:
        """Take over second copies of what ended materializations had sent."""

        def work(connection: Connection) -> None:
            registered = asset_of(connection, self.declaration.asset)
            for each in materializations:
                now = ledger.get_materialization(connection, each.materialization_id)
                if now.state == "open":
                    adopt_chunks(connection, registered, now)

        self.warehouse.transact(work)

    def _refuse_to_go_on_halted(self, work: Sequence[Outstanding]) -> None:
        """Say what is wrong with the account, once all that was sent has been collected."""
        if any(each.in_state("sending", "submitted") for each in work):
            return
        for each in work:
            reason = each.materialization.halted_because
            if each.is_open and reason is not None:
                asset = self.declaration.asset
                unsent = self.warehouse.transact(
                    lambda connection, each=each: count_unanswered(
                        self.plan(connection, each.materialization)
                    )
                )
                raise AccountHaltedError(asset, reason, unsent=unsent)

    def _refuse_after_pilot(self, work: Sequence[Outstanding]) -> None:
        """Say what a pilot has shown for which nothing more was sent, whoever asks for it."""
        for each in work:
            if each.materialization.pilot is not None:
                declaration = self.declaration
                raise PilotFailedError(
                    declaration.asset,
                    each.materialization.pilot,
                    failures=str(declaration.failures),
                    tolerated=declaration.max_failure_rate,
                )

    def may_be_out(self, materializations: Sequence[Materialization]) -> bool:
        """Whether something was, or may have been, paid for that has not been collected.

        A ledger that cannot be read says yes: then somebody has to go on waiting.
        """
        try:
            work = self.read(materializations)
        except (duckdb.Error, ClaudeBatchError):
            return True
        return any(each.in_state("sending", "submitted") for each in work)

    def is_cancelled(self, materializations: Sequence[Materialization]) -> bool:
        """Whether somebody has cancelled any of them."""
        work = self.read(materializations)
        return any(each.materialization.state == "cancelled" for each in work)

    def is_watching(self) -> bool:
        """Whether second copies may still appear of what was sent anew."""
        return self.has_ledger() and bool(self.warehouse.transact(self._reconciler.watched))

    def watch(self) -> None:
        """Look for second copies of what was sent anew."""
        self._reconciler.watch()

    def has_ledger(self) -> bool:
        """Whether there is a ledger, which then is of this version; none is made."""

        def work(connection: Connection) -> bool:
            found = ledger.is_ledger(connection)
            if found:
                ledger.open_ledger(connection, self.claude.now())
            return found

        return self.warehouse.is_there() and self.warehouse.transact(work)

    def settle(self, abandoned_runs: Sequence[str], *, is_alive: Callable[[str], bool]) -> int:
        """Land what nobody waits for, and cancel what was abandoned; how many batches are left.

        A materialization is abandoned if one of ``abandoned_runs`` worked on it and no run that
        is alive does. What is left has to be settled again, later.

        Raises:
            LedgerLostError: The database is not there, although these runs had worked on it.
            CredentialsRefusedError: Some of it was refused; all else is settled.
        """
        left, refused = 0, list[CredentialsRefusedError]()
        if abandoned_runs:
            self.warehouse.require_file()
        if not self.has_ledger():
            return 0
        self._reconciler.watch()
        for each, runs in self.warehouse.transact(self._unlanded):
            if any(is_alive(run_id) for run_id in runs):
                continue
            is_abandoned = each.state == "open" and not set(runs).isdisjoint(abandoned_runs)
            if is_abandoned and not self.close(each, unless=lambda runs: any(map(is_alive, runs))):
                continue
            try:
                left += self._settle(each)
            except CredentialsRefusedError as error:
                refused.append(error)
        if refused:
            raise refused[0]
        return left

    def _settle(self, materialization: Materialization) -> int:
        """Find out about, cancel and land what one has out; how many batches are left."""
        work = self.read([materialization])
        if self.reconcile(work):
            work = self.read([materialization])
        self._collector.collect(work)
        return len(self.read([materialization])[0].in_state("sending", "submitted"))

    def _unlanded(self, connection: Connection) -> list[tuple[Materialization, list[str]]]:
        """Materializations that have something out, and the runs that work on them."""
        found = ledger.unlanded_materializations(connection, self.declaration.asset)
        return [(each, launches.runs_of(connection, each.materialization_id)) for each in found]

    def cancel(
        self,
        materialization: Materialization,
        *,
        unless: Callable[[Sequence[str]], bool] = lambda _: False,
    ) -> None:
        """Send nothing more on its behalf, and ask for the end of what is out.

        Nothing of that happens if ``unless`` holds of the runs that work on it; see `close`.
        """
        if self.close(materialization, unless=unless):
            self.end_unwanted([materialization])

    def end_unwanted(self, materializations: Sequence[Materialization]) -> dict[str, str]:
        """Ask for the end of what is out and nobody wants; the batches for which that failed.

        With each, why.
        """
        failed = dict[str, str]()
        for each in self.read(materializations):
            for chunk in filter(each.is_unwanted, each.in_state("submitted")):
                reason = self.cancel_batch(str(chunk.batch_id))
                if reason is not None:
                    failed[str(chunk.batch_id)] = reason
        return failed

    def _plan_or_end(self, work: Sequence[Outstanding]) -> bool:
        """Plan the retries of each materialization that is at rest, or end it."""
        at_rest = [each.materialization for each in work if each.is_at_rest]
        for each in at_rest:
            slices = self.slices_of(each.partitions)
            retried = self.warehouse.transact(
                lambda connection, each=each, slices=slices: self._retry_or_end(
                    connection, each, slices
                )
            )
            if retried:
                self.log.info("Asking %s rows that have no answer yet.", f"{retried:,}")
        return bool(at_rest)

    def _retry_or_end(
        self,
        connection: Connection,
        materialization: Materialization,
        slices: list[PartitionSlice],
    ) -> int:
        now = ledger.get_materialization(connection, materialization.materialization_id)
        plan = self.plan(connection, now)
        ledger.claim_chunks(connection, plan.registered, 0)
        if now.state != "open" or chunks_of(connection, [now.materialization_id], OUT):
            return 0  # another run has planned, or ended it, meanwhile
        if now.capped is not None:
            end(plan)
            return 0
        late = self.is_overdue(now, plan.now)
        is_flying = pilot.is_flying(plan) and not now.halted_because
        if is_flying and (late or pilot.has_come_back_well(plan)):
            return pilot.send_the_rest(plan)
        # Rows that nobody could ask in time are planned too: then they expire as all others do.
        retried = 0 if now.halted_because else plan_retries(plan, slices, only_unasked=late)
        if not retried and not now.halted_because:
            if is_flying and not pilot.has_flown(plan):
                return plan_next_pilot(plan, slices)
            if is_flying:
                pilot.drop_the_rest(plan)
            end(plan)
        return retried
