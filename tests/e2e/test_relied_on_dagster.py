"""What `held_run` and the sensor rely on in Dagster beyond its public interface.

A test that fails here after an upgrade of Dagster says which part of the wait has lost its ground.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.events import DagsterEvent
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus
from dagster._core.snap import ExecutionPlanSnapshot
from dagster._core.storage import tags
from dagster._core.test_utils import in_process_test_workspace
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster._grpc.impl import get_external_sensor_execution

from dagster_claude_batch import claude_batch_sensor, dagster_internals, held_run, holding

Queue = Mapping[str, object]

POOL = "waiting_for_claude_batch/12345678"
ORIGIN = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")


@dg.asset
def reviews() -> None: ...


@dg.asset(deps=[reviews], check_specs=[dg.AssetCheckSpec("complete", asset="ratings")])
def ratings() -> dg.MaterializeResult: ...


@dg.asset(deps=[ratings])
def report() -> None: ...


REPOSITORY = dg.Definitions(assets=[reviews, ratings, report]).get_repository_def()


def configured(queue: Queue) -> dict[str, Any]:
    """A `dagster.yaml` with a run queue."""
    coordinator = {
        "module": "dagster._core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": queue,
    }
    return {"run_coordinator": coordinator}


@dataclass(frozen=True)
class Instance:
    """A Dagster instance without a daemon, and a run of all assets in it."""

    dagster: dg.DagsterInstance
    maker: dg.DagsterRun

    @property
    def plan(self) -> ExecutionPlanSnapshot:
        return self.dagster.get_execution_plan_snapshot(str(self.maker.execution_plan_snapshot_id))

    def create(self, *, pool: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """Copy the run as `held_run` does, with all its steps in one pool."""
        dagster, maker, plan = self.dagster, self.maker, self.plan
        steps = [step._replace(pool=pool) for step in plan.steps]
        run = dagster.create_run(
            job_name=maker.job_name,
            run_id=None,
            run_config=maker.run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags=tags,
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=plan._replace(steps=steps),
            job_snapshot=dagster.get_historical_job(str(maker.job_snapshot_id)).job_snapshot,
            parent_job_snapshot=None,
            asset_selection=frozenset(plan.asset_selection),
            asset_check_selection=None,
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=maker.remote_job_origin,
            job_code_origin=maker.job_code_origin,
            asset_graph=REPOSITORY.asset_graph,
        )
        return run.run_id

    def enqueue(self, **run: Any) -> str:
        """Create a run, and put it into the queue."""
        run_id = self.create(**run)
        holding.enqueue(self.dagster, self.run(run_id))
        return run_id

    def run(self, run_id: str) -> dg.DagsterRun:
        found = self.dagster.get_run_by_id(run_id)
        assert found is not None
        return found

    def dequeued(self) -> list[str]:
        """The runs that the queue's daemon would start now, in that order."""
        daemon = QueuedRunCoordinatorDaemon(interval_seconds=5)
        config = self.dagster.get_concurrency_config()
        runs = daemon._get_runs_to_dequeue(self.dagster, config, None)  # noqa: SLF001 - the decision alone, without a code server
        return [run.run_id for run in runs]


@pytest.fixture
def queue() -> Queue:
    return {}


@pytest.fixture
def instance(tmp_path: Path, queue: Queue) -> Iterator[Instance]:
    job = REPOSITORY.get_implicit_global_asset_job_def()
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=configured(queue)) as dagster:
        maker = dagster.create_run_for_job(job, remote_job_origin=ORIGIN.get_job_origin(job.name))
        yield Instance(dagster, maker)


# The run and its plan


def test_create_run_takes_what_held_run_passes_and_nothing_more() -> None:
    parameters = set(signature(dg.DagsterInstance.create_run).parameters) - {"self"}

    assert parameters == dagster_internals.CREATE_RUN_PARAMETERS


