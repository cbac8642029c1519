"""The code location of the end-to-end tests; its files are in ``E2E_HOME``.

Each asset belongs to one test, which fills the table ``<asset>_source``.
"""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
from dagster_duckdb import DuckDBResource
from dagster_duckdb_pandas import DuckDBPandasIOManager
from e2e_declared import CITIES, asked, read, whole
from e2e_gates import Gate, GatedTransport, Way
from e2e_situated import AUTOMATION, SCHEDULES, SITUATED
from e2e_warm import start_runs_warm

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_jobs,
    build_claude_batch_sensor,
)

start_runs_warm()

HOME = Path(os.environ["E2E_HOME"])
WAREHOUSE = str(HOME / "warehouse.duckdb")

DAYS = dg.DailyPartitionsDefinition("2026-03-01", end_date="2026-03-04")
CITIES_BY_DAY = dg.MultiPartitionsDefinition({"city": CITIES, "day": DAYS})


@dg.asset
def mixed_source(duckdb: DuckDBResource) -> None:
    with duckdb.get_connection() as connection:
        connection.execute(
            "CREATE TABLE mixed_source AS "
            "SELECT 'amsterdam' AS city, i AS review_id, 'mixed ' || i AS review "
            "FROM range(10) AS rows(i)"
        )


@dg.asset(deps=[mixed_source])
def mixed_sibling() -> None: ...


@dg.asset
def mixed_stranger() -> None: ...


@dg.asset(partitions_def=CITIES, op_tags={"dagster/priority": "-1"})
def killed_ended_sibling() -> None:
    """Stop at a gate, after all other steps of the run."""
    Gate(HOME / "gates", "before STEP killed_ended_sibling", "before", "STEP", "").stop()


translated = asked("translated", **whole)
rated = asked("rated", source=translated, prompt="rated {{ response }}", **whole)


@dg.asset(deps=[translated])
def translated_sibling() -> None: ...


with_downstream = [
    asked("backfilled", max_failure_rate=0.1, deduplicate=False),
    asked("mixed", source=mixed_source, **whole),
    asked("unpartitioned", **whole),
    asked("daily", partitions_def=DAYS, partition_expr="written_at"),
    asked(
        "by_city_and_day",
        partitions_def=CITIES_BY_DAY,
        partition_expr={"city": "city", "day": "written_at"},
    ),
]


@dg.asset(deps=["mixed"])
def mixed_summary() -> None: ...


alone = [
    asked("asked_again"),
    asked("failing", max_attempts=2, deduplicate=False),
    asked("unwatched", claude_resource="claude_unwatched"),
    asked("switched_off"),
    asked("waiting_in_the_run"),
    asked("terminated", claude_resource="claude_impatient"),
    asked("joined"),
    asked("in_one_run", backfill_policy=dg.BackfillPolicy.single_run()),
    asked("clicked", backfill_policy=dg.BackfillPolicy.single_run()),
    # DuckDB ends a statement at a signal only where no other thread works on it.
    asked("planning_long", duckdb_resource="duckdb_in_one_thread"),
    asked("locked_out"),
    asked("cut_short", chunk_size=10, claude_resource="claude_impatient"),
    asked("cut_in_doubt", chunk_size=10, claude_resource="claude_impatient"),
    asked("cut_and_resumed", chunk_size=10),
    asked("cut_in_the_run", chunk_size=10, claude_resource="claude_impatient"),
    asked("cut_while_collecting"),
    asked("cut_while_locked", chunk_size=10),
    asked("interrupted", chunk_size=10),
    asked("refreshed", chunk_size=10),
    asked("backfilled_twice"),
    asked("executed_again", claude_resource="claude_impatient"),
    asked("retried_by_dagster"),
    asked("broken_off", chunk_size=10),
    asked("maker_cancelled", chunk_size=10),
    asked("hurried", max_wait_hours=1),
    asked("hurried_and_tolerant", max_wait_hours=1, max_failure_rate=1.0),
    asked("moved_away"),
    asked("tried"),
    asked("piloted", pilot=3),
    asked("pilot_fails", pilot=3),
    asked("fails_unauthorized"),
    asked("fails_locked", claude_resource="claude_impatient"),
    asked("fails_and_is_retried"),
    asked("fails_and_is_reexecuted"),
    asked("fails_always"),
    asked("killed_alone"),
    asked("killed_in_a_backfill"),
    asked("all_terminated"),
    asked("held_run_cancelled"),
    asked("held_run_deleted"),
    asked("backfill_cancelled"),
    asked("pool_limit_deleted"),
    asked("pool_limit_edited"),
    asked("collected_by_hand", claude_resource="claude_drowsy"),
    asked("cancelled_by_hand", claude_resource="claude_drowsy"),
    asked("killed_unclaimed"),
    asked("killed_claimed", model="claude-sonnet-5-5"),
    asked("killed_created"),
    asked("killed_enqueued"),
    asked("killed_posted"),
    asked("killed_between", chunk_size=1),
    asked("killed_sent"),
    asked("killed_ended"),
]


class GatedClaudeBatchResource(LocalClaudeBatchResource):
    """The simulator, on the way to which a test can stop a run."""

    def _http_client(self) -> httpx2.Client:
        return httpx2.Client(transport=GatedTransport(self.simulator, Way(HOME / "gates")))


def claude(**configured: Any) -> GatedClaudeBatchResource:
    """The API, whose batches end when a test says so."""
    fields: dict[str, Any] = {"poll_interval_seconds": 1, **configured}
    return GatedClaudeBatchResource(
        path=str(HOME / "simulator"),
        answer="e2e_simulated:answer",
        outcome="e2e_simulated:outcome",
        processing_seconds=[7200, 7200],
        **fields,
    )


defs = dg.Definitions(
    assets=[
        mixed_source,
        mixed_sibling,
        mixed_stranger,
        mixed_summary,
        translated,
        translated_sibling,
        killed_ended_sibling,
        rated,
        *with_downstream,
        *(read(answers) for answers in with_downstream),
        *alone,
        *SITUATED,
    ],
    schedules=SCHEDULES,
    jobs=build_claude_batch_jobs("by_hand", claude_resource="claude_drowsy"),
    sensors=[
        *AUTOMATION,
        build_claude_batch_sensor("claude_batch_sensor", minimum_interval_seconds=2),
        build_claude_batch_sensor(
            "impatient_sensor",
            claude_resource="claude_impatient",
            minimum_interval_seconds=3,
            cancel_after_seconds=1,
        ),
        build_claude_batch_sensor(
            "drowsy_sensor", claude_resource="claude_drowsy", minimum_interval_seconds=5
        ),
    ],
    resources={
        "duckdb": DuckDBResource(database=WAREHOUSE),
        "duckdb_in_one_thread": DuckDBResource(
            database=WAREHOUSE, connection_config={"threads": 1}
        ),
        "io_manager": DuckDBPandasIOManager(database=WAREHOUSE, schema="main"),
        "claude_batch": claude(),
        "claude_impatient": claude(lock_timeout_seconds=8),
        "claude_unwatched": claude(),
        "claude_drowsy": claude(poll_interval_seconds=86_400),
    },
    executor=dg.in_process_executor,
)
