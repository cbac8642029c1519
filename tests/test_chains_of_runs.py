"""What becomes of runs that end with something out, tick by tick, without a process.

The instance is a real one, with the run queue that held runs need; nothing runs in it.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import IO, Any

import dagster as dg
import duckdb
import pytest
from anthropic.types.messages import MessageBatch
from dagster._core.code_pointer import CustomPointer, ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._core.execution.api import execute_run
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord
from dagster._core.storage.tags import TAGS_TO_MAYBE_OMIT_ON_RETRY
from dagster_duckdb import DuckDBResource
from dagster_shared.record import copy
from queue_kit import ORIGIN, RESOURCE, queueing_instance, run_of, scene_of

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    claude_batch_sensor,
    held_run,
    holding,
    reserve,
)
from dagster_claude_batch.ours import Ours
from dagster_claude_batch.sensor.cursor import Cursor
from dagster_claude_batch.sensor.looking import Look
from dagster_claude_batch.sensor.reasons import why_go
from dagster_claude_batch.sensor.tick import tick
from dagster_claude_batch.simulator import Simulator
from dagster_claude_batch.workbench import Waiting

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CITIES = dg.DynamicPartitionsDefinition(name="cities")
RATINGS, RATED_CITIES = dg.AssetKey("ratings"), dg.AssetKey("rated_cities")
MOODS = dg.AssetKey("moods")
RATING: dict[str, Any] = {
    "source": "reviews",
    "row_key": "id",
    "prompt": "Rate {{ text }}",
    "model": "claude-haiku-4-5",
}
RANGE = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
FAILURE = dg.DagsterRunStatus.FAILURE


WHILE_LOOKING: list[Callable[[], object]] = []
"""What happens while a run looks at its batches."""


WHILE_SENDING: list[Callable[[], object]] = []
"""What happens while a run sends a batch."""


class WatchedClaude(LocalClaudeBatchResource):
    """The simulator, with something happening meanwhile."""

    def look(self, batch_ids: Sequence[str]) -> dict[str, MessageBatch]:
        for happens in WHILE_LOOKING:
            happens()
        return super().look(batch_ids)

    def create_from_body(self, file: IO[bytes], size: int) -> MessageBatch:
        for happens in WHILE_SENDING:
            happens()
        return super().create_from_body(file, size)


def location(directory: str) -> dg.Definitions:
    """A code location with its warehouse and its simulator in a directory."""
    by_city = {"partitions_def": CITIES, "partition_expr": "city"}
    assets = [
        build_claude_batch_asset("ratings", **RATING),
        build_claude_batch_asset("moods", **RATING),
        build_claude_batch_asset("rated_cities", **RATING, **by_city),
    ]
    resources = {
        "duckdb": DuckDBResource(database=str(Path(directory) / "warehouse.duckdb")),
        "claude_batch": WatchedClaude(path=str(Path(directory) / "simulator")),
    }
    sensors = [claude_batch_sensor]
    return dg.Definitions(
        assets=[*assets, *ALONGSIDE],
        sensors=sensors,
        resources=resources,
        executor=dg.in_process_executor,
    )


@dg.asset
def weather() -> None: ...


@dg.asset(deps=[weather, RATINGS])
def sunny_ratings() -> None: ...


@dg.asset(deps=[sunny_ratings])
def sunny_report() -> None: ...


@dg.asset(deps=[RATINGS])
def report() -> None: ...


ALONGSIDE = [weather, sunny_ratings, sunny_report, report]

REPOSITORY = location("nowhere").get_repository_def()


@dataclass
class Instance:
    """A Dagster instance with the sensor's ticks, but without a daemon."""

    dagster: dg.DagsterInstance
    directory: Path
    cursor: Cursor = field(default_factory=lambda: Cursor(landed_at=time.time()))
    landings: int = 0

    def run(self, run_id: str) -> dg.DagsterRun:
        return run_of(self.dagster, run_id)

    def launch(
        self, *keys: dg.AssetKey, tags: Mapping[str, str] | None = None, **config: Any
    ) -> dg.DagsterRun:
        """A run of these assets, as a person launches it; ``config`` is the op's."""
        job = REPOSITORY.get_implicit_global_asset_job_def().get_subset(asset_selection=set(keys))
        run = self.dagster.create_run_for_job(
            job,
            run_config={"ops": {key.path[-1]: {"config": config} for key in keys}}
            if config
            else {},
            remote_job_origin=ORIGIN.get_job_origin(job.name),
            asset_selection=frozenset(keys),
        )
        self.dagster.add_run_tags(run.run_id, {**(tags or {})})
        return self.run(run.run_id)

    def hold(self, maker: dg.DagsterRun, *keys: dg.AssetKey, **made: Any) -> dg.DagsterRun:
        """The run that a run leaves in the queue."""
        held_id = holding.make(
            self.dagster,
            maker,
            asset_graph=REPOSITORY.asset_graph,
            batch_assets=keys,
            claude_resource=RESOURCE,
            **made,
        )
        return self.run(held_id)

    def materialize(self, run: dg.DagsterRun, key: dg.AssetKey) -> None:
        """Write that a run has materialized an asset."""
        event = DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name=run.job_name,
            step_key=key.to_python_identifier(),
            event_specific_data=StepMaterializationData(dg.AssetMaterialization(key)),
        )
        self.dagster.report_dagster_event(event, run_id=run.run_id)

    @property
    def simulator(self) -> Simulator:
        return Simulator(self.directory / "simulator")

    def rows(self, *texts: str) -> None:
        """Make the table that is asked about."""
        with duckdb.connect(self.directory / "warehouse.duckdb") as connection:
            connection.execute("CREATE OR REPLACE TABLE reviews (id INTEGER, text VARCHAR)")
            for number, text in enumerate(texts):
                connection.execute("INSERT INTO reviews VALUES (?, ?)", [number, text])

    def execute(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """Let a run work, in this process."""
        here = ModuleCodePointer(__name__, location.__name__, None)
        code = ReconstructableRepository(CustomPointer(here, [str(self.directory)], []))
        job = ReconstructableJob(code, run.job_name, asset_selection=run.asset_selection)
        if run.status == dg.DagsterRunStatus.QUEUED:
            self.begin(run)
        execute_run(job, self.run(run.run_id), self.dagster)
        return self.run(run.run_id)

    def begin(self, run: dg.DagsterRun) -> None:
        """Let a run leave the queue."""
        starting = dg.DagsterEventType.RUN_STARTING.value
        event = DagsterEvent(event_type_value=starting, job_name=run.job_name)
        self.dagster.report_dagster_event(event, run_id=run.run_id)

    def check_execution(self, key: dg.AssetCheckKey) -> AssetCheckExecutionRecord:
        """What Dagster shows of a check: its newest execution."""
        storage = self.dagster.event_log_storage
        return storage.get_latest_asset_check_execution_by_key([key])[key]

    def said_by(self, run: dg.DagsterRun) -> str:
        return "\n".join(entry.user_message for entry in self.dagster.all_logs(run.run_id))

    def let_go(self, run: dg.DagsterRun) -> None:
        held_run.release(self.dagster, run, "results ready")

    def fail(self, run: dg.DagsterRun) -> dg.DagsterRun:
        self.dagster.report_run_failed(run)
        return self.run(run.run_id)

    def let_go_when_ended(self) -> list[dg.DagsterRun]:
        """End all batches, and let the sensor look at once; the runs that it lets go."""
        self.simulator.end_batches()
        self.cursor.last_look = 0
        self.tick()
        released = [held_run.read(run).state == held_run.RELEASED for run in self.queued()]
        return [
            run for run, is_released in zip(self.queued(), released, strict=True) if is_released
        ]

    def relaunch(self, run: dg.DagsterRun, **told: str) -> dg.DagsterRun:
        """A copy of a run, as Dagster launches one that a person re-executes."""
        root = run.tags.get("dagster/root_run_id", run.run_id)
        kept = {k: v for k, v in run.tags.items() if k not in TAGS_TO_MAYBE_OMIT_ON_RETRY}
        parent = {"dagster/parent_run_id": run.run_id, "dagster/root_run_id": root}
        again = copy(
            run,
            run_id=str(uuid.uuid4()),
            status=dg.DagsterRunStatus.QUEUED,
            tags={**kept, **parent, **told},
        )
        self.dagster.add_run(again)
        return again

    def run_like(self, run: dg.DagsterRun, tags: Mapping[str, str]) -> dg.DagsterRun:
        """The same run with other tags."""
        return copy(run, tags=dict(tags))

    def retry(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """Another try of a run, as Dagster's daemon launches it."""
        return self.relaunch(run, **{"dagster/retry_number": "1"})

    def tick(self) -> str:
        """Let the sensor tick; what it says."""
        claude = LocalClaudeBatchResource(path=str(self.directory / "simulator"))
        scene = scene_of(
            self.dagster,
            claude,
            cursor=self.cursor,
            grace=timedelta(minutes=10),
            repository=REPOSITORY,
        )
        result = tick(scene)
        self.landings += len(result.run_requests or ())
        self.cursor = Cursor.load(result.cursor)
        return str(result.skip_reason and result.skip_reason.skip_message)

    def queued(self) -> list[dg.DagsterRun]:
        return list(self.dagster.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with queueing_instance(tmp_path / "dagster") as dagster:
        yield Instance(dagster, tmp_path)
    WHILE_LOOKING.clear()
    WHILE_SENDING.clear()


def test_a_run_is_held_although_a_key_of_its_range_was_deleted(instance: Instance) -> None:
    instance.dagster.add_dynamic_partitions("cities", ["a", "b", "c"])
    maker = instance.launch(RATED_CITIES, tags=RANGE)
    instance.dagster.delete_dynamic_partition("cities", "c")

    held = instance.hold(maker, RATED_CITIES)

    assert held.status == dg.DagsterRunStatus.QUEUED
    assert RANGE.items() <= held.tags.items()


def _fail_for(monkeypatch: pytest.MonkeyPatch, instance: Instance, call: str, run_id: str) -> None:
    """Let a call to Dagster's storage fail that is about one run."""
    original = getattr(instance.dagster, call)

    @wraps(original)
    def failing(*args: Any, **kwargs: Any) -> Any:
        if run_id in (*args, *kwargs.values()):
            raise ValueError("the disk is broken")
        return original(*args, **kwargs)

    monkeypatch.setattr(instance.dagster, call, failing)


def test_a_run_that_cannot_be_brought_back_is_left_to_the_landing_job_and_keeps_nobody_else_waiting(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, broken = (
        instance.hold(instance.launch(RATINGS, tags={"n": str(n)}), RATINGS) for n in range(2)
    )
    for run in (other, broken):
        instance.let_go(run)
        instance.fail(run)
    _fail_for(monkeypatch, instance, "create_run", holding.held_run_id(broken.run_id))

    said = instance.tick()

    assert f"Run {broken.run_id[:8]} was not brought back (ValueError: " in said
    assert instance.run(holding.held_run_id(other.run_id)).status == dg.DagsterRunStatus.QUEUED
    assert list(instance.cursor.ended) == [broken.run_id]


def test_a_run_that_cannot_be_let_go_does_not_hold_up_the_others(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, broken = (
        instance.hold(instance.fail(instance.launch(RATINGS)), RATINGS) for _ in range(2)
    )
    _fail_for(monkeypatch, instance, "add_run_tags", broken.run_id)

    said = instance.tick()

    assert f"Run {broken.run_id[:8]} was not let go" in said
    assert held_run.read(instance.run(held.run_id)).state == held_run.RELEASED
    assert set(instance.cursor.held) == {held.run_id, broken.run_id}


def test_a_run_that_dagster_retries_leaves_one_run_and_not_one_for_each_try(
    instance: Instance,
) -> None:
    run, chain = instance.launch(RATINGS), list[dg.DagsterRun]()
    for _ in range(4):
        first = instance.hold(instance.fail(run), RATINGS, has_failed=True)
        retried = instance.retry(instance.run(run.run_id))
        second = instance.hold(instance.fail(retried), RATINGS, has_failed=True)
        again = instance.retry(retried)
        third = instance.hold(instance.fail(again), RATINGS, has_failed=True)

        assert first.run_id == second.run_id == third.run_id
        chain.append(third)
        run = first

    assert [held_run.read(each).fruitless for each in chain] == [1, 2, 3, 4]
    assert len(instance.queued()) == 1


def test_a_retry_goes_on_with_what_the_run_that_its_first_try_left_has_left_in_turn(
    instance: Instance,
) -> None:
    first = instance.launch(RATINGS)
    left = instance.hold(first, RATINGS)
    instance.fail(first)
    retried = instance.retry(first)
    instance.let_go(left)
    left_in_turn = instance.hold(instance.fail(left), RATINGS, has_failed=True)

    held = instance.hold(retried, RATINGS)

    assert held.run_id == left_in_turn.run_id
    assert held_run.read(held).maker_run_id == retried.run_id


def test_a_retry_leaves_alone_what_its_first_try_left_once_that_is_at_work(
    instance: Instance,
) -> None:
    first = instance.launch(RATINGS)
    left = instance.hold(first, RATINGS)
    retried = instance.retry(instance.fail(first))
    instance.let_go(left)

    held = instance.hold(retried, RATINGS)
    holding.undo(instance.dagster, held.run_id)

    assert held.run_id == left.run_id
    assert held_run.read(instance.run(left.run_id)).maker_run_id == first.run_id


def test_a_retry_does_not_go_on_with_what_somebody_cancelled(instance: Instance) -> None:
    first = instance.launch(RATINGS)
    left = instance.hold(first, RATINGS)
    retried = instance.retry(instance.fail(first))
    instance.dagster.report_run_canceled(left)

    assert instance.hold(retried, RATINGS).status == dg.DagsterRunStatus.CANCELED


def test_the_landing_of_one_code_location_ends_nobody_elses_search_for_second_copies(
    instance: Instance,
) -> None:
    here, there = Ours("claude_batch", "here"), Ours("claude_batch", "there")
    searching = [instance.launch(RATINGS, tags={"n": str(n)}) for n in range(2)]
    for ours, run in zip((here, there), searching, strict=True):
        instance.dagster.add_run_tags(run.run_id, ours.tags(held_run.GAVE_UP_TAG))

    here.stop_watching(instance.dagster)

    assert here.watchers(instance.dagster) == []
    assert [run.run_id for run in there.watchers(instance.dagster)] == [searching[1].run_id]


def _keys(*assets: dg.AssetsDefinition) -> set[dg.AssetKey]:
    return {asset.key for asset in assets}


def test_what_depends_on_an_asset_that_failed_beside_the_batch_asset_is_left_out(
    instance: Instance,
) -> None:
    maker = instance.launch(RATINGS, *_keys(*ALONGSIDE))
    held = instance.hold(maker, RATINGS)
    instance.dagster.add_run_tags(held.run_id, {held_run.attached_tag(RATINGS): maker.run_id})
    instance.tick()
    instance.fail(maker)

    said = [instance.tick(), instance.tick()]
    (narrowed,) = instance.queued()

    assert held.asset_selection == {RATINGS, *_keys(sunny_ratings, sunny_report, report)}
    assert narrowed.asset_selection == {RATINGS, report.key}
    assert held_run.read(narrowed).state == held_run.RELEASED
    assert "Let 1 run go." in said[0]
    assert narrowed.tags[held_run.LONG_TAG].endswith(
        f"Not materialized: sunny_ratings, sunny_report, for in run {maker.run_id[:8]} "
        "was not: weather."
    )
    assert instance.cursor.ended == {}
    assert instance.dagster.event_log_storage.get_pool_limits() == []


def test_what_depends_on_an_asset_that_was_materialized_beside_the_batch_asset_follows_it(
    instance: Instance,
) -> None:
    maker = instance.launch(RATINGS, *_keys(*ALONGSIDE))
    held = instance.hold(maker, RATINGS)
    instance.materialize(maker, weather.key)
    instance.dagster.report_run_failed(maker)

    instance.tick()

    assert [run.run_id for run in instance.queued()] == [held.run_id]
    assert instance.run(held.run_id).asset_selection == held.asset_selection


def test_a_tick_that_dies_while_it_leaves_something_out_is_gone_on_with(
    instance: Instance,
) -> None:
    maker = instance.launch(RATINGS, *_keys(*ALONGSIDE))
    held = instance.hold(maker, RATINGS)
    instance.dagster.add_run_tags(held.run_id, {held_run.attached_tag(RATINGS): maker.run_id})
    instance.fail(maker)
    again = instance.run(held.run_id)
    selection = frozenset({RATINGS, report.key})
    narrowed = holding.narrow(instance.dagster, again, selection, REPOSITORY.asset_graph)
    instance.dagster.add_run(again)  # as if it had not been deleted any more

    instance.tick()

    assert [run.run_id for run in instance.queued()] == [narrowed.run_id]
    assert held_run.read(instance.run(narrowed.run_id)).state == held_run.RELEASED


def _ended(*batch_ids: str) -> Look:
    return Look(frozenset(batch_ids))


@pytest.mark.parametrize(
    ("waits", "look", "said"),
    [
        ((), Look(), "goes on"),
        ((Waiting(("a", "b")),), _ended("a", "b"), "results ready"),
        ((Waiting(("a", "b"), unsent=1),), _ended("a"), "some results ready"),
        ((Waiting(unsent=1, needs=1),), Look(), "room to send"),
        ((Waiting(("a",), not_before=NOW),), Look(), "its time has come"),
        ((Waiting(("a",)),), Look(frozenset("a"), unseen=frozenset("a")), "looks for batches"),
    ],
)
def test_a_run_that_is_let_go_says_why(waits: tuple[Waiting, ...], look: Look, said: str) -> None:
    held = held_run.HeldRun("", "", "", "waiting", dg.DagsterRunStatus.QUEUED, waits)

    assert why_go(held, look, NOW)[0] == said
    assert len(said) <= 22


BACKFILL = {"dagster/backfill": "somebackfill"}


def test_a_run_leaves_another_one_that_collects(instance: Instance) -> None:
    instance.rows("good", "bad")
    maker = instance.execute(instance.launch(RATINGS))

    (held,) = instance.let_go_when_ended()
    collected = instance.execute(held)

    assert maker.status == collected.status == dg.DagsterRunStatus.SUCCESS
    assert instance.queued() == []
    assert collected.tags[held_run.FRUITFUL_TAG] == collected.run_id


@pytest.mark.parametrize(
    ("tags", "in_reserve"), [(BACKFILL, 1), ({}, 0)], ids=["in a backfill", "by itself"]
)
def test_a_run_in_reserve_keeps_a_backfill_open_while_one_collects_and_goes_when_that_is_done(
    instance: Instance, tags: Mapping[str, str], in_reserve: int
) -> None:
    instance.rows("good")
    instance.execute(instance.launch(RATINGS, tags=tags))
    (held,) = instance.let_go_when_ended()
    seen: list[list[dg.DagsterRun]] = []
    WHILE_LOOKING.append(lambda: (instance.tick(), seen.append(instance.queued())))

    collected = instance.execute(held)
    instance.tick()

    assert collected.status == dg.DagsterRunStatus.SUCCESS
    assert [len(runs) for runs in seen] == [in_reserve]
    for run in seen[0]:
        assert run.tags.items() >= BACKFILL.items()
        assert held_run.read(run).maker_run_id == held.run_id
        assert held_run.read(run).state == held_run.IN_RESERVE
    assert instance.queued() == []
    assert instance.cursor.ended == {}


def test_a_run_in_reserve_leaves_no_check_behind_that_it_intended_to_execute(
    instance: Instance,
) -> None:
    instance.rows("good")
    instance.execute(instance.launch(RATINGS, tags=BACKFILL))
    (held,) = instance.let_go_when_ended()

    instance.execute(held)

    for check in ("every_row_answered", "failure_rate"):
        newest = instance.check_execution(dg.AssetCheckKey(RATINGS, check))
        assert (newest.run_id, newest.status.value) == (held.run_id, "SUCCEEDED")


@pytest.mark.parametrize("keys", [(RATINGS,), (RATINGS, MOODS)], ids=["one", "two"])
def test_the_run_in_reserve_stays_until_one_that_was_killed_is_brought_back(
    instance: Instance, keys: Sequence[dg.AssetKey]
) -> None:
    held = _at_work_with_a_reserve(instance, *keys)
    instance.tick()
    (in_reserve,) = instance.queued()

    instance.fail(held)
    instance.tick()

    (again,) = instance.queued()
    assert (in_reserve.run_id, again.run_id) == (
        reserve.reserve_id(held.run_id),
        holding.held_run_id(held.run_id),
    )
    assert held_run.read(again).fruitless == 1
    assert instance.execute(again).status == dg.DagsterRunStatus.SUCCESS
    instance.tick()
    assert instance.queued() == []


def test_a_run_in_reserve_stays_where_the_run_could_not_be_brought_back_yet(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = instance.fail(_at_work_with_a_reserve(instance, RATINGS))
    _fail_for(monkeypatch, instance, "create_run", holding.held_run_id(held.run_id))

    instance.tick()

    assert [run.run_id for run in instance.queued()] == [reserve.reserve_id(held.run_id)]


@pytest.mark.parametrize(
    "tags",
    [
        {"dagster/will_retry": "true", "dagster/auto_retry_run_id": "another"},
        {held_run.FRUITLESS_TAG: str(holding.MOST_FRUITLESS)},
        {held_run.STATE_TAG: held_run.SETTLED},
    ],
    ids=["retried by Dagster", "one failure too many", "settled"],
)
def test_a_run_in_reserve_goes_when_nobody_is_going_to_bring_its_run_back(
    instance: Instance, tags: Mapping[str, str]
) -> None:
    held = instance.fail(_at_work_with_a_reserve(instance, RATINGS))
    # With what it waited for, it would not be one that came to nothing.
    waits = [tag for tag in held.tags if tag.startswith(f"{held_run.OURS}wait.")]
    without = {tag: value for tag, value in held.tags.items() if tag not in waits}
    instance.dagster.delete_run(held.run_id)
    instance.dagster.add_run(instance.run_like(held, {**without, **tags}))

    instance.tick()

    assert instance.queued() == []


def _at_work_with_a_reserve(instance: Instance, *keys: dg.AssetKey) -> dg.DagsterRun:
    """A collecting run of a backfill."""
    instance.rows("good")
    instance.execute(instance.launch(*keys, tags=BACKFILL))
    (held,) = instance.let_go_when_ended()
    instance.begin(held)
    reserve.make(
        instance.dagster,
        held,
        RATINGS,
        asset_graph=REPOSITORY.asset_graph,
        claude_resource=RESOURCE,
    )
    return held


def test_a_run_in_reserve_that_somebody_cancels_goes_with_the_others_and_may_be_launched_again(
    instance: Instance,
) -> None:
    instance.rows("good")
    instance.execute(instance.launch(RATINGS, tags=BACKFILL))
    (held,) = instance.let_go_when_ended()
    copies: list[dg.DagsterRun] = []

    def cancel() -> None:
        for run in instance.queued():
            instance.dagster.report_run_canceled(run)
            copies.append(instance.relaunch(run))

    WHILE_LOOKING.append(cancel)

    instance.execute(held)
    instance.tick()

    assert not instance.dagster.has_run(reserve.reserve_id(held.run_id))
    (copy_,) = copies
    assert held_run.read(instance.run(copy_.run_id)).state == held_run.SETTLED


def test_a_collecting_run_of_a_backfill_that_fails_leaves_a_run_that_tries_again_and_no_other(
    instance: Instance,
) -> None:
    instance.rows("good")
    instance.execute(instance.launch(RATINGS, tags=BACKFILL))
    (held,) = instance.let_go_when_ended()
    seen: list[str] = []

    def fail() -> None:
        seen.extend(run.run_id for run in instance.queued())
        raise RuntimeError("no luck")

    WHILE_LOOKING.append(fail)

    failed = instance.execute(held)
    WHILE_LOOKING.clear()
    (again,) = instance.queued()

    assert failed.status == FAILURE
    assert seen == [reserve.reserve_id(held.run_id)]
    assert again.run_id == holding.held_run_id(held.run_id)
    assert again.tags[held_run.SHORT_TAG].startswith("again at ")
    assert held_run.read(again).fruitless == 1
    assert instance.execute(again).status == dg.DagsterRunStatus.SUCCESS
    assert instance.queued() == []


@pytest.mark.parametrize(
    ("since", "ends"),
    [((), dg.DagsterRunStatus.SUCCESS), (("good", "new"), FAILURE)],
    ids=["all is there", "a row has come since"],
)
def test_a_retry_of_a_run_for_which_another_has_collected_sends_nothing_and_ends_truly(
    instance: Instance, since: Sequence[str], ends: dg.DagsterRunStatus
) -> None:
    instance.rows("good")
    instance.execute(instance.launch(RATINGS))
    (held,) = instance.let_go_when_ended()
    WHILE_LOOKING.append(lambda: 1 / 0)
    failed = instance.execute(held)
    WHILE_LOOKING.clear()
    (again,) = instance.queued()
    instance.execute(again)
    if since:
        instance.rows(*since)

    retried = instance.execute(instance.retry(failed))

    assert (failed.status, retried.status) == (FAILURE, ends)
    assert instance.queued() == []
    assert len(instance.simulator.batches()) == 1


@pytest.mark.parametrize(
    ("config", "happens"),
    [
        ({"refresh": True}, "somebody cancels the run that it leaves"),
        ({"limit": 1}, "it was a trial"),
    ],
    ids=["cancelled", "limited"],
)
def test_a_retry_of_a_run_that_asked_only_a_part_does_not_materialize(
    instance: Instance, config: Mapping[str, Any], happens: str
) -> None:
    instance.rows("good")
    instance.execute(instance.launch(RATINGS))
    (held,) = instance.let_go_when_ended()
    instance.execute(held)
    if "cancels" in happens:
        WHILE_SENDING.append(
            lambda: [instance.dagster.report_run_canceled(run) for run in instance.queued()]
        )
    first = instance.execute(instance.launch(RATINGS, **config))
    WHILE_SENDING.clear()

    retried = instance.execute(instance.retry(first))

    assert retried.status == FAILURE
    (newest,) = instance.dagster.fetch_materializations(RATINGS, limit=1).records
    assert newest.run_id == held.run_id


def test_a_run_that_collected_something_is_no_run_that_came_to_nothing(instance: Instance) -> None:
    fruitless = instance.fail(instance.launch(RATINGS))
    for _ in range(3):
        fruitless = instance.fail(instance.hold(fruitless, RATINGS, has_failed=True))
    tags = {held_run.FRUITFUL_TAG: fruitless.run_id}
    instance.dagster.add_run_tags(fruitless.run_id, tags)

    after = instance.hold(fruitless, RATINGS, has_failed=True)

    assert held_run.read(after).fruitless == 1


def test_a_run_whose_successor_somebody_cancels_meanwhile_cancels_what_it_has_sent(
    instance: Instance,
) -> None:
    instance.rows("good")
    launched = instance.launch(RATINGS)

    def cancel() -> None:
        for run in instance.queued():
            instance.dagster.report_run_canceled(run)

    WHILE_SENDING.append(cancel)

    cancelled = instance.execute(launched)

    (batch,) = instance.simulator.batches()
    assert cancelled.status == FAILURE
    assert "nobody else waits for, is cancelled." in instance.said_by(cancelled)
    assert batch.processing_status == "canceling"
    assert instance.queued() == []
    instance.tick()
    assert cancelled.run_id in instance.cursor.ended


def test_a_held_run_that_a_person_launches_again_does_not_wait_and_is_not_cancelled(
    instance: Instance,
) -> None:
    maker = instance.launch(RATINGS, tags={"dagster/priority": "3"})
    held = instance.hold(maker, RATINGS)
    for run in (held, maker):
        instance.dagster.report_run_canceled(run)
    again = instance.relaunch(held)

    was_alive = held_run.is_alive(instance.dagster, again.run_id)
    instance.tick()

    (found,) = instance.queued()
    assert was_alive
    assert found.run_id == again.run_id
    assert found.tags["dagster/priority"] == "3"
    assert held_run.read(found).state == held_run.SETTLED
    assert instance.cursor.held == []
    assert held_run.read(instance.hold(found, RATINGS)).fruitless == 0


def test_a_landing_run_is_asked_for_once_a_day_where_anything_was_held(instance: Instance) -> None:
    instance.cursor = Cursor()
    instance.tick()
    assert instance.landings == 0  # nothing was
    instance.rows("good")
    instance.execute(instance.launch(RATINGS))
    (held,) = instance.queued()
    instance.dagster.delete_run(held.run_id)

    instance.cursor = Cursor()  # somebody has reset it
    instance.tick()
    instance.tick()
    assert instance.landings == 1

    assert instance.cursor.landed_at is not None
    instance.cursor.landed_at -= timedelta(days=1).total_seconds()
    instance.cursor.landing = instance.cursor.land_at = None
    instance.tick()
    assert instance.landings == 2


def test_a_sensor_says_that_runs_of_its_location_wait_for_a_sensor_that_is_gone(
    instance: Instance,
) -> None:
    held = instance.hold(instance.launch(RATINGS), RATINGS)
    instance.dagster.add_run_tags(held.run_id, {held_run.HELD_TAG: "claude"})
    instance.tick()
    instance.cursor.pools = dict.fromkeys(instance.cursor.pools, 0.0)

    said = instance.tick()

    assert (
        "1 run waits for a sensor for the Claude resource 'claude', which this code location has "
        "no more" in said
    )
    assert len(instance.dagster.event_log_storage.get_pool_limits()) == 1