@pytest.mark.parametrize(
    "name",
    [
        "PRIORITY_TAG",
        "PARTITION_NAME_TAG",
        "PARENT_RUN_ID_TAG",
        "RETRY_NUMBER_TAG",
        "WILL_RETRY_TAG",
    ],
)
def test_tags_are_called_as_dagster_calls_them(name: str) -> None:
    assert getattr(dagster_internals, name) == getattr(tags, name)


def test_the_tags_that_are_not_copied_are_those_that_tell_of_one_run_alone() -> None:
    assert {
        tags.AUTO_RETRY_RUN_ID_TAG,
        tags.GRPC_INFO_TAG,
        tags.PARENT_RUN_ID_TAG,
        tags.PRIORITY_TAG,
        tags.RESUME_RETRY_TAG,
        tags.RETRY_NUMBER_TAG,
        tags.ROOT_RUN_ID_TAG,
        tags.RUN_FAILURE_REASON_TAG,
        tags.RUN_KEY_TAG,
        tags.RUN_WORKER_ID_TAG,
        tags.SENSOR_NAME_TAG,
        tags.TICK_ID_TAG,
        tags.WILL_RETRY_TAG,
    } == dagster_internals.NOT_COPIED


def test_this_dagster_lacks_nothing(instance: Instance) -> None:
    assert dagster_internals.missing(instance.dagster) is None


@dataclass(frozen=True)
class Without:
    """A Dagster, or its storage, in which one name has moved away."""

    whole: object
    gone: str

    def __getattr__(self, name: str) -> Any:
        if name == self.gone:
            raise AttributeError(name, name=name, obj=self)
        return getattr(self.whole, name)


@pytest.mark.parametrize("gone", ["create_run", "get_instigator_state", "report_run_canceled"])
def test_where_a_name_is_gone_runs_wait_by_themselves_and_say_so(
    instance: Instance, gone: str
) -> None:
    moved: Any = Without(instance.dagster, gone)

    reason = holding.why_not(moved, instance.maker)

    assert reason == (
        f"Dagster {dg.__version__} has no DagsterInstance.{gone}, "
        "which runs that wait in the queue need"
    )


def test_so_do_they_where_the_storage_lists_no_pools(instance: Instance) -> None:
    moved: Any = Without(instance.dagster, "nothing")
    moved.__dict__["event_log_storage"] = Without(
        instance.dagster.event_log_storage, "get_pool_limits"
    )

    assert "no EventLogStorage.get_pool_limits, " in str(holding.why_not(moved, instance.maker))


@pytest.mark.parametrize(
    ("module", "name", "gone"),
    [
        ("dagster._core.snap.execution_plan_snapshot", "ExecutionPlanSnapshot", "_replace"),
        ("dagster._core.snap.execution_plan_snapshot", "ExecutionStepSnap", "_replace"),
        ("dagster._core.snap.execution_plan_snapshot", "ExecutionStepSnap", "pool"),
        ("dagster._core.storage.dagster_run", "DagsterRun", "run_op_concurrency"),
    ],
)
def test_so_do_they_where_a_plan_or_a_run_is_made_otherwise(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, module: str, name: str, gone: str
) -> None:
    whole = getattr(import_module(module), name)
    monkeypatch.setattr(f"{module}.{name}", Without(whole, gone))

    assert f" has no {name}.{gone}, " in str(holding.why_not(instance.dagster, instance.maker))


def test_so_do_they_where_the_queue_is_configured_in_another_way(instance: Instance) -> None:
    config = instance.dagster.get_concurrency_config()
    moved: Any = Without(instance.dagster, "nothing")
    moved.__dict__["get_concurrency_config"] = lambda: Without(config, "run_queue_config")

    assert " has no run_queue_config, " in str(holding.why_not(moved, instance.maker))


def test_a_create_run_that_takes_other_parameters_is_not_called(instance: Instance) -> None:
    def create_run(*, launched_by: str, **_: object) -> None:
        raise AssertionError(launched_by)

    moved: Any = Without(instance.dagster, "nothing")
    moved.__dict__["create_run"] = create_run

    lacking = str(dagster_internals.missing(moved))

    assert lacking == (
        "the parameters of DagsterInstance.create_run as they were (asset_check_selection)"
    )


