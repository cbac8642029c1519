"""What a tick asks the API, and what becomes of it when the API does not answer well."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from threading import Event

import dagster as dg
import duckdb
import httpx2
import pytest
from dagster_duckdb import DuckDBResource
from queue_kit import add_run, hold, let_go, run_of, scene_of

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    build_claude_batch_sensor,
    held_run,
)
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


def waits(*batch_ids: str) -> Waiting:
    return Waiting(batch_ids, len(batch_ids))


def _tick(instance: dg.DagsterInstance, claude: Claude) -> str:
    """What a tick says that looks."""
    reason = tick(scene_of(instance, claude)).skip_reason
    assert isinstance(reason, dg.SkipReason)
    return str(reason.skip_message)


def test_a_tick_lists_once_for_each_thousand_batches(
    instance: dg.DagsterInstance, claude: Claude
) -> None:
    (sample,) = claude.send(1)
    batch = json.loads(claude.retrieve(sample).to_json())
    ids = [f"msgbatch_{n:04}" for n in range(2_500)]
    for start in range(0, 2_500, 50):
        hold(instance, waits(*ids[start : start + 50]))

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
    hold(instance, waits(*claude.send(1)))

    def instead(request: httpx2.Request) -> httpx2.Response:
        if answer is None:
            raise httpx2.ConnectError("no route", request=request)
        return answer

    claude.transport.instead = instead
    said = _tick(instance, claude)

    assert said.startswith(f"The API could not be asked ({why}")
    assert "1 run with 1 partition waits for 1 batch" in said
    assert let_go(instance) == []


def test_a_run_whose_maker_ends_during_the_tick_is_not_let_go_for_want_of_something_to_wait_for(
    instance: dg.DagsterInstance, claude: Claude
) -> None:
    seen, sent = claude.send(2)
    hold(instance, waits(seen))
    maker = add_run(instance, dg.DagsterRunStatus.STARTED)
    held = hold(instance, maker=maker)

    def end(request: httpx2.Request) -> None:
        del request
        held_run.describe(instance, held, dg.AssetKey("x"), waits(sent))
        instance.report_run_canceled(run_of(instance, maker))

    claude.transport.instead = end
    said = [_tick(instance, claude), _tick(instance, claude)]

    assert let_go(instance) == []
    assert "2 runs" in said[1]


def test_what_was_seen_before_an_error_counts(instance: dg.DagsterInstance, claude: Claude) -> None:
    ended, *others = sorted(claude.send(3))
    held = hold(instance, waits(ended))
    hold(instance, waits(*others))
    claude.simulator.end_batches()

    def instead(request: httpx2.Request) -> httpx2.Response | None:
        return None if request.url.path.endswith(ended) else httpx2.Response(500, json={})

    claude.transport.instead = instead
    said = _tick(instance, claude)

    assert let_go(instance) == [held]
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
    scene = scene_of(instance, claude)
    began = scene.began

    to_ask = []
    for seconds_ago in (0, 12, 40):
        scene.began = began - seconds_ago
        to_ask.append(round(scene.seconds_to_ask()))

    assert to_ask == [20, 8, 5]


def test_the_sensor_opens_no_database(
    instance: dg.DagsterInstance, claude: Claude, tmp_path: Path
) -> None:
    held = hold(instance, waits(*claude.send(1)))
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

    assert let_go(instance) == [held]
    with pytest.raises(duckdb.IOException), duckdb.connect(no_file.database):
        pass
