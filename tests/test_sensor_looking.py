"""What a tick asks the API, and what becomes of it when the API does not answer well."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from threading import Event

import dagster as dg
import duckdb
import httpx2
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster_duckdb import DuckDBResource

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    build_claude_batch_sensor,
    held_run,
)
from dagster_claude_batch.sensor.cursor import Cursor
from dagster_claude_batch.sensor.scene import Scene
from dagster_claude_batch.sensor.tick import tick
from dagster_claude_batch.simulator import SimulatorTransport
from dagster_claude_batch.workbench import Waiting

LIST = "/v1/messages/batches"
PARAMS = {
    "model": "claude-haiku-4-5",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "?"}],
}

Answer = Callable[[httpx2.Request], httpx2.Response | None]


class Transport(httpx2.BaseTransport):
    """The simulator's, with something on the way that may answer instead."""

    def __init__(self, simulated: httpx2.BaseTransport) -> None:
        self.simulated = simulated
        self.calls: list[str] = []
        self.instead: Answer = lambda _: None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.calls.append(request.url.path)
        return self.instead(request) or self.simulated.handle_request(request)


class Claude(LocalClaudeBatchResource):
    @cached_property
    def transport(self) -> Transport:
        return Transport(SimulatorTransport(self.simulator))

    def _http_client(self) -> httpx2.Client:
        return httpx2.Client(transport=self.transport)

    def send(self, count: int) -> list[str]:
        """Create so many batches; their ids."""
        create = self.client.messages.batches.create
        return [create(requests=[{"custom_id": "a", "params": PARAMS}]).id for _ in range(count)]


@pytest.fixture
def claude(tmp_path: Path) -> Claude:
    return Claude(path=str(tmp_path / "simulator"), processing_seconds=[60, 60])


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def _hold(instance: dg.DagsterInstance, *batch_ids: str) -> str:
    @dg.op
    def nothing() -> None: ...

    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "repository")
    run = instance.create_run_for_job(
        dg.GraphDefinition(name="empty", node_defs=[nothing]).to_job(),
        tags={held_run.HELD_TAG: "claude_batch", held_run.STATE_TAG: held_run.WAITING},
        status=dg.DagsterRunStatus.QUEUED,
        remote_job_origin=origin.get_job_origin("empty"),
    )
    held_run.describe(instance, run.run_id, dg.AssetKey("x"), Waiting(batch_ids, len(batch_ids)))
    return run.run_id


def _tick(instance: dg.DagsterInstance, claude: Claude) -> str:
    """What a tick says that looks."""
    context = dg.build_sensor_context(instance=instance)
    hour = timedelta(hours=1)
    cursor = Cursor(landed_at=claude.now().timestamp())
    reason = tick(
        Scene(context, claude, "claude_batch", "landing", hour, cursor, claude.now())
    ).skip_reason
    assert isinstance(reason, dg.SkipReason)
    return str(reason.skip_message)


def _let_go(instance: dg.DagsterInstance) -> set[str]:
    found = instance.get_runs(dg.RunsFilter(tags={held_run.STATE_TAG: held_run.RELEASED}))
    return {run.run_id for run in found}


