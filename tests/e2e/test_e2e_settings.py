"""Settings of the instance: where few runs may start, and where no run can be held."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import pytest
from e2e_situations import Shown, record
from e2e_stage import HERE, Stage, open_stage

FEW_RUNS = """
run_coordinator:
  module: dagster._core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
    max_concurrent_runs: 1
    tag_concurrency_limits:
      - {key: team, value: data, limit: 1}
"""
DEFAULT_COORDINATOR = """
run_coordinator:
  module: dagster._core.run_coordinator
  class: DefaultRunCoordinator
"""
NO_HOLDING = MappingProxyType(
    {
        "op_granularity_run_buffer": (
            "concurrency: {pools: {op_granularity_run_buffer: 1}}",
            "the run queue has a buffer for pools (op_granularity_run_buffer)",
        ),
        "block_op_concurrency_limited_runs": (
            f"{FEW_RUNS}    block_op_concurrency_limited_runs: {{enabled: false}}",
            "the run queue does not look at pools (block_op_concurrency_limited_runs)",
        ),
        "default run coordinator": (
            DEFAULT_COORDINATOR,
            "the instance's run coordinator does not queue runs",
        ),
    }
)
FEW = "few runs"
COMMANDS = {
    "by_command": [
        *("dagster", "asset", "materialize", "-m", "e2e_small_project"),
        *("--select", "by_command", "--partition", "berlin"),
    ],
    "executed_in_process": ["e2e_small_project", "execute_in_process", "executed_in_process"],
    "materialized": ["e2e_small_project", "materialize", "materialized"],
}
COMMAND_NAMES = {
    "by_command": "`dagster asset materialize`",
    "executed_in_process": "execute_in_process",
    "materialized": "dg.materialize, whose instance is ephemeral",
}
IN_THE_RUN = Shown({"materializing": 1, "missing": 2}, started=1, batches_out=1)
DONE = Shown({"materialized": 1, "missing": 2})


@pytest.fixture(scope="module")
def configured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Stage]]:
    """A setting's name, and a Dagster with it."""
    yaml = FEW_RUNS if request.param == FEW else NO_HOLDING[request.param][0]
    home = tmp_path_factory.mktemp("configured")
    with open_stage(home, module="e2e_small_project", extra_yaml=yaml) as opened:
        yield request.param, opened


@pytest.mark.parametrize("configured", [FEW], indirect=True)
def test_held_runs_leave_the_only_run_slot_the_pool_and_the_tag_limit_to_others(
    configured: tuple[str, Stage],
) -> None:
    _, stage = configured
    dagster = stage.dagster
    stage.ask("in_a_pool", 2, cities=("amsterdam", "berlin"))
    dagster.set_pool_limit("warehouse", 1)

    backfill = dagster.launch_backfill(
        ["in_a_pool"], ["amsterdam", "berlin"], tags={"team": "data"}
    )
    dagster.wait_for(
        lambda: len(dagster.backfill_runs(backfill, statuses=["SUCCESS"])) == 2,
        timeout=600,
        what="the runs that submit",
    )
    waiting = stage.shown("in_a_pool", backfill)
    ordinary = dagster.wait_for_run(dagster.materialize("ordinary", tags={"team": "data"}))
    still_waiting = stage.shown("in_a_pool", backfill)
    stage.simulator.end_batches()
    ended = dagster.wait_for_backfill(backfill)
    at_the_end = stage.shown("in_a_pool", backfill)

    assert ordinary.status == "SUCCESS"
    in_progress = {"materializing": 2, "missing": 1}
    assert waiting == Shown(in_progress, "REQUESTED", queued=2, batches_out=2)
    assert still_waiting == waiting
    assert ended.status == "COMPLETED_SUCCESS"
    assert at_the_end == Shown({"materialized": 2, "missing": 1}, "COMPLETED_SUCCESS")
    _assert_each_row_was_sent_once(stage, "in_a_pool", 4)
    for name in ("max_concurrent_runs 1", "the user's own pool, limit 1"):
        record(f"instance: {name}", waiting, at_the_end)
    record("tag limits: an ordinary run with the tag is not starved", waiting, at_the_end)


# What keeps a run from being held is a matter of units; that it then waits itself, of one setting.
@pytest.mark.parametrize(
    "configured",
    [
        "default run coordinator",
        pytest.param("op_granularity_run_buffer", marks=pytest.mark.exhaustive),
        pytest.param("block_op_concurrency_limited_runs", marks=pytest.mark.exhaustive),
    ],
    indirect=True,
)
def test_where_no_run_can_be_held_the_run_waits_itself_and_says_why(
    configured: tuple[str, Stage],
) -> None:
    setting, stage = configured
    dagster = stage.dagster
    stage.ask("in_the_run", 2)

    run_id = dagster.materialize("in_the_run", partition="berlin")
    stage.wait_for_batches("in_the_run", 1)
    waiting = stage.shown("in_the_run")
    stage.simulator.end_batches()
    stage.succeed(run_id)
    at_the_end = stage.shown("in_the_run")

    why = NO_HOLDING[setting][1]
    assert f"This run waits for its batches itself: {why}." in dagster.run_messages(run_id)
    assert (waiting, at_the_end) == (IN_THE_RUN, DONE)
    _assert_each_row_was_sent_once(stage, "in_the_run", 2)
    record(f"instance: {setting}", waiting, at_the_end)


@pytest.mark.parametrize("configured", [FEW], indirect=True)
def test_without_a_code_server_the_process_waits_itself_and_says_why(
    configured: tuple[str, Stage],
) -> None:
    _, stage = configured
    for asset in COMMANDS:
        stage.ask(asset, 2)

    with ExitStack() as processes:
        started = {
            asset: processes.enter_context(_process(stage, command))
            for asset, command in COMMANDS.items()
        }
        for asset in COMMANDS:
            stage.wait_for_batches(asset, 1)
        waiting = {asset: stage.shown(asset) for asset in COMMANDS}
        stage.simulator.end_batches()
        said = {asset: process.communicate(timeout=600)[0] for asset, process in started.items()}
    at_the_end = {asset: stage.shown(asset) for asset in COMMANDS}

    for asset in COMMANDS:
        assert started[asset].returncode == 0, said[asset]
        _assert_each_row_was_sent_once(stage, asset, 2)
        record(f"instance: {COMMAND_NAMES[asset]}", waiting[asset], at_the_end[asset])
    # Of a run of an ephemeral instance, nobody knows more than it says itself.
    unknown, never_known = Shown({"missing": 3}, batches_out=1), Shown({"missing": 3})
    known = ("by_command", "executed_in_process")
    assert waiting == {**dict.fromkeys(known, IN_THE_RUN), "materialized": unknown}
    assert at_the_end == {**dict.fromkeys(known, DONE), "materialized": never_known}
    waits = "This run waits for its batches itself: "
    for asset in known:
        assert f"{waits}the run was not launched through a code location." in said[asset]
    assert f"{waits}the Dagster instance is ephemeral." in said["materialized"]


@contextmanager
def _process(stage: Stage, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    env = {"E2E_HOME": str(stage.home), "DAGSTER_HOME": str(stage.dagster.home)}
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=HERE,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _assert_each_row_was_sent_once(stage: Stage, asset: str, rows: int) -> None:
    sent = stage.sent(asset)
    assert len(sent) == len(set(sent)) == rows
    assert stage.sql(f"SELECT count(*) FROM {asset}") == [(rows,)]
