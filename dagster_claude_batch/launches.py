"""Which runs work on which materializations, and which of them are one launch."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dagster_claude_batch import ledger
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.warehouse import Connection, rows


@dataclass(frozen=True)
class RunIdentity:
    """The run that asks; ``retry_of`` is set only where Dagster itself launched it as a retry.

    ``collects_for``: an earlier run, known to the ledger, whose materializations it goes on with.
    """

    run_id: str
    retry_of: str | None = None
    collects_for: str | None = None


def attach(
    connection: Connection,
    asset: str,
    run_id: str,
    materializations: Iterable[Materialization],
    now: datetime,
    *,
    like: str | None = None,
) -> None:
    """Note that a run works on these materializations; attaching twice changes nothing.

    With ``like`` it goes on with the launch of that run.
    """
    for materialization in materializations:
        connection.execute(
            """
            INSERT INTO claude_batch.runs (run_id, asset, materialization_id, attached_at, launch,
                joined)
            SELECT $run_id, $asset, $materialization_id, $now,
                coalesce(max(coalesce(launch, run_id)), $run_id), coalesce(bool_or(
                    joined AND materialization_id = $materialization_id), false)
            FROM claude_batch.runs WHERE run_id = $like AND asset = $asset
            HAVING NOT EXISTS (SELECT 1 FROM claude_batch.runs WHERE run_id = $run_id
                AND asset = $asset AND materialization_id = $materialization_id)
            """,
            {
                "run_id": run_id,
                "asset": asset,
                "materialization_id": materialization.materialization_id,
                "now": now,
                "like": like,
            },
        )


def attach_all(
    connection: Connection,
    asset: str,
    run_id: str,
    materializations: Iterable[Materialization],
    now: datetime,
) -> None:
    """Note that all runs of a run's launch work on these materializations."""
    for run in _of_launch(connection, asset, run_id):
        attach(connection, asset, run, materializations, now, like=run_id)


def note_joined(
    connection: Connection,
    asset: str,
    run_id: str,
    materializations: Iterable[Materialization],
    *,
    joined: bool,
) -> None:
    """Note for a run's launch whether it has to catch up with these, once they are done."""
    connection.execute(
        "UPDATE claude_batch.runs SET joined = $joined WHERE asset = $asset "
        "AND list_contains($runs, run_id) AND list_contains($ids::VARCHAR[], materialization_id)",
        {
            "joined": joined,
            "asset": asset,
            "runs": _of_launch(connection, asset, run_id),
            "ids": [each.materialization_id for each in materializations],
        },
    )


def _of_launch(connection: Connection, asset: str, run_id: str) -> list[str]:
    """All runs of one launch: the first, those that were held for it, and its retries."""
    found = rows(
        connection,
        "SELECT DISTINCT run_id FROM claude_batch.runs WHERE asset = $asset "
        "AND coalesce(launch, run_id) IN (SELECT coalesce(launch, run_id) "
        "FROM claude_batch.runs WHERE run_id = $run_id AND asset = $asset)",
        {"asset": asset, "run_id": run_id},
    )
    return [str(run) for (run,) in found]


def materializations_of(
    connection: Connection, asset: str, run_id: str, *, only_joined: bool = False
) -> list[Materialization]:
    """What a run works on, oldest first; empty for a run that the ledger has not seen.

    With ``only_joined``, only that with which its launch has to catch up.
    """
    is_ours = (
        "materialization_id IN (SELECT materialization_id FROM claude_batch.runs "
        "WHERE run_id = $run_id AND asset = $asset AND (joined OR NOT $only_joined))"
    )
    return ledger.materializations(
        connection, asset, is_ours, {"run_id": run_id, "only_joined": only_joined}
    )


def runs_of(connection: Connection, materialization_id: str) -> list[str]:
    """Ids of the runs that have worked on a materialization, or are going to, oldest first."""
    found = rows(
        connection,
        "SELECT run_id FROM claude_batch.runs WHERE materialization_id = $materialization_id "
        "ORDER BY attached_at",
        {"materialization_id": materialization_id},
    )
    return [str(run_id) for (run_id,) in found]