def test_a_tick_lists_once_for_each_thousand_batches(
    instance: dg.DagsterInstance, claude: Claude
) -> None:
    (sample,) = claude.send(1)
    batch = json.loads(claude.retrieve(sample).to_json())
    ids = [f"msgbatch_{n:04}" for n in range(2_500)]
    for start in range(0, 2_500, 50):
        _hold(instance, *ids[start : start + 50])

    def page(request: httpx2.Request) -> httpx2.Response:
        after = request.url.params.get("after_id")
        start = ids.index(after) + 1 if after else 0
        shown = ids[start : start + int(request.url.params["limit"])]
        return httpx2.Response(
            200,
            json={
                "data": [{**batch, "id": each} for each in shown],
                "has_more": shown[-1] != ids[-1],
                "first_id": shown[0],
                "last_id": shown[-1],
            },
        )

    claude.transport.instead = page
    claude.transport.calls.clear()
    said = _tick(instance, claude)

    assert claude.transport.calls == [LIST] * 3
    assert said.startswith("50 runs with 50 partitions wait for 2,500 batches")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (httpx2.Response(500, json={}), "InternalServerError"),
        (httpx2.Response(401, json={}), "AuthenticationError"),
        (httpx2.Response(429, json={}), "RateLimitError"),
        (httpx2.Response(200, text="<html>a proxy's word</html>"), "UnreadableAnswerError"),
        (None, "APIConnectionError"),
    ],
    ids=["500", "401", "429", "no JSON", "no connection"],
)
def test_a_tick_survives_an_api_that_cannot_be_asked_and_says_why(
    instance: dg.DagsterInstance, claude: Claude, answer: httpx2.Response | None, why: str
) -> None:
    _hold(instance, *claude.send(1))

    def instead(request: httpx2.Request) -> httpx2.Response:
        if answer is None:
            raise httpx2.ConnectError("no route", request=request)
        return answer

    claude.transport.instead = instead
    said = _tick(instance, claude)

    assert said.startswith(f"The API could not be asked ({why}")
    assert "1 run with 1 partition waits for 1 batch" in said
    assert _let_go(instance) == set()


def test_what_was_seen_before_an_error_counts(instance: dg.DagsterInstance, claude: Claude) -> None:
    ended, *others = sorted(claude.send(3))
    held = _hold(instance, ended)
    _hold(instance, *others)
    claude.simulator.end_batches()

    def instead(request: httpx2.Request) -> httpx2.Response | None:
        return None if request.url.path.endswith(ended) else httpx2.Response(500, json={})

    claude.transport.instead = instead
    said = _tick(instance, claude)

    assert _let_go(instance) == {held}
    assert "it showed 1 of 3 batches" in said


def test_what_was_seen_when_the_time_is_over_counts(claude: Claude) -> None:
    first, second, third = sorted(claude.send(3))
    never = Event()

    def instead(request: httpx2.Request) -> httpx2.Response | None:
        if request.url.path.endswith(second):
            never.wait(timeout=60)
        return None

    claude.transport.instead = instead
    seen, problem = claude.look_within([first, second, third], 0.5)
    never.set()

    assert set(seen) == {first}
    assert isinstance(problem, TimeoutError)


def test_all_calls_of_a_tick_have_one_deadline(
    instance: dg.DagsterInstance, claude: Claude
) -> None:
    context = dg.build_sensor_context(instance=instance)
    scene = Scene(context, claude, "x", "landing", timedelta(), Cursor(), claude.now())
    began = scene.began

    to_ask = []
    for seconds_ago in (0, 12, 40):
        scene.began = began - seconds_ago
        to_ask.append(round(scene.seconds_to_ask()))

    assert to_ask == [20, 8, 5]


def test_the_sensor_opens_no_database(
    instance: dg.DagsterInstance, claude: Claude, tmp_path: Path
) -> None:
    held = _hold(instance, *claude.send(1))
    claude.simulator.end_batches()
    asset = build_claude_batch_asset("x", source="texts", row_key="id", prompt="{{ id }}")
    sensor = build_claude_batch_sensor("looks")
    no_file = DuckDBResource(database=str(tmp_path))
    defs = dg.Definitions(
        assets=[asset], sensors=[sensor], resources={"claude_batch": claude, "duckdb": no_file}
    )

    with dg.build_sensor_context(
        instance=instance,
        repository_def=defs.get_repository_def(),
        resources={"claude_batch": claude, "duckdb": no_file},
    ) as context:
        sensor.evaluate_tick(context)

    assert _let_go(instance) == {held}
    with pytest.raises(duckdb.IOException), duckdb.connect(no_file.database):
        pass
