"""Code locations that are reloaded, broken, repaired and renamed, and daemons that restart."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from dagster_driver import DagsterDriver, DagsterRefusedError, Run
from e2e_situations import Shown, record
from e2e_stage import FAST_QUEUE, HERE, Stage, environment

from dagster_claude_batch.simulator import Simulator

WAITS = Shown({"materializing": 1, "missing": 2}, queued=1, batches_out=1)
RESULTS_READY = Shown({"materializing": 1, "missing": 2}, queued=1)
DONE = Shown({"materialized": 1, "missing": 2})
SENSORS = {
    "restarted": "claude_batch_sensor",
    "broken_and_repaired": "claude_batch_sensor",
    "renamed": "claude_batch_sensor",
    "switched_off_and_on": "other_sensor",
}


@dataclass(frozen=True)
class World:
    """One Dagster with two code locations, as each asset of theirs sees it."""

    dagster: DagsterDriver
    stages: dict[str, Stage]

    def shown(self) -> dict[str, Shown]:
        return {asset: stage.shown(asset) for asset, stage in self.stages.items()}

    def waits_for(self, asset: str) -> str:
        """What the sensor of an asset says, as soon as it has seen that something waits."""
        dagster, sensor = self.stages[asset].dagster, SENSORS[asset]
        since = time.time()

        def said() -> str | None:
            newest = dagster.ticks(sensor, limit=2)
            reasons = [tick.skip_reason or "" for tick in newest if tick.timestamp > since]
            return next((reason for reason in reasons if "waits for" in reason), None)

        return dagster.wait_for(said, timeout=600, what=f"{sensor} to see what waits")


@contextmanager
def open_world(home: Path, *, name_of_second: str = "second") -> Iterator[World]:
    """Start Dagster with both locations."""
    workspace = home / "workspace.yaml"
    locations = [("first", "first"), ("second", name_of_second)]
    workspace.write_text(f"load_from: [{', '.join(_location(home, *each) for each in locations)}]")
    driver = DagsterDriver(
        home, workspace=workspace, cwd=HERE, env=environment(home), extra_yaml=FAST_QUEUE
    )
    with driver as dagster:
        first = Stage(home, dagster.at("first"), Simulator(home / "first"))
        second = Stage(home, dagster.at(name_of_second), Simulator(home / "second"))
        other = Stage(home, dagster.at(name_of_second), Simulator(home / "other"))
        stages = {
            "broken_and_repaired": first,
            "restarted": first,
            "renamed": second,
            "switched_off_and_on": other,
        }
        yield World(dagster, stages)


def _location(home: Path, definitions: str, name: str) -> str:
    file = _write_location(home, definitions)
    return (
        f"{{python_file: {{relative_path: {file.name}, location_name: {name}, "
        f"working_directory: {HERE}}}}}"
    )


def _write_location(home: Path, definitions: str, *, flaw: str = "") -> Path:
    file = home / f"{definitions}.py"
    file.write_text(f"from e2e_located import {definitions}\n{flaw}\ndefs = {definitions}()\n")
    return file


def _reload(stage: Stage) -> None:
    """Reload a location, again if a busy machine takes longer than the webserver's answer may."""

    def is_done() -> bool:
        with suppress(httpx2.ReadTimeout):
            stage.dagster.reload_location()
            return True
        return False

    stage.dagster.wait_for(is_done, timeout=600, what="the location to be reloaded")


