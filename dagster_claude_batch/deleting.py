"""Deleting at Anthropic what has landed here, where that is declared."""

from datetime import datetime

from dagster_claude_batch.errors import CredentialsRefusedError
from dagster_claude_batch.outstanding import landed_batches
from dagster_claude_batch.resource import RESULTS_LAST, UNANSWERED
from dagster_claude_batch.warehouse import Connection
from dagster_claude_batch.workbench import Findings, Workbench


def delete_landed(bench: Workbench) -> None:
    """Delete all batches of the asset that have landed and that the API still shows.

    What cannot be deleted now is deleted by the next run that has something to collect, or has
    nothing left to wait for: so is what a run left behind that ended in between.
    """
    if not bench.declaration.delete_remote_results:
        return
    since = bench.claude.now() - RESULTS_LAST
    landed = bench.warehouse.transact(lambda connection: _landed(connection, bench, since))
    try:
        shown = bench.asking(Findings(), lambda: bench.claude.look(landed)) if landed else None
    except CredentialsRefusedError as error:
        bench.log.warning("The batches that have landed were not deleted. %s", error)
        return
    for batch_id in shown or {}:
        _delete(bench, batch_id)


def _landed(connection: Connection, bench: Workbench, since: datetime) -> list[str]:
    return landed_batches(connection, bench.declaration.asset, since)


def _delete(bench: Workbench, batch_id: str) -> None:
    try:
        bench.claude.delete(batch_id)
    except UNANSWERED as error:
        bench.log.warning("Batch %s was not deleted (%s).", batch_id, type(error).__name__)
    else:
        bench.log.info("Batch %s has landed, and was deleted.", batch_id)