def test_a_plan_says_which_assets_and_checks_each_step_is_for(instance: Instance) -> None:
    outputs = {
        step.key: {
            properties.asset_key or properties.asset_check_key
            for output in step.outputs
            if (properties := output.properties)
        }
        for step in instance.plan.steps
    }

    ratings_key = dg.AssetKey("ratings")
    assert outputs == {
        "reviews": {dg.AssetKey("reviews")},
        "ratings": {ratings_key, dg.AssetCheckKey(ratings_key, "complete")},
        "report": {dg.AssetKey("report")},
    }
    assert instance.plan.asset_selection == REPOSITORY.asset_graph.get_all_asset_keys()


def test_a_copy_of_a_run_is_of_the_same_job_and_code_location(instance: Instance) -> None:
    copy = instance.run(instance.create())

    assert copy.job_snapshot_id == instance.maker.job_snapshot_id
    assert copy.remote_job_origin == instance.maker.remote_job_origin
    assert copy.asset_selection == REPOSITORY.asset_graph.get_all_asset_keys()


def test_a_run_remembers_the_pool_of_its_first_steps(instance: Instance) -> None:
    concurrency = instance.run(instance.create(pool=POOL)).run_op_concurrency

    assert concurrency is not None
    assert set(concurrency.root_key_counts) == {POOL}


def test_two_runs_with_one_id_cannot_be_created(instance: Instance) -> None:
    with pytest.raises(DagsterRunAlreadyExists):
        instance.dagster.create_run_for_job(
            REPOSITORY.get_implicit_global_asset_job_def(), run_id=instance.maker.run_id
        )


def test_the_asset_graph_of_a_repository_knows_what_is_downstream() -> None:
    assert REPOSITORY.asset_graph.get(dg.AssetKey("ratings")).child_keys == {dg.AssetKey("report")}


def test_the_asset_graph_of_a_runs_job_knows_what_is_downstream_and_what_the_run_executes() -> None:
    found: dict[str, Any] = {}

    @dg.asset
    def first(context: dg.AssetExecutionContext) -> None:
        graph = context.job_def.asset_layer.asset_graph
        found["downstream"] = graph.get(dg.AssetKey("first")).child_keys
        found["executed"] = set(graph.executable_asset_keys)

    @dg.asset(deps=[first])
    def second() -> None: ...

    @dg.asset(deps=[first])
    def third() -> None: ...

    dg.materialize([first, second, third], selection=[first, second])

    assert found["downstream"] >= {dg.AssetKey("second")}
    assert found["executed"] == {dg.AssetKey("first"), dg.AssetKey("second")}


def test_a_deleted_run_is_gone_and_its_id_is_free_again(instance: Instance) -> None:
    run_id = instance.create()

    instance.dagster.delete_run(run_id)

    assert instance.dagster.get_run_by_id(run_id) is None
    assert not instance.dagster.has_run(run_id)
    job = REPOSITORY.get_implicit_global_asset_job_def()
    assert instance.dagster.create_run_for_job(job, run_id=run_id).run_id == run_id


def test_the_log_of_a_run_can_be_asked_for_its_materializations_alone(instance: Instance) -> None:
    result = dg.materialize([reviews], instance=instance.dagster)

    logged = instance.dagster.all_logs(
        result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    )

    made = [entry.asset_materialization for entry in logged]
    assert [each and each.asset_key for each in made] == [dg.AssetKey("reviews")]


