"""What a run asks for: joining what is open for its partitions, and beginning the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dagster_claude_batch import launches, ledger
from dagster_claude_batch.adoption import adopt_chunks, dissolve_cancelled
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import LedgerLostError, MaterializationDoneError
from dagster_claude_batch.launches import RunIdentity
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.planning import plan_first
from dagster_claude_batch.preparing import prepare_tables
from dagster_claude_batch.source import PartitionSlice, find_source
from dagster_claude_batch.warehouse import Connection


@dataclass(frozen=True)
class Asking:
    """One run's wish for an asset's partitions, at a moment; each method is for a transaction.

    An open materialization whose runs, in the order in which they came to work on it,
    ``is_given_up`` says were cancelled is not joined but cancelled, and a limited one ends where
    there is no limit any more; what they have out is taken over.
    """

    declaration: Declaration
    run: RunIdentity
    slices: Sequence[PartitionSlice]
    config: MaterializationConfig
    now: datetime
    is_given_up: Callable[[Sequence[str]], bool] = lambda _: False

    def attach(self, connection: Connection) -> list[Materialization]:
        """Find what the run works on; join what is open for its partitions, and begin the rest.

        Raises:
            MaterializationDoneError: The run is an automatic retry, and what the run that failed
                worked on is at its end.
            LedgerLostError: The run is to collect what this ledger does not know.
            SourceNotFoundError, SourceFailedError, MissingColumnError, NullRowKeyError,
            DuplicateRowKeyError, ColumnCollisionError, ColumnTypeChangedError,
            OversizedRequestError: Nothing was planned.
        """
        ledger.open_ledger(connection, self.now)
        asset, run_id = self.declaration.asset, self.run.run_id
        known, like = self._known_to_the_ledger(connection)
        if known:
            launches.attach(connection, asset, run_id, known, self.now, like=like)
            return known
        joined, opened = self._join_or_open(connection, self.slices, self.config)
        launches.attach(connection, asset, run_id, [*joined, *opened], self.now)
        if self.config.limit is None:
            launches.note_joined(connection, asset, run_id, joined, joined=True)
        return [*joined, *opened]

    def catch_up(self, connection: Connection) -> list[Materialization]:
        """Join or begin what the run's launch asks beyond what it has joined, now at its end.

        That had fixed its rows before: what has come or changed between, or was to be asked once
        more by a `refresh`, is due now. What failed in it is not: it was asked after the launch.
        Empty if the run has joined nothing, has caught up, or was cancelled in any part.

        Raises:
            What `attach` raises of the source, for the same reasons.
        """
        asset, run_id = self.declaration.asset, self.run.run_id
        joined = launches.materializations_of(connection, asset, run_id, only_joined=True)
        keys = {key for each in joined for key in each.partitions}
        behind = [part for part in self.slices if part.key in keys]
        of_run = launches.materializations_of(connection, asset, run_id)
        if not behind or any(each.state == "cancelled" for each in of_run):
            return []
        launches.note_joined(connection, asset, run_id, joined, joined=False)
        left = _beyond(self.config, [each.config for each in joined])
        others, opened = self._join_or_open(connection, behind, left)
        launches.attach_all(connection, asset, run_id, [*others, *opened], self.now)
        # The launch would have joined these too, had they been there: they have begun since.
        weaker = [each for each in others if _beyond(left, [each.config]) != _nothing(left)]
        launches.note_joined(connection, asset, run_id, weaker, joined=True)
        return [*others, *opened]

    def _known_to_the_ledger(
        self, connection: Connection
    ) -> tuple[list[Materialization], str | None]:
        """What the run goes on with, if anything, and the run whose launch it belongs to."""
        asset, run = self.declaration.asset, self.run
        known = launches.materializations_of(connection, asset, run.run_id)
        if known:
            return known, run.run_id
        if run.retry_of is not None:
            known = launches.materializations_of(connection, asset, run.retry_of)
            has_to_catch_up = launches.materializations_of(
                connection, asset, run.retry_of, only_joined=True
            )
            if known and not has_to_catch_up and not any(each.state == "open" for each in known):
                raise MaterializationDoneError(asset, run.retry_of, known)
            if known:
                return known, run.retry_of
        if run.collects_for is not None:
            known = launches.materializations_of(connection, asset, run.collects_for)
            if not known:
                raise LedgerLostError("of the run", f"it does not know run {run.collects_for}.")
        return known, run.collects_for

    def _join_or_open(
        self,
        connection: Connection,
        slices: Sequence[PartitionSlice],
        config: MaterializationConfig,
    ) -> tuple[list[Materialization], list[Materialization]]:
        """What is open for these partitions, and what is begun for the others."""
        asset = self.declaration.asset
        source = find_source(connection, self.declaration)
        registered = prepare_tables(connection, self.declaration, source)
        ledger.claim_chunks(connection, registered, 0)
        wanted = {part.key for part in slices}
        joined: list[Materialization] = []
        for each in ledger.open_materializations(connection, asset):
            if not wanted.intersection(each.partitions):
                continue
            identity = each.materialization_id
            if self.is_given_up(launches.runs_of(connection, identity)):
                ledger.end_materialization(connection, identity, "cancelled", self.now)
                dissolve_cancelled(connection, registered)
            elif each.config.limit is not None and config.limit is None:
                # Now all rows are asked: what the limited one has out is taken over below.
                ledger.end_materialization(connection, identity, "done", self.now)
                dissolve_cancelled(connection, registered)
            else:
                ledger.note_halt(connection, identity, None)
                joined.append(replace(each, halted_because=None))
        taken = {key for each in joined for key in each.partitions}
        left = [part for part in slices if part.key not in taken]
        if not left:
            return joined, []
        keys = [part.key for part in left]
        opened = ledger.open_materialization(connection, asset, keys, config, self.now)
        adopt_chunks(connection, registered, opened)
        plan_first(Plan(connection, self.declaration, registered, opened, self.now), left)
        return joined, [ledger.get_materialization(connection, opened.materialization_id)]


def _nothing(config: MaterializationConfig) -> MaterializationConfig:
    """The same without anything that asks for more than new and changed rows."""
    return replace(config, refresh=False, retry_failed="none")


def _beyond(
    config: MaterializationConfig, done: Sequence[MaterializationConfig]
) -> MaterializationConfig:
    """What was asked for, less what materializations with these configurations have done."""
    refresh = config.refresh and not any(each.refresh for each in done)
    strengths = ("none", "retryable", "all")
    most = max(strengths.index(each.retry_failed) for each in done)
    is_stronger = strengths.index(config.retry_failed) > most
    return replace(
        config, refresh=refresh, retry_failed=config.retry_failed if is_stronger else "none"
    )