@dataclass
class Seen:
    """What was shown of all assets at each moment, and what sensors said of what they wait for."""

    moments: dict[str, dict[str, Shown]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    said_after_renaming: str = ""
    sent: dict[str, list[str]] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One story, for a Dagster with two code locations takes long to start."""
    home, seen = tmp_path_factory.mktemp("world"), Seen()
    with open_world(home) as world:
        held = _launch(world)
        seen.said = {asset: world.waits_for(asset) for asset in held}
        seen.moments["waiting"] = world.shown()
        _switch_off_and_on(world, held["switched_off_and_on"], seen)
        _break_and_repair(world, held["broken_and_repaired"], home, seen)
        first = world.stages["restarted"]
        held["restarted"] = first.held_by(
            first.dagster.materialize("restarted", partition="berlin")
        )
        seen.moments["before the restart"] = world.shown()
    with open_world(home, name_of_second="the_second") as world:
        world.waits_for("restarted")
        seen.moments["after the restart"] = world.shown()
        world.stages["restarted"].simulator.end_batches()
        world.stages["renamed"].simulator.end_batches()
        world.stages["restarted"].succeed(held["restarted"].run_id)
        seen.moments["collected"] = world.shown()
        _cancel_and_materialize_again(world, held["renamed"], seen)
        seen.moments["at the end"] = world.shown()
        for asset, stage in world.stages.items():
            seen.sent[asset] = stage.sent(asset)
            seen.answered[asset] = stage.sql(f"SELECT count(*) FROM {asset}")[0][0]
    return seen


def _launch(world: World) -> dict[str, Run]:
    """Let all wait but what is restarted, whose batches would end with those of its neighbour."""
    for asset, stage in world.stages.items():
        stage.ask(asset, 2)
    runs = {
        asset: stage.dagster.materialize(asset, partition="berlin")
        for asset, stage in world.stages.items()
        if asset != "restarted"
    }
    return {asset: world.stages[asset].held_by(run_id) for asset, run_id in runs.items()}


def _switch_off_and_on(world: World, held: Run, seen: Seen) -> None:
    stage = world.stages["switched_off_and_on"]
    stage.dagster.stop_sensor("other_sensor")
    # A tick that had begun by then may still let the run go.
    world.stages["renamed"].wait_for_ticks("claude_batch_sensor")
    stage.dagster.wait_for(
        lambda: all(t.status != "STARTED" for t in stage.dagster.ticks("other_sensor", limit=3)),
        timeout=600,
        what="the last tick to end",
    )
    stage.simulator.end_batches()
    world.stages["renamed"].wait_for_ticks("claude_batch_sensor")
    seen.moments["off"] = world.shown()
    stage.dagster.start_sensor("other_sensor")
    stage.succeed(held.run_id)
    seen.moments["on again"] = world.shown()


def _break_and_repair(world: World, held: Run, home: Path, seen: Seen) -> None:
    stage = world.stages["broken_and_repaired"]
    _reload(stage)
    world.waits_for("broken_and_repaired")
    seen.moments["reloaded"] = world.shown()
    _write_location(home, "first", flaw="raise RuntimeError('broken')")
    with pytest.raises(DagsterRefusedError, match="broken"):
        _reload(stage)
    # A tick that the code server answered before it broke may still let the run go.
    world.stages["renamed"].wait_for_ticks("claude_batch_sensor")
    stage.simulator.end_batches()
    world.stages["renamed"].wait_for_ticks("claude_batch_sensor")
    assert stage.dagster.run(held.run_id).status == "QUEUED"
    _write_location(home, "first")
    _reload(stage)
    stage.succeed(held.run_id)
    seen.moments["repaired"] = world.shown()


def _cancel_and_materialize_again(world: World, held: Run, seen: Seen) -> None:
    stage = world.stages["renamed"]
    seen.said_after_renaming = world.waits_for("renamed")
    seen.moments["renamed"] = world.shown()
    stage.cancel(held.run_id)
    stage.see_through(stage.dagster.materialize("renamed", partition="berlin"))


def test_each_sensor_touches_only_what_waits_for_its_own_workspace(seen: Seen) -> None:
    waiting, one_ended = seen.moments["waiting"], seen.moments["on again"]

    for said in seen.said.values():
        assert said.startswith("1 run with 1 partition waits for 1 batch, ")
    assert one_ended["switched_off_and_on"] == DONE
    for asset in ("renamed", "broken_and_repaired"):
        assert waiting[asset] == one_ended[asset] == WAITS
    asset = "switched_off_and_on"
    assert seen.sent[asset] == [f"{asset} berlin 0", f"{asset} berlin 1"]
    record("several locations: two workspaces, two keys", waiting[asset], one_ended[asset])


def test_while_the_sensor_is_off_what_has_ended_waits_until_it_is_on_again(seen: Seen) -> None:
    off, on = (seen.moments[each]["switched_off_and_on"] for each in ("off", "on again"))

    assert (off, on) == (RESULTS_READY, DONE)
    record("code location and daemons: sensor off and on again", off, on)


def test_a_run_waits_while_its_code_location_is_reloaded_and_broken_until_it_is_repaired(
    seen: Seen,
) -> None:
    reloaded, repaired = (
        seen.moments[each]["broken_and_repaired"] for each in ("reloaded", "repaired")
    )

    assert (reloaded, repaired) == (WAITS, DONE)
    assert seen.answered["broken_and_repaired"] == 2
    record("code location and daemons: code location reloaded, broken, repaired", WAITS, repaired)


def test_a_run_waits_while_daemon_and_webserver_are_restarted(seen: Seen) -> None:
    before, after, collected = (
        seen.moments[each]["restarted"]
        for each in ("before the restart", "after the restart", "collected")
    )

    assert (before, after, collected) == (WAITS, WAITS, DONE)
    assert seen.sent["restarted"] == ["restarted berlin 0", "restarted berlin 1"]
    record("code location and daemons: daemon and webserver restarted", after, collected)


def test_a_run_of_a_renamed_code_location_waits_until_it_is_cancelled_and_nothing_is_sent_again(
    seen: Seen,
) -> None:
    """Dagster could not start it: a queued run is of the location that it was launched in."""
    renamed, at_the_end = (seen.moments[each]["renamed"] for each in ("renamed", "at the end"))

    assert (renamed, at_the_end) == (RESULTS_READY, DONE)
    assert seen.said_after_renaming == (
        "Nothing is waiting for batches. 1 run waits for assets that are defined here, launched "
        "in 'second': if this code location was renamed, cancel and materialize again; nothing is "
        "sent twice."
    )
    assert seen.sent["renamed"] == ["renamed berlin 0", "renamed berlin 1"]
    assert seen.answered["renamed"] == 2
    record(
        "code location and daemons: code location renamed; cancelled, materialized again",
        renamed,
        at_the_end,
    )