@pytest.mark.parametrize("state", ["open", "ended"])
def test_who_re_executes_a_run_gets_its_tags_but_those_of_a_backfill_that_has_ended(
    instance: Instance, state: str
) -> None:
    ours = {held_run.HELD_TAG: "claude_batch", held_run.attached_tag(dg.AssetKey("x")): "maker"}
    tags = {**ours, "team": "data", "dagster/backfill": "abcdefgh"}
    parent = instance.run(instance.create(tags=tags))
    if state == "open":
        instance.dagster.add_backfill(
            PartitionBackfill(
                "abcdefgh",
                status=BulkActionStatus.REQUESTED,
                from_failure=False,
                tags={},
                backfill_timestamp=0.0,
            )
        )
    target = LoadableTargetOrigin(python_file=__file__, attribute="REPOSITORY")
    with in_process_test_workspace(instance.dagster, target) as workspace:
        (location,) = workspace.code_locations
        (repository,) = location.get_repositories().values()
        again = instance.dagster.create_reexecuted_run(
            request_context=workspace,
            parent_run=parent,
            code_location=location,
            remote_job=repository.get_full_job(parent.job_name),
            strategy=ReexecutionStrategy.ALL_STEPS,
            use_parent_run_tags=True,
        )

    expected = {**ours, "team": "data", dagster_internals.PARENT_RUN_ID_TAG: parent.run_id}
    assert expected.items() <= again.tags.items()
    assert (dagster_internals.BACKFILL_TAG in again.tags) is (state == "open")
    assert dagster_internals.RETRY_NUMBER_TAG not in again.tags


# The queue and its pools


def test_an_enqueue_event_puts_a_run_into_the_queue_and_a_second_one_changes_nothing(
    instance: Instance,
) -> None:
    run_id = instance.create()

    statuses = [instance.run(run_id).status]
    for _ in range(2):
        event = DagsterEvent.job_enqueue(instance.run(run_id))
        instance.dagster.report_dagster_event(event, run_id=run_id)
        statuses.append(instance.run(run_id).status)

    assert [status.value for status in statuses] == ["NOT_STARTED", "QUEUED", "QUEUED"]


def test_a_run_stays_queued_while_the_limit_of_its_pool_is_0(instance: Instance) -> None:
    instance.dagster.event_log_storage.set_concurrency_slots(POOL, 0)
    instance.enqueue(pool=POOL)

    assert instance.dequeued() == []


def test_a_held_run_does_not_hold_up_the_runs_behind_it(instance: Instance) -> None:
    instance.dagster.event_log_storage.set_concurrency_slots(POOL, 0)
    instance.enqueue(pool=POOL)
    ordinary = instance.enqueue()

    assert instance.dequeued() == [ordinary]


def test_a_run_is_started_once_the_limit_of_its_pool_is_deleted(instance: Instance) -> None:
    storage = instance.dagster.event_log_storage
    storage.set_concurrency_slots(POOL, 0)
    run_id = instance.enqueue(pool=POOL)

    storage.delete_concurrency_limit(POOL)

    assert instance.dequeued() == [run_id]


def test_a_pool_without_a_limit_does_not_hold_a_run(instance: Instance) -> None:
    run_id = instance.enqueue(pool=POOL)

    assert instance.dequeued() == [run_id]


def test_a_limit_of_0_is_listed_until_it_is_deleted_which_may_be_repeated(
    instance: Instance,
) -> None:
    storage = instance.dagster.event_log_storage
    storage.set_concurrency_slots(POOL, 0)
    before = {limit.name: limit.limit for limit in storage.get_pool_limits()}

    storage.delete_concurrency_limit(POOL)
    storage.delete_concurrency_limit(POOL)

    assert before == {POOL: 0}
    assert storage.get_pool_limits() == []


@pytest.mark.parametrize("queue", [{"tag_concurrency_limits": [{"key": "team", "limit": 1}]}])
def test_a_pool_tells_who_has_its_slots_and_who_waits_for_one(instance: Instance) -> None:
    storage = instance.dagster.event_log_storage
    storage.set_concurrency_slots("warehouse", 1)
    for step in ("has it", "waits"):
        storage.claim_concurrency_slot("warehouse", "a run", step)

    found = storage.get_concurrency_info("warehouse")

    assert (found.slot_count, len(found.claimed_slots), len(found.pending_steps)) == (1, 1, 2)
    assert instance.dagster.get_concurrency_config().pool_config.default_pool_limit is None


