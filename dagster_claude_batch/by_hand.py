"""What a person may ask of an asset beside its runs: settle doubts, cancel, forget."""

from collections.abc import Collection
from datetime import timedelta

from dagster_claude_batch import ledger
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.pruning import prune


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


def cancel_open(engine: Engine, partitions: Collection[str]) -> int:
    """Cancel all that is open, with ``partitions`` only what asks of any of these; how many.

    What has been answered by then is collected by the runs that wait for it, or by the sensor.
    """
    if not engine.has_ledger():
        return 0
    asset = engine.declaration.asset
    found = engine.warehouse.transact(
        lambda connection: ledger.materializations(connection, asset, "state = 'open'", {})
    )
    meant = [m for m in found if not partitions or not set(partitions).isdisjoint(m.partitions)]
    for each in meant:
        engine.cancel(each)
    return len(meant)


def forget(engine: Engine, age: timedelta) -> int:
    """Forget what ended so long ago, but for what it cost; how many rows of the ledger."""
    now, asset = engine.claude.now(), engine.declaration.asset
    if not engine.has_ledger():
        return 0
    return engine.warehouse.transact(
        lambda connection: prune(connection, asset, now - age, now=now)
    )
