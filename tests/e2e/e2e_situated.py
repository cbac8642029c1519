"""The assets of situations: what people select, what is downstream, and what asks by itself."""

from typing import Any

import dagster as dg
from dagster_duckdb import DuckDBResource
from e2e_declared import CITIES, asked, whole

WEEK = dg.DailyPartitionsDefinition("2026-03-01", end_date="2026-03-08")
YEAR = dg.DailyPartitionsDefinition("2025-01-01", end_date="2026-01-01")
BY_WEEK = dg.WeeklyPartitionsDefinition("2026-03-01", end_date="2026-03-08")
SHOPS = dg.StaticPartitionsDefinition([f"shop_{number}" for number in range(10)])
ALL_AT_ONCE = dg.BackfillPolicy.single_run()
CONDITION = dg.AutomationCondition

of_days: dict[str, Any] = {"partition_expr": "CAST(city AS TIMESTAMP)"}


def counted(answers: dg.AssetsDefinition, **declared: Any) -> dg.AssetsDefinition:
    """``<asset>_count``: how many answers there are when it runs."""
    table = answers.key.path[-1]

    @dg.asset(name=f"{table}_count", deps=[answers], **declared)
    def count(duckdb: DuckDBResource) -> dg.MaterializeResult:
        with duckdb.get_connection() as connection:
            (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
        return dg.MaterializeResult(metadata={"rows": rows})

    return count


summed = asked("summed")
partly = asked("partly", partitions_def=SHOPS, partition_expr="city", backfill_policy=ALL_AT_ONCE)
several = asked(
    "several", partitions_def=WEEK, backfill_policy=dg.BackfillPolicy.multi_run(2), **of_days
)
selected = [
    several,
    counted(several, partitions_def=BY_WEEK),
    asked(
        "crossed",
        partitions_def=dg.MultiPartitionsDefinition({"city": CITIES, "day": WEEK}),
        partition_expr={"city": "city", "day": "written_at"},
    ),
    asked("thrice"),
    asked("in_thousands", chunk_size=1),
    asked("of_customers", partitions_def=dg.DynamicPartitionsDefinition(name="customers")),
    asked("twin_one", **whole),
    asked("twin_two", **whole),
    summed,
    counted(summed),
    partly,
    counted(partly, partitions_def=SHOPS, backfill_policy=ALL_AT_ONCE),
    asked("year", partitions_def=YEAR, backfill_policy=ALL_AT_ONCE, **of_days),
    asked("year_day_by_day", partitions_def=YEAR, **of_days),
    asked("staggered"),
]


@dg.asset
def eager_upstream() -> None: ...


eager = asked("eager", deps=[eager_upstream], automation_condition=CONDITION.eager(), **whole)
arriving = asked(
    "arriving",
    partitions_def=dg.DynamicPartitionsDefinition(name="arrivals"),
    automation_condition=CONDITION.on_missing(),
)
every_minute = asked("every_minute", automation_condition=CONDITION.on_cron("* * * * *"), **whole)
automatic = [
    eager,
    counted(eager, automation_condition=CONDITION.eager()),
    arriving,
    counted(arriving, automation_condition=CONDITION.eager()),
    every_minute,
    counted(every_minute, automation_condition=CONDITION.on_cron("* * * * *")),
    asked(
        "naive",
        backfill_policy=ALL_AT_ONCE,
        automation_condition=CONDITION.missing() & ~CONDITION.in_progress(),
    ),
]

nightly = asked("nightly", **whole)

SITUATED = [*selected, eager_upstream, *automatic, nightly]
AUTOMATION = [
    dg.AutomationConditionSensorDefinition(
        "quick_automation", target=automatic, minimum_interval_seconds=2
    )
]
SCHEDULES = [
    dg.ScheduleDefinition(
        name="nightly_schedule",
        job=dg.define_asset_job("nightly_job", selection=[nightly]),
        cron_schedule="* * * * *",
    )
]