def test_an_instance_keeps_one_value_for_each_name(instance: Instance) -> None:
    storage = instance.dagster.daemon_cursor_storage
    for value in ("first", "second"):
        storage.set_cursor_values({"dagster_claude_batch/a": value})

    names = {"dagster_claude_batch/a", "dagster_claude_batch/b"}
    assert storage.get_cursor_values(names) == {"dagster_claude_batch/a": "second"}


def test_a_run_that_waits_for_its_pool_takes_no_share_of_a_tag_limit_if_its_priority_is_lower(
    instance: Instance,
) -> None:
    instance.dagster.event_log_storage.set_concurrency_slots(POOL, 0)
    instance.enqueue(pool=POOL, tags={"team": "data", "dagster/priority": "-1000"})
    ordinary = instance.enqueue(tags={"team": "data"})

    assert instance.dequeued() == [ordinary]


@pytest.mark.parametrize("queue", [{"tag_concurrency_limits": [{"key": "team", "limit": 1}]}])
def test_without_a_lower_priority_it_would_take_that_share(instance: Instance) -> None:
    instance.dagster.event_log_storage.set_concurrency_slots(POOL, 0)
    instance.enqueue(pool=POOL, tags={"team": "data"})
    instance.enqueue(tags={"team": "data"})

    assert instance.dequeued() == []


# Where runs can be held


def test_a_run_can_be_held_where_runs_are_queued(instance: Instance) -> None:
    assert holding.why_not(instance.dagster, instance.maker) is None


@pytest.mark.parametrize(
    ("queue", "reason"),
    [
        pytest.param(
            {"block_op_concurrency_limited_runs": {"enabled": False}},
            "the run queue does not look at pools",
            id="pools are not looked at",
        ),
        pytest.param(
            {"block_op_concurrency_limited_runs": {"op_concurrency_slot_buffer": 1}},
            "the run queue has a buffer for pools",
            id="buffer",
        ),
    ],
)
def test_a_run_cannot_be_held_where_the_queue_would_start_it(
    instance: Instance, reason: str
) -> None:
    assert reason in str(holding.why_not(instance.dagster, instance.maker))


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (None, None),
        (POOL, None),
        ("gpu", "the pool 'gpu' counts whole runs (pools.granularity)"),
    ],
    ids=["no pool", "the pool of a wait", "a pool of the user's"],
)
def test_a_run_cannot_be_held_where_pools_count_whole_runs_and_it_has_one(
    tmp_path: Path, pool: str | None, reason: str | None
) -> None:
    job = REPOSITORY.get_implicit_global_asset_job_def()
    whole_runs = {**configured({}), "concurrency": {"pools": {"granularity": "run"}}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=whole_runs) as dagster:
        maker = dagster.create_run_for_job(job, remote_job_origin=ORIGIN.get_job_origin(job.name))
        instance = Instance(dagster, maker)

        run = instance.run(instance.create(pool=pool))

        assert holding.why_not(dagster, run) == reason


def test_a_run_cannot_be_held_where_nothing_is_queued(instance: Instance, tmp_path: Path) -> None:
    unqueued = tmp_path / "unqueued"
    unqueued.mkdir()
    with dg.instance_for_test(temp_dir=str(unqueued), synchronous_run_coordinator=True) as other:
        reason = holding.why_not(other, instance.maker)

    assert reason == "the instance's run coordinator does not queue runs"


def test_a_run_cannot_be_held_in_an_ephemeral_instance(instance: Instance) -> None:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        reason = holding.why_not(ephemeral, instance.maker)

    assert reason == "the Dagster instance is ephemeral"


# What the sensor reads and writes


def test_tags_can_be_added_to_a_queued_run_and_replace_those_of_the_same_name(
    instance: Instance,
) -> None:
    run_id = instance.enqueue(tags={"team": "data", "dagster/priority": "-1000"})

    instance.dagster.add_run_tags(run_id, {"dagster/priority": "3"})

    found = instance.run(run_id).tags
    assert (found["team"], found["dagster/priority"]) == ("data", "3")


