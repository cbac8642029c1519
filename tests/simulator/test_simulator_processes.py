from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import anthropic
import pytest
from anthropic.types.messages import MessageBatch
from simulated import Service, client_of, params, requests

from dagster_claude_batch.simulator import Simulator
from example_project.demo.local_dagster import interruptible_children

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


def create_and_list(path: str, batches: int) -> list[str]:
    """What one process does: create, look, and let time pass."""
    simulator = Simulator(path)
    client = client_of(simulator)
    rows = requests(*(params() for _ in range(20)))
    created: list[str] = []
    for _ in range(batches):
        created.append(client.messages.batches.create(requests=rows).id)
        listed = {batch.id for batch in client.messages.batches.list(limit=1000)}
        assert set(created) <= listed
        simulator.end_batches()
        assert len(list(client.messages.batches.results(created[-1]))) == 20
    return created


def test_several_processes_share_one_simulator(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as processes:
        done = list(processes.map(create_and_list, [str(tmp_path)] * 4, [5] * 4))

    ids = [batch_id for created in done for batch_id in created]
    simulator = Simulator(tmp_path)
    assert len(set(ids)) == 20
    assert {batch.id for batch in simulator.batches()} == set(ids)
    assert len(simulator.bill()) == 400


def die_while_creating(path: str) -> None:
    """End without any clean-up, in the middle of a batch."""

    def die(_params: object, custom_id: str, _seen: int) -> None:
        if custom_id == "row-1":
            os._exit(9)

    client_of(Simulator(path, outcome=die)).messages.batches.create(
        requests=requests(params(), params())
    )


def test_a_process_that_is_killed_while_it_creates_leaves_no_batch(service: Service) -> None:
    process = get_context("spawn").Process(target=die_while_creating, args=[str(service.path)])
    process.start()
    process.join()

    assert process.exitcode == 9
    assert service.simulator.batches() == []
    assert service.ask(params())[0]["type"] == "succeeded"


def test_every_question_is_counted_however_many_ask_at_once(service: Service) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: service.create(params(), params()), range(16)))
    times: list[int] = []

    service.open(outcome=lambda _, __, seen: times.append(seen))
    service.create(params())

    assert times == [32]


def test_a_queue_is_never_overfilled_however_many_fill_it(service: Service) -> None:
    service.open(max_queued_requests=10)

    def create(_: int) -> int:
        try:
            service.create(params(), params(), params())
        except anthropic.RateLimitError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        accepted = sum(threads.map(create, range(16)))

    assert accepted == len(service.simulator.batches()) == 3


@contextmanager
def server(path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "dagster_claude_batch.simulator", "--path", str(path)]
    search = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    with interruptible_children():
        served = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": search},
        )
    with served as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def client_at(base_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="simulated", base_url=base_url, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_served_simulator_does_everything_over_http(
    tmp_path: Path, ending: signal.Signals
) -> None:
    options = ("--answer", "simulated_functions:shout", "--processing-seconds", "0", "0")
    with server(tmp_path, *options) as (process, base_url):
        with client_at(base_url) as client:
            assert base_url.startswith("http://127.0.0.1:")
            batches = client.messages.batches
            batch = batches.create(requests=requests(*(params() for _ in range(3_000))))
            results = list(batches.results(batch.id))

            assert batches.retrieve(batch.id).results_url == (
                f"{base_url}/v1/messages/batches/{batch.id}/results"
            )
            assert len(results) == 3_000
            assert "I LOVE IT" in results[0].to_json()
            assert [each.id for each in batches.list()] == [batch.id]
            assert batches.delete(batch.id).id == batch.id
            with pytest.raises(anthropic.NotFoundError):
                batches.cancel(batch.id)
            with pytest.raises(anthropic.BadRequestError):
                batches.create(requests=requests(params()) * 2)
            assert client.models.retrieve("claude-haiku-5-5").max_tokens == 128_000

        process.send_signal(ending)
        assert process.wait(timeout=20) == 0


def test_a_served_simulator_takes_a_body_without_a_length(tmp_path: Path) -> None:
    body = json.dumps({"requests": requests(params(), params())}).encode()

    with server(tmp_path) as (_, base_url), client_at(base_url) as client:
        pieces = (body[at : at + 10] for at in range(0, len(body), 10))
        batch = client.post("/v1/messages/batches", content=pieces, cast_to=MessageBatch)

    assert batch.request_counts.processing == 2


def test_a_served_simulator_survives_a_client_that_goes_away(tmp_path: Path) -> None:
    with server(tmp_path) as (_, base_url), client_at(base_url) as client:
        port = int(base_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/messages/batches HTTP/1.1\r\nHost: x\r\nx-api-key: k\r\n"
                b"anthropic-version: 1\r\nContent-Length: 500\r\n\r\n{"
            )

        assert client.messages.batches.list().data == []


def test_a_server_with_a_function_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dagster_claude_batch.simulator", "--path", str(tmp_path)]

    ended = subprocess.run(
        [*command, "--answer", "no_such_module:answer"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )

    assert ended.returncode == 2
    assert "answer='no_such_module:answer'" in ended.stderr
