"""What reads the tables downstream: IO managers, and assets that depend on the failures."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pytest
from dagster_duckdb import DuckDBResource
from dagster_duckdb_pandas import DuckDBPandasIOManager
from dagster_duckdb_polars import DuckDBPolarsIOManager

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    build_claude_batch_failures_spec,
)
from dagster_claude_batch.errors import NoBatchAssetError

CITIES = dg.StaticPartitionsDefinition(["berlin", "oslo"])
DAYS = dg.DailyPartitionsDefinition("2026-03-01", end_date="2026-03-03")
BOTH = dg.MultiPartitionsDefinition({"city": CITIES, "day": DAYS})
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "static": {"partitions_def": CITIES, "partition_expr": "city"},
    "daily": {"partitions_def": DAYS, "partition_expr": "written_at"},
    "both": {"partitions_def": BOTH, "partition_expr": {"city": "city", "day": "written_at"}},
}
KEYS = {
    "none": None,
    "static": "oslo",
    "daily": "2026-03-02",
    "both": dg.MultiPartitionKey({"city": "oslo", "day": "2026-03-02"}),
}
ROWS = {"none": [1, 2, 3, 4], "static": [3, 4], "daily": [2, 4], "both": [4]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(duckdb.connect("w.duckdb")) as connection:
        connection.execute(
            """
            CREATE TABLE reviews AS FROM (VALUES
                ('berlin', 1, DATE '2026-03-01', 'one'),
                ('berlin', 2, DATE '2026-03-02', 'two'),
                ('oslo', 3, DATE '2026-03-01', 'three'),
                ('oslo', 4, DATE '2026-03-02', NULL)
            ) AS r(city, review_id, written_at, review)
            """
        )


def asked(**declared: Any) -> dg.AssetsDefinition:
    declared = {"source": "reviews", "row_key": "review_id", "max_failure_rate": 1} | declared
    return build_claude_batch_asset("rated", prompt="{{ city }} {{ review }}", **declared)


RESOURCES = {
    "duckdb": DuckDBResource(database="w.duckdb"),
    "claude_batch": LocalClaudeBatchResource(
        path="simulator", processing_seconds=[0, 0], poll_interval_seconds=0.05
    ),
    "pandas": DuckDBPandasIOManager(database="w.duckdb", schema="main"),
    "polars": DuckDBPolarsIOManager(database="w.duckdb", schema="main"),
}


def materialized(*assets: Any, kind: str = "none") -> dg.ExecuteInProcessResult:
    return dg.materialize(assets, resources=RESOURCES, partition_key=KEYS[kind])


def asked_too() -> dg.AssetsDefinition:
    return build_claude_batch_asset(
        "asked_too", source="reviews", row_key="review_id", prompt="{{ city }}"
    )


def reader(
    of: dg.AssetKey, frame: type[Any], manager: str, partitions_def: Any, read: list[Any]
) -> dg.AssetsDefinition:
    def look(rows: Any) -> None:
        read.append(rows)

    look.__annotations__["rows"] = frame
    decorate = dg.asset(
        name="looked_at",
        ins={"rows": dg.AssetIn(of, input_manager_key=manager)},
        partitions_def=partitions_def,
    )
    return decorate(look)


OF_POLARS = pytest.mark.skipif(
    not hasattr(duckdb.DuckDBPyConnection, "arrow"),
    reason="dagster-duckdb-polars calls a method that DuckDB 2.0 has no more",
)


@pytest.mark.parametrize(
    ("manager", "frame"),
    [("pandas", pd.DataFrame), pytest.param("polars", pl.DataFrame, marks=OF_POLARS)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_io_managers_read_the_answers_and_the_failures_of_a_partition(
    kind: str, manager: str, frame: type[Any]
) -> None:
    rated = asked(**KINDS[kind])
    failures = build_claude_batch_failures_spec(rated)
    partitions_def = KINDS[kind].get("partitions_def")
    answered, failed = [], []
    for key, read in ((rated.key, answered), (failures.key, failed)):
        look = reader(key, frame, manager, partitions_def, read)
        assert materialized(rated, failures, look, kind=kind).success

    assert [sorted(rows["review_id"]) for rows in answered] == [[n for n in ROWS[kind] if n != 4]]
    assert [list(rows["review_id"]) for rows in failed] == [[n for n in ROWS[kind] if n == 4]]
    assert [list(rows["_error_type"]) for rows in failed] == [["invalid_row"] * (4 in ROWS[kind])]


def test_failures_are_reported_by_each_run_also_by_one_that_fails() -> None:
    rated = asked(**KINDS["static"], max_failure_rate=0)
    failures = build_claude_batch_failures_spec(rated)
    with dg.DagsterInstance.ephemeral() as instance:
        for key in CITIES.get_partition_keys():
            dg.materialize(
                [rated, failures],
                partition_key=key,
                resources=RESOURCES,
                instance=instance,
                raise_on_error=False,
            )
        events = instance.fetch_materializations(failures.key, limit=9).records
        shown = {
            event.asset_materialization.partition: event.asset_materialization.metadata
            for event in events
            if event.asset_materialization is not None
        }
        assert instance.get_materialized_partitions(rated.key) == {"berlin"}

    assert {key: said["dagster/partition_row_count"].value for key, said in shown.items()} == {
        "berlin": 0,
        "oslo": 1,
    }
    query = str(shown["oslo"]["failures_sql"].value).split("\n")[1]
    with closing(duckdb.connect("w.duckdb")) as connection:
        assert connection.execute(query).fetchall()[0][:1] == (4,)


def test_failures_are_a_line_of_the_lineage_that_nobody_can_press() -> None:
    rated = asked(**KINDS["daily"], group_name="reviews", owners=["team:data"])
    failures = build_claude_batch_failures_spec(rated)
    graph = dg.Definitions(assets=[rated, failures], resources=RESOURCES).resolve_asset_graph()

    node = graph.get(failures.key)
    assert failures.key == dg.AssetKey("rated_failures")
    assert node.parent_keys == {rated.key}
    assert not node.is_executable
    assert (node.group_name, node.owners) == ("reviews", ["team:data"])
    assert node.partitions_def == DAYS
    assert node.metadata["dagster/table_name"] == "main.rated_failures"


def test_who_does_not_have_it_in_the_definitions_has_no_such_asset() -> None:
    rated = asked()
    build_claude_batch_failures_spec(rated)  # nobody takes it along
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([rated], resources=RESOURCES, instance=instance)

        assert set(instance.all_asset_keys()) == {dg.AssetKey("rated")}


def test_an_asset_of_ones_own_with_that_key_is_left_alone() -> None:
    @dg.asset
    def rated_failures() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        own = dg.AssetSelection.assets("rated")
        dg.materialize(
            [asked(), rated_failures], resources=RESOURCES, instance=instance, selection=own
        )

        assert set(instance.all_asset_keys()) == {dg.AssetKey("rated")}


@pytest.mark.parametrize("job", [None, "rate"], ids=["of all assets", "of ones own"])
def test_jobs_and_runs_of_a_selection_report_failures_too(job: str | None) -> None:
    rated = asked()
    failures = build_claude_batch_failures_spec(rated)
    defs = dg.Definitions(
        assets=[rated, failures, asked_too()],
        jobs=[dg.define_asset_job("rate", ["rated"])],
        resources=RESOURCES,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        found = defs.resolve_job_def(job) if job else defs.resolve_implicit_global_asset_job_def()
        found.execute_in_process(instance=instance, asset_selection=None if job else [rated.key])

        assert set(instance.all_asset_keys()) == {rated.key, failures.key}


def test_the_failures_of_a_renamed_asset_are_named_after_it() -> None:
    rated = asked()
    (renamed,) = dg.load_assets_from_modules([module_of(rated)], key_prefix="p")
    assert isinstance(renamed, dg.AssetsDefinition)
    failures = build_claude_batch_failures_spec(renamed)
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([renamed, failures], resources=RESOURCES, instance=instance)

        assert failures.key == dg.AssetKey(["p", "rated_failures"])
        assert set(instance.all_asset_keys()) == {renamed.key, failures.key}


def module_of(asset: dg.AssetsDefinition) -> ModuleType:
    module = ModuleType("declared")
    vars(module)["asset"] = asset
    return module


def test_an_asset_of_another_kind_has_no_failures() -> None:
    @dg.asset
    def other() -> None: ...

    for each in (other, dg.AssetSpec("other")):
        with pytest.raises(NoBatchAssetError, match="'other' is not one of"):
            build_claude_batch_failures_spec(each)


def test_a_check_of_ones_own_a_freshness_policy_and_selections_go_with_it() -> None:
    policy = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=30))
    rated = asked(freshness_policy=policy, tags={"tier": "gold"}, group_name="reviews")

    @dg.asset_check(asset=rated)
    def no_empty_answer(duckdb: DuckDBResource) -> dg.AssetCheckResult:
        with duckdb.get_connection() as connection:
            empty = connection.execute("SELECT count(*) FROM rated WHERE response = ''").fetchall()
        return dg.AssetCheckResult(passed=empty == [(0,)])

    result = materialized(rated, no_empty_answer)
    defs = dg.Definitions(assets=[rated], asset_checks=[no_empty_answer], resources=RESOURCES)
    graph = defs.resolve_asset_graph()

    assert {each.check_name: each.passed for each in result.get_asset_check_evaluations()} == {
        "no_empty_answer": True,
        "every_row_answered": False,
        "failure_rate": True,
    }
    assert graph.get(rated.key).freshness_policy == policy
    select = dg.AssetSelection
    for selection in (select.groups("reviews"), select.tag("tier", "gold"), select.kind("duckdb")):
        assert selection.resolve(graph) == {rated.key}