def test_the_origin_of_a_run_names_the_code_location_as_dagster_does_where_it_tags_runs_with_it(
    instance: Instance,
) -> None:
    tag = dagster_internals.LOCATION_TAG

    assert dagster_internals.location_tags(instance.maker) == {tag: "here"}
    assert instance.maker.tags.get(tag, "here") == "here"


def test_one_run_after_the_other_tries_again_up_to_a_limit(instance: Instance) -> None:
    run, fruitless = instance.maker, list[int]()

    def make() -> str:
        return holding.make(
            instance.dagster,
            run,
            asset_graph=REPOSITORY.asset_graph,
            batch_assets=[dg.AssetKey("ratings")],
            claude_resource="claude_batch",
            has_failed=True,
        )

    for _ in range(holding.MOST_FRUITLESS):
        run = instance.run(make())
        fruitless.append(held_run.read(run).fruitless)

    assert fruitless == [1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="6 runs in a row have ended without having collected"):
        make()


def test_queued_runs_are_found_by_hidden_tags_newest_first(instance: Instance) -> None:
    ours = {held_run.HELD_TAG: "claude_batch", held_run.STATE_TAG: held_run.WAITING}
    older = instance.enqueue(tags=ours)
    newer = instance.enqueue(tags=ours)
    instance.enqueue(tags={held_run.HELD_TAG: "another"})
    instance.create(tags=ours)

    found = instance.dagster.get_runs(
        dg.RunsFilter(tags=ours, statuses=[dg.DagsterRunStatus.QUEUED])
    )

    assert [run.run_id for run in found] == [newer, older]


def test_a_queued_run_can_be_reported_as_cancelled_with_a_reason(instance: Instance) -> None:
    run_id = instance.enqueue()

    instance.dagster.report_run_canceled(instance.run(run_id), message="not wanted any more")

    assert instance.run(run_id).status == dg.DagsterRunStatus.CANCELED
    (said,) = instance.dagster.all_logs(run_id, of_type=dg.DagsterEventType.RUN_CANCELED)
    assert said.get_dagster_event().message == "not wanted any more"


def test_a_repository_knows_its_sensors_and_their_tags() -> None:
    repository = dg.Definitions(sensors=[claude_batch_sensor]).get_repository_def()

    assert [sensor.tags for sensor in repository.sensor_defs] == [
        {held_run.SENSOR_RESOURCE_TAG: "claude_batch"}
    ]


def test_a_sensor_is_told_its_code_location_and_its_repository(instance: Instance) -> None:
    @dg.sensor(name="asking", job_name="__ASSET_JOB")
    def asking(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        assert context.code_location_origin is not None
        assert context.repository_def is not None
        sensors = [sensor.name for sensor in context.repository_def.sensor_defs]
        return dg.SkipReason(f"{context.code_location_origin.location_name}: {sensors}")

    told = get_external_sensor_execution(
        dg.Definitions(assets=[reviews], sensors=[asking]).get_repository_def(),
        RegisteredCodeLocationOrigin("here"),
        instance.dagster.get_ref(),
        "asking",
        None,
        None,
        None,
        None,
        None,
    )

    assert getattr(told, "skip_message", told) == "here: ['asking']"


def test_a_created_run_has_a_record_of_when_that_was(instance: Instance) -> None:
    record = instance.dagster.get_run_record_by_id(instance.maker.run_id)

    assert record is not None
    assert record.create_timestamp.tzinfo is not None


def test_a_run_knows_its_code_location_and_by_it_whether_a_sensor_is_off(
    instance: Instance,
) -> None:
    assert instance.maker.remote_job_origin is not None
    repository = instance.maker.remote_job_origin.repository_origin
    stopped = repository.get_instigator_origin("stopped")
    untouched = repository.get_instigator_origin("untouched")
    instance.dagster.add_instigator_state(
        InstigatorState(stopped, InstigatorType.SENSOR, InstigatorStatus.STOPPED)
    )

    states = [
        instance.dagster.get_instigator_state(origin.get_id(), origin.get_selector().get_id())
        for origin in (stopped, untouched)
    ]

    assert [state and state.status.value for state in states] == ["STOPPED", None]
