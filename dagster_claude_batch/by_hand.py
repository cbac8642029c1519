"""What a person may ask of an asset beside its runs: settle doubts, cancel, forget."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from dagster_claude_batch import ledger
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.pruning import prune
from dagster_claude_batch.workbench import CANCEL_SECONDS


def settle_doubts(engine: Engine) -> int:
    """Find out about all that is in doubt, whoever waits for it; how many chunks still are."""
    if not engine.has_ledger():
        return 0
    engine.watch()
    asset = engine.declaration.asset
    unlanded = engine.warehouse.transact(
        lambda connection: ledger.unlanded_materializations(connection, asset)
    )
    engine.reconcile(engine.read(unlanded))
    return sum(len(each.in_state("sending")) for each in engine.read(unlanded))


def partitions_of(engine: Engine) -> dict[str, bool]:
    """The partition keys that an asset was ever asked for, and whether something of it is open."""
    if not engine.has_ledger():
        return {}
    asset = engine.declaration.asset
    found = engine.warehouse.transact(
        lambda connection: ledger.materializations(connection, asset, "true")
    )
    known = dict[str, bool]()
    for each in found:
        for key in each.partitions:
            if key is not None:
                known[key] = known.get(key, False) or each.state == "open"
    return known


@dataclass(frozen=True)
class Cancelled:
    """How many materializations were cancelled, and which batches could not be asked to end."""

    count: int = 0
    failed: Mapping[str, str] = field(default_factory=dict[str, str])


def cancel(engine: Engine, partitions: Collection[str]) -> Cancelled:
    """Cancel all that is open, with ``partitions`` only what asks of any of these.

    What was cancelled before and is still out is asked to end again: a call may have been lost.
    What has been answered by then is collected by the runs that wait for it, or by the sensor.
    """
    if not engine.has_ledger():
        return Cancelled()
    asset = engine.declaration.asset

    def meant(found: Iterable[Materialization]) -> list[Materialization]:
        return [m for m in found if not partitions or not set(partitions).isdisjoint(m.partitions)]

    still_open = meant(
        engine.warehouse.transact(
            lambda connection: ledger.open_materializations(connection, asset)
        )
    )
    for each in still_open:  # all of them, whatever the API says then: nothing more is sent
        engine.close(each)
    unlanded = engine.warehouse.transact(
        lambda connection: ledger.unlanded_materializations(connection, asset)
    )
    cancelled = [each for each in meant(unlanded) if each.state == "cancelled"]
    return Cancelled(len(still_open), _running(engine, engine.end_unwanted(cancelled)))


def _running(engine: Engine, failed: Mapping[str, str]) -> dict[str, str]:
    """Those of the batches that go on: others have ended, or are about to."""
    if not failed:
        return {}
    seen, _ = engine.claude.look_within(list(failed), CANCEL_SECONDS)
    ending = {key for key, batch in seen.items() if batch.processing_status != "in_progress"}
    return {key: reason for key, reason in failed.items() if key not in ending}


def forget(engine: Engine, age: timedelta) -> int:
    """Forget what ended so long ago, but for what it cost; how many rows of the ledger."""
    now, asset = engine.claude.now(), engine.declaration.asset
    if not engine.has_ledger():
        return 0
    return engine.warehouse.transact(
        lambda connection: prune(connection, asset, now - age, now=now)
    )
