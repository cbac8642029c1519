"""The driver of the end-to-end tests, on an ordinary asset."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dagster_driver import DagsterDriver, DagsterRefusedError

pytestmark = pytest.mark.exhaustive  # whatever is wrong with it, the tests that it drives fail too

LETTERS = """
import dagster as dg

@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]))
def letters(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    if context.partition_key == "c" and not context.run.tags.get("cured"):
        raise dg.Failure("no c today", allow_retries=False)
    return dg.MaterializeResult(metadata={"shout": context.partition_key.upper(), "rows": 3})

@dg.asset(
    partitions_def=dg.MultiPartitionsDefinition({
        "day": dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-03"),
        "color": dg.StaticPartitionsDefinition(["red", "blue"]),
    }),
)
def grid() -> None: ...

@dg.asset
def whole() -> None: ...

@dg.sensor(target=[whole], minimum_interval_seconds=1)
def doorbell():
    return dg.SkipReason("nobody there")

defs = dg.Definitions(assets=[letters, grid, whole], sensors=[doorbell])
"""


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDriver]:
    directory = tmp_path_factory.mktemp("letters")
    (directory / "letters_module.py").write_text(LETTERS)
    with DagsterDriver(directory, module="letters_module") as driver:
        yield driver


def test_a_backfill_launched_through_graphql_ends_and_counts_what_failed(
    dagster: DagsterDriver,
) -> None:
    backfill_id = dagster.launch_backfill(["letters"], ["a", "b", "c"])

    backfill = dagster.wait_for_backfill(backfill_id)

    assert backfill.status == "COMPLETED_FAILED"
    assert (backfill.targeted, backfill.materialized, backfill.failed) == (3, 2, 1)
    assert dagster.partition_statuses("letters") == {
        "a": "materialized",
        "b": "materialized",
        "c": "failed",
    }
    assert dagster.failed_and_missing("letters") == ["c"]


def test_a_materialization_shows_its_partition_and_metadata(dagster: DagsterDriver) -> None:
    run = dagster.wait_for_run(dagster.materialize("letters", partition="b"))

    newest = dagster.asset_materializations("letters")[0]

    assert (run.status, run.partition, run.assets) == ("SUCCESS", "b", ["letters"])
    assert (newest.run_id, newest.partition) == (run.run_id, "b")
    assert newest.metadata == {"shout": "B", "rows": 3}


def test_a_failed_run_says_why_and_can_be_executed_again(dagster: DagsterDriver) -> None:
    failed = dagster.wait_for_run(dagster.materialize("letters", partition="c"))

    again = dagster.wait_for_run(dagster.reexecute(failed.run_id))

    assert failed.status == again.status == "FAILURE"
    assert "no c today" in "\n".join(dagster.run_messages(failed.run_id))
    assert again.tags["dagster/parent_run_id"] == failed.run_id


def test_a_multi_partition_has_the_status_that_its_cell_shows(dagster: DagsterDriver) -> None:
    dagster.wait_for_run(dagster.materialize("grid", partition="blue|2026-01-02"))

    assert dagster.partition_statuses("grid") == {
        "red|2026-01-01": "missing",
        "red|2026-01-02": "missing",
        "blue|2026-01-01": "missing",
        "blue|2026-01-02": "materialized",
    }


def test_a_sensor_is_started_ticks_and_is_stopped(dagster: DagsterDriver) -> None:
    dagster.start_sensor("doorbell")
    ticks = dagster.wait_for(lambda: dagster.ticks("doorbell"), timeout=60, what="a tick")
    dagster.stop_sensor("doorbell")

    assert ticks[-1].skip_reason == "nobody there"
    assert dagster.sensor_state("doorbell") == "STOPPED"


def test_what_dagster_refuses_is_an_error_with_its_message(dagster: DagsterDriver) -> None:
    with pytest.raises(DagsterRefusedError, match="not_a_key"):
        dagster.launch_backfill(["letters"], ["not_a_key"])


def test_definitions_that_do_not_load_say_why_and_leave_no_process(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no definitions today')")
    driver = DagsterDriver(tmp_path, file=broken)

    with pytest.raises(DagsterRefusedError, match="no definitions today"), driver:
        pass

    assert _processes_of(driver) == []


def test_leaving_the_driver_ends_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "letters_module.py").write_text(LETTERS)

    with DagsterDriver(tmp_path, module="letters_module") as driver:
        driver.materialize("whole")
        started = _processes_of(driver)

    assert len(started) >= 3
    assert _processes_of(driver) == []


def _processes_of(driver: DagsterDriver) -> list[int]:
    """Return the living processes of the driver's session, and those that carry its home."""
    return [
        process.pid
        for process in psutil.process_iter(["pid", "status", "environ"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and _belongs_to(process, driver)
    ]


def _belongs_to(process: psutil.Process, driver: DagsterDriver) -> bool:
    environment = process.info["environ"] or {}
    if environment.get("DAGSTER_HOME") == str(driver.home):
        return True
    try:
        return os.getsid(process.pid) == driver.session_id
    except ProcessLookupError:
        return False


def test_an_asset_without_partitions_has_a_status_of_its_own(dagster: DagsterDriver) -> None:
    before = dagster.statuses("whole")

    dagster.wait_for_run(dagster.materialize("whole"))

    assert (before, dagster.statuses("whole")) == (["missing"], ["materialized"])
    assert [run.job for run in dagster.runs_of("whole")] == ["__ASSET_JOB"]
