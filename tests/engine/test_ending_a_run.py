"""How a run of several partitions ends in Dagster, when not all of them end well."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from kit import Project

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset

Make = Callable[..., Project]

CORPORA = dg.DynamicPartitionsDefinition(name="corpora")
KEYS = ["anna", "bert", "carl"]
RANGE = {
    "dagster/asset_partition_range_start": "anna",
    "dagster/asset_partition_range_end": "carl",
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


deleting: list[Callable[[], None]] = []
"""What is done while a batch is out."""


def answer(params: dict[str, Any]) -> str:
    while deleting:
        deleting.pop()()
    return str(params["messages"][-1]["content"]).upper()


def outcome(params: dict[str, Any], _custom_id: str, _seen: int) -> str | None:
    return "refusal" if "doomed" in str(params["messages"]) else None


def _materialize(
    made: Project, instance: dg.DagsterInstance, **launched: Any
) -> dg.ExecuteInProcessResult:
    asked = build_claude_batch_asset("sentiment", **made.declared, wait="run")

    @dg.asset(name="read", deps=[asked], partitions_def=CORPORA)
    def read() -> None: ...

    @dg.asset(name="summary", deps=[read], partitions_def=CORPORA)
    def summary() -> None: ...

    claude = LocalClaudeBatchResource(
        path=made.claude.path,
        answer="test_ending_a_run:answer",
        outcome="test_ending_a_run:outcome",
        processing_seconds=[0, 0],
        poll_interval_seconds=0.01,
    )
    return dg.materialize(
        [asked, read, summary],
        instance=instance,
        resources={"duckdb": made.duckdb, "claude_batch": claude},
        raise_on_error=False,
        **launched,
    )


def _made(project: Make, instance: dg.DagsterInstance, **rows: str) -> Project:
    made = project(output=None, partitions_def=CORPORA)
    made.load([(key, f"t-{key}", rows.get(key, "fine")) for key in KEYS])
    instance.add_dynamic_partitions("corpora", KEYS)
    return made


def _materialized(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> list[str]:
    logged = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = [entry.get_dagster_event() for entry in logged]
    return sorted(str(event.partition) for event in events if event.step_key == "sentiment")


def _said(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))


@pytest.mark.parametrize(
    ("deleted", "launched", "expected"),
    [
        ("anna", {"partition_key": "anna"}, ["anna"]),
        ("anna", {"tags": RANGE}, KEYS),
        ("bert", {"tags": RANGE}, ["anna", "carl"]),
    ],
    ids=["the only one", "the first of a range", "one within a range"],
)
def test_a_partition_that_is_deleted_while_its_batch_is_out_does_not_fail_the_run(
    project: Make,
    instance: dg.DagsterInstance,
    deleted: str,
    launched: dict[str, Any],
    expected: list[str],
) -> None:
    made = _made(project, instance)
    deleting.append(lambda: instance.delete_dynamic_partition("corpora", deleted))

    result = _materialize(made, instance, **launched)

    assert instance.get_dynamic_partitions("corpora") == [key for key in KEYS if key != deleted]
    assert _materialized(result, instance) == expected
    assert deleted in made.answers("_partition")


def test_it_is_said_which_partition_was_deleted_and_what_did_not_run(
    project: Make, instance: dg.DagsterInstance
) -> None:
    made = _made(project, instance)
    deleting.append(lambda: instance.delete_dynamic_partition("corpora", "anna"))

    result = _materialize(made, instance, partition_key="anna")

    said = _said(result, instance)
    assert result.success
    assert "no partitions of the asset any more: 'anna'. What was answered is in main." in said
    assert "not run for any partition: read, summary. Materialize that for " in said


def test_a_run_that_fails_for_some_partitions_says_that_downstream_did_not_run_for_the_others(
    project: Make, instance: dg.DagsterInstance
) -> None:
    made = _made(project, instance, bert="doomed")

    result = _materialize(made, instance, tags=RANGE)

    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    message = str(failure.step_failure_data.error)
    assert _materialized(result, instance) == ["anna", "carl"]
    assert (
        "Materialized all the same: anna, carl. Downstream in this run, and therefore " in message
    )
    assert "not run for any partition: read, summary. Materialize that for " in message


def test_where_nothing_was_materialized_nothing_is_said_of_downstream(
    project: Make, instance: dg.DagsterInstance
) -> None:
    made = _made(project, instance, bert="doomed")

    result = _materialize(made, instance, partition_key="bert")

    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert "Downstream" not in str(failure.step_failure_data.error)


IN_A_BACKFILL = {**RANGE, "dagster/backfill": "abcdefgh"}


@pytest.fixture
def never_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Dagster whose backfills wait for ever for what their runs have left out."""
    name = "dagster._core.execution.asset_backfill._backfill_is_stalled"
    monkeypatch.delattr(name, raising=False)


@pytest.mark.usefixtures("never_ending")
def test_where_a_backfill_would_never_end_all_partitions_of_its_run_fail_and_it_is_said(
    project: Make, instance: dg.DagsterInstance
) -> None:
    made = _made(project, instance, bert="doomed")

    result = _materialize(made, instance, tags=IN_A_BACKFILL)

    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    message = str(failure.step_failure_data.error)
    assert _materialized(result, instance) == []
    assert made.answers("_partition") == ["anna", "carl"]
    assert "Answered too, but not materialized: anna, carl. A backfill of Dagster " in message
    assert "Launch these without those that failed: nothing is sent for them." in message
    assert "Downstream" not in message

    again = _materialize(made, instance, partition_key="anna")

    assert again.success
    assert len(made.claude.simulator.batches()) == 1


@pytest.mark.usefixtures("never_ending")
def test_where_nothing_is_backfilled_the_good_partitions_are_materialized_all_the_same(
    project: Make, instance: dg.DagsterInstance
) -> None:
    made = _made(project, instance, bert="doomed")

    assert _materialized(_materialize(made, instance, tags=RANGE), instance) == ["anna", "carl"]


@pytest.mark.usefixtures("never_ending")
def test_where_a_backfill_would_never_end_a_run_fails_that_leaves_out_what_is_downstream(
    project: Make, instance: dg.DagsterInstance
) -> None:
    made = _made(project, instance)
    deleting.append(lambda: instance.delete_dynamic_partition("corpora", "anna"))

    result = _materialize(made, instance, tags=IN_A_BACKFILL)

    assert not result.success
    assert _materialized(result, instance) == KEYS
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    message = str(failure.step_failure_data.error)
    assert "no partitions of the asset any more: 'anna'. What was answered is in main." in message
    assert "not run for any partition: read, summary. Materialize that for " in message
