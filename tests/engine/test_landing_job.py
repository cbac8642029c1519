"""The landing job: each asset of a code location is landed, whatever becomes of the others."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.code_pointer import CustomPointer, ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from kit import Project, WiredClaude, project_of_location

from dagster_claude_batch import build_claude_batch_sensor, held_run
from dagster_claude_batch.landing_job import LEFT_TAG

NAMES = ("anger", "joy", "trust")


def location(directory: str) -> dg.Definitions:
    """A code location whose assets each have a database of their own."""
    projects = {name: project_of_location(Path(directory), name) for name in NAMES}
    return dg.Definitions(
        assets=[each.assets_def for each in projects.values()],
        sensors=[build_claude_batch_sensor("sensor")],
        resources={
            **{f"duckdb_{name}": each.duckdb for name, each in projects.items()},
            "claude_batch": WiredClaude(path=str(Path(directory) / "simulator")),
        },
    )


def _answers(project: Project, name: str) -> int:
    ((answers,),) = project.sql(f"SELECT count(*) FROM main.{name}")
    return answers


def _land(
    directory: Path, instance: dg.DagsterInstance, ended_runs: list[str]
) -> tuple[bool, str, str]:
    """Run the landing job, as the sensor asks for it: its success, its log, and its tag."""
    here = ModuleCodePointer(__name__, location.__name__, None)
    repository = ReconstructableRepository(CustomPointer(here, [str(directory)], []))
    with dg.execute_job(
        ReconstructableJob(repository, "sensor_landing"),
        instance=instance,
        run_config={"ops": {"sensor_landing_op": {"config": {"ended_runs": ended_runs}}}},
    ) as result:
        logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        return result.success, "\n".join(logged), run.tags[LEFT_TAG]


def _settled(instance: dg.DagsterInstance) -> int:
    tags = {held_run.STATE_TAG: held_run.SETTLED}
    return len(instance.get_runs(dg.RunsFilter(tags=tags)))


@dg.job
def empty() -> None: ...


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def test_trouble_with_some_assets_keeps_nobody_elses_answers(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    projects = {name: project_of_location(tmp_path, name) for name in NAMES}
    runs = {name: str(uuid4()) for name in NAMES}
    for name, each in projects.items():
        status = dg.DagsterRunStatus.CANCELED
        instance.create_run_for_job(empty, run_id=runs[name], status=status)
        each.load([("tweets", f"t{n}", "x") for n in range(3)])
        each.start(run_id=runs[name])
        each.end_batches()
    projects["anger"].sql("ALTER TABLE claude_batch.chunks RENAME TO elsewhere")
    projects["trust"].path.rename(tmp_path / "elsewhere")

    success, logged, left = _land(tmp_path, instance, list(runs.values()))

    assert not success
    assert left == "2"
    assert _settled(instance) == 0
    assert _answers(projects["joy"], "joy") == 3
    assert "Asset 'anger'" in logged
    assert "Asset 'trust'" in logged
    assert "Asset 'joy'" not in logged

    projects["anger"].sql("ALTER TABLE claude_batch.elsewhere RENAME TO chunks")
    (tmp_path / "elsewhere").rename(projects["trust"].path)
    success, _, left = _land(tmp_path, instance, list(runs.values()))

    assert success
    assert left == "0"
    assert _settled(instance) == 3
    assert [_answers(each, name) for name, each in projects.items()] == [3, 3, 3]
    assert len(projects["joy"].claude.simulator.batches()) == 3
