"""The jobs that a person starts: what each does, twice too, and to which assets."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest
from dagster._core.code_pointer import CustomPointer, ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from kit import Project, Wire, WiredClaude, project_of_location
from queue_kit import add_run, hold, let_go

from dagster_claude_batch import build_claude_batch_jobs
from dagster_claude_batch.workbench import Waiting

NAMES = ("anger", "joy")
CANCEL = "POST /v1/messages/batches/…/cancel"
DELETE = "DELETE /v1/messages/batches/…"
CORPORA = ("tweets", "reviews")


WIRES: dict[str, Wire] = {}
"""What leads to a simulator, by its directory, where a test wants to cut it."""


class ClaudeOfJobs(WiredClaude):
    """Dagster makes one for each asset that a job works on: they share a wire."""

    @cached_property
    def wire(self) -> Wire:
        return WIRES.get(self.path) or super().wire


def location(directory: str) -> dg.Definitions:
    """A code location with two assets, each with a database of its own, and one of another kind."""
    projects = {name: project_of_location(Path(directory), name) for name in NAMES}
    return dg.Definitions(
        assets=[*(each.assets_def for each in projects.values()), dg.AssetSpec("calm")],
        jobs=build_claude_batch_jobs(),
        resources={
            **{f"duckdb_{name}": each.duckdb for name, each in projects.items()},
            "claude_batch": ClaudeOfJobs(path=str(Path(directory) / "simulator")),
        },
    )


def renamed(directory: str) -> dg.Definitions:
    """The same, as it is loaded with a prefix of the keys: a part of it has a slash in it."""
    defs = location(directory)
    assets = [
        each.with_attributes(asset_key_replacements={each.key: key_of(each.key.path[-1])})
        for each in defs.assets or ()
        if isinstance(each, dg.AssetsDefinition)
    ]
    return dg.Definitions(assets=assets, jobs=defs.jobs, resources=defs.resources)


def key_of(name: str) -> dg.AssetKey:
    return dg.AssetKey(["moods/2026", name])


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as found:
        yield found


@pytest.fixture
def projects(tmp_path: Path) -> dict[str, Project]:
    made = {name: project_of_location(tmp_path, name) for name in NAMES}
    for project in made.values():
        project.load((corpus, f"{corpus[0]}{n}", "x") for corpus in CORPORA for n in range(2))
    return made


@pytest.fixture
def wire(projects: dict[str, Project]) -> Iterator[Wire]:
    """The wire of the jobs, on which calls can be lost."""
    joy = projects["joy"]
    WIRES[joy.claude.path] = joy.wire
    yield joy.wire
    WIRES.clear()


def cancelled_batches(project: Project) -> int:
    batches = project.claude.simulator.batches()
    return sum(batch.cancel_initiated_at is not None for batch in batches)


def start(
    directory: Path,
    instance: dg.DagsterInstance,
    job: str,
    *,
    of: Callable[[str], dg.Definitions] = location,
    **config: Any,
) -> tuple[bool, int | None, str]:
    """Run a job: its success, what it counted, and its log."""
    here = ModuleCodePointer(__name__, of.__name__, None)
    repository = ReconstructableRepository(CustomPointer(here, [str(directory)], []))
    with dg.execute_job(
        ReconstructableJob(repository, f"claude_batch_{job}"),
        instance=instance,
        run_config={"ops": {f"claude_batch_{job}_op": {"config": config}}} if config else None,
    ) as result:
        entries = instance.all_logs(result.run_id)
        logged = "\n".join(f"{entry.user_message}\n{entry}" for entry in entries)
        outputs = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_OUTPUT)
        counts: list[Any] = [
            event.dagster_event.step_output_data.metadata["count"].value
            for event in outputs
            if event.dagster_event is not None
        ]
        return result.success, counts[0] if counts else None, logged


def test_cancelling_twice_cancels_once_and_only_what_was_named(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    joy = projects["joy"]
    projects["anger"].start("tweets")
    run = joy.start("tweets")
    joy.start("reviews")

    assert start(tmp_path, instance, "cancel", assets=["joy"], partitions=["tweets"])[:2] == (
        True,
        1,
    )
    assert start(tmp_path, instance, "cancel", assets=["joy"], partitions=["tweets"])[:2] == (
        True,
        0,
    )

    states = "SELECT partitions[1], state FROM claude_batch.materializations ORDER BY ALL"
    assert joy.sql(states) == [("reviews", "open"), ("tweets", "cancelled")]
    assert projects["anger"].sql(states) == [("tweets", "open")]
    cancelled = [batch.cancel_initiated_at for batch in joy.claude.simulator.batches()]
    assert sum(moment is not None for moment in cancelled) == 1
    assert run.engine.is_cancelled(run.materializations)


def test_what_could_not_be_asked_to_end_is_an_error_and_asked_again_by_a_second_press(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project], wire: Wire
) -> None:
    joy = projects["joy"]
    joy.start("tweets")
    joy.start("reviews")
    wire.lose_call(CANCEL, httpx2.ConnectError)

    success, _, logged = start(tmp_path, instance, "cancel", assets=["joy"])

    assert not success
    assert "1 batch of asset 'joy' could not be asked to end" in logged
    assert joy.sql("SELECT DISTINCT state FROM claude_batch.materializations") == [("cancelled",)]
    assert cancelled_batches(joy) == 1

    assert start(tmp_path, instance, "cancel", assets=["joy"])[:2] == (True, 0)
    assert cancelled_batches(joy) == 2


def test_a_batch_that_has_ended_or_is_about_to_need_not_be_asked(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project], wire: Wire
) -> None:
    joy = projects["joy"]
    joy.start("tweets")
    wire.lose_answer(CANCEL)

    assert start(tmp_path, instance, "cancel", assets=["joy"])[:2] == (True, 1)

    joy.end_batches()
    assert start(tmp_path, instance, "cancel", assets=["joy"])[:2] == (True, 0)


def test_a_refused_key_keeps_nothing_open(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project], wire: Wire
) -> None:
    joy = projects["joy"]
    refused = {"type": "error", "error": {"type": "authentication_error", "message": "bad key"}}
    for corpus in CORPORA:
        joy.start(corpus)
        wire.answer(CANCEL, 401, refused)

    success, _, logged = start(tmp_path, instance, "cancel", assets=["joy"])

    assert not success
    assert re.search(r"2 batches of asset 'joy' .*bad key.*Start the job again", logged)
    assert joy.sql("SELECT DISTINCT state FROM claude_batch.materializations") == [("cancelled",)]


@pytest.mark.parametrize("name", ["moods/2026/joy", "joy"])
def test_a_renamed_asset_is_known_by_the_key_that_dagster_shows_and_by_its_own(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project], name: str
) -> None:
    for project in projects.values():
        project.start("tweets")

    success, count, logged = start(tmp_path, instance, "cancel", of=renamed, assets=[name])

    assert (success, count) == (True, 1)
    assert "moods/2026/joy: 1 materialization was cancelled." in logged
    assert projects["joy"].sql("SELECT asset, state FROM claude_batch.materializations") == [
        ("joy", "cancelled")
    ]
    assert cancelled_batches(projects["joy"]) == 1


def test_collecting_lets_the_runs_of_a_renamed_asset_look(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    run = projects["joy"].start("tweets")
    assert run.waiting is not None
    held = [hold(instance, Waiting(run.waiting.batch_ids), key=key_of(name)) for name in NAMES[1:]]
    hold(instance, Waiting(run.waiting.batch_ids), key=dg.AssetKey("joy"))  # another location's

    success, count, logged = start(tmp_path, instance, "collect", of=renamed)

    assert (success, count) == (True, 1)
    assert "moods/2026/joy: 1 run looks at its batches." in logged
    assert let_go(instance) == held


def test_a_partition_that_was_never_asked_for_is_refused_and_what_is_open_named(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    for project, corpus in zip(projects.values(), CORPORA, strict=True):
        project.start(corpus)

    success, _, logged = start(
        tmp_path, instance, "cancel", assets=[*NAMES], partitions=["tweets", "tweeets"]
    )

    assert not success
    assert "did nothing" in logged
    assert re.search(r"partitions 'tweeets'\. Open are: 'tweets', 'reviews'", logged)
    assert projects["anger"].sql("SELECT state FROM claude_batch.materializations") == [("open",)]

    asked = {"assets": [*NAMES], "partitions": ["tweets"]}  # of one of the two
    assert start(tmp_path, instance, "cancel", **asked)[:2] == (True, 1)
    assert start(tmp_path, instance, "cancel", **asked)[:2] == (True, 0)


def test_what_was_answered_before_it_was_cancelled_lands(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    joy = projects["joy"]
    joy.start("tweets")
    joy.end_batches()
    start(tmp_path, instance, "cancel", assets=["joy"])

    assert start(tmp_path, instance, "collect")[0]

    assert len(joy.sql("SELECT * FROM main.joy")) == len(joy.claude.simulator.bill()) == 2


def test_nothing_is_cancelled_without_a_name_or_with_a_wrong_one(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    projects["joy"].start("tweets")

    with pytest.raises(dg.DagsterInvalidConfigError, match="assets"):
        start(tmp_path, instance, "cancel", partitions=["tweets"])
    success, _, logged = start(tmp_path, instance, "cancel", assets=["joy", "calm"])
    assert not success
    assert re.search(r"has no batch asset 'calm'.*'anger', 'joy'", logged)

    assert projects["joy"].chunk_states() == {"submitted": 1}


def test_collecting_lands_what_no_run_waits_for(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    joy = projects["joy"]
    joy.start("tweets")  # by a run that this instance does not know
    joy.end_batches()

    for _ in range(2):
        assert start(tmp_path, instance, "collect")[0]

    assert len(joy.sql("SELECT * FROM main.joy")) == 2
    assert joy.chunk_states() == {"landed": 1}


def test_reconciling_finds_a_batch_whose_creation_nobody_saw(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    joy = projects["joy"]
    joy.wire.lose_answer("POST /v1/messages/batches")
    run = joy.start("tweets")
    assert joy.chunk_states() == {"sending": 1}
    assert run.waiting is not None
    joy.claude.simulator.advance(timedelta(hours=25))

    for _ in range(2):
        assert start(tmp_path, instance, "reconcile")[:2] == (True, 0)

    assert joy.chunk_states() == {"submitted": 1}
    assert len(joy.claude.simulator.batches()) == 1


def test_pruning_and_deleting_do_what_they_say_once(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    joy = projects["joy"]
    joy.materialize("tweets")
    spent = joy.sql("SELECT * FROM claude_batch.spending")

    assert start(tmp_path, instance, "delete_remote_results")[:2] == (True, 1)
    assert start(tmp_path, instance, "delete_remote_results")[:2] == (True, 0)
    assert joy.claude.simulator.batches() == []

    assert start(tmp_path, instance, "prune")[:2] == (True, 0)  # not older than 90 days
    joy.claude.simulator.advance(timedelta(days=91))
    assert start(tmp_path, instance, "prune", assets=["joy"])[:2] == (True, 2)
    assert start(tmp_path, instance, "prune")[:2] == (True, 0)
    assert joy.sql("SELECT * FROM claude_batch.spending") == spent
    assert joy.materialize("tweets").rows == []


def test_one_assets_trouble_keeps_no_other_from_its_turn(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    for project in projects.values():
        project.start("tweets")
        project.end_batches()
    projects["anger"].sql("ALTER TABLE claude_batch.chunks RENAME TO elsewhere")

    success, _, logged = start(tmp_path, instance, "collect")

    assert not success
    assert re.search(r"Asset .?'anger", logged)
    assert len(projects["joy"].sql("SELECT * FROM main.joy")) == 2


def test_deleting_fails_when_something_is_left_for_an_error(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project], wire: Wire
) -> None:
    joy = projects["joy"]
    joy.materialize("tweets")
    wire.lose_call(DELETE, httpx2.ConnectError)

    success, _, logged = start(tmp_path, instance, "delete_remote_results")

    assert not success
    assert "1 landed batch of asset 'joy' could not be deleted at Anthropic" in logged
    assert len(joy.claude.simulator.batches()) == 1

    assert start(tmp_path, instance, "delete_remote_results")[:2] == (True, 1)


def test_what_is_left_to_runs_that_wait_is_said_with_them(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    waits = add_run(instance)
    projects["joy"].start("tweets", run_id=waits)
    projects["joy"].materialize("tweets")

    success, count, logged = start(tmp_path, instance, "delete_remote_results")

    assert (success, count) == (True, 0)
    assert f"1 batch is left to the runs that wait: {waits}." in logged
    assert "left_to_runs" in logged  # beside the count
    assert len(projects["joy"].claude.simulator.batches()) == 1


def test_where_nothing_was_ever_asked_there_is_nothing_to_do(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    for job in ("collect", "reconcile", "prune", "delete_remote_results"):
        assert start(tmp_path, instance, job)[:2] == (True, 0)
    assert start(tmp_path, instance, "cancel", assets=list(projects))[:2] == (True, 0)
