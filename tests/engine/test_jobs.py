"""The jobs that a person starts: what each does, twice too, and to which assets."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import CustomPointer, ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from kit import Project, WiredClaude, project_of_location

from dagster_claude_batch import build_claude_batch_jobs

NAMES = ("anger", "joy")
CORPORA = ("tweets", "reviews")


def location(directory: str) -> dg.Definitions:
    """A code location with two assets, each with a database of its own, and one of another kind."""
    projects = {name: project_of_location(Path(directory), name) for name in NAMES}
    return dg.Definitions(
        assets=[*(each.assets_def for each in projects.values()), dg.AssetSpec("calm")],
        jobs=build_claude_batch_jobs(),
        resources={
            **{f"duckdb_{name}": each.duckdb for name, each in projects.items()},
            "claude_batch": WiredClaude(path=str(Path(directory) / "simulator")),
        },
    )


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


def start(
    directory: Path, instance: dg.DagsterInstance, job: str, **config: Any
) -> tuple[bool, int | None, str]:
    """Run a job: its success, what it counted, and its log."""
    here = ModuleCodePointer(__name__, location.__name__, None)
    repository = ReconstructableRepository(CustomPointer(here, [str(directory)], []))
    with dg.execute_job(
        ReconstructableJob(repository, f"claude_batch_{job}"),
        instance=instance,
        run_config={"ops": {f"claude_batch_{job}_op": {"config": config}}} if config else None,
    ) as result:
        logged = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))
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


def test_where_nothing_was_ever_asked_there_is_nothing_to_do(
    tmp_path: Path, instance: dg.DagsterInstance, projects: dict[str, Project]
) -> None:
    for job in ("collect", "reconcile", "prune", "delete_remote_results"):
        assert start(tmp_path, instance, job)[:2] == (True, 0)
    assert start(tmp_path, instance, "cancel", assets=list(projects))[:2] == (True, 0)
