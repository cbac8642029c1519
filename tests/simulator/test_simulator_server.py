"""The server is for its own machine, whoever else can reach it."""

import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from dagster_claude_batch.simulator import Simulator
from dagster_claude_batch.simulator.server import SimulatorServer

HEADERS = {"x-api-key": "k", "anthropic-version": "2026-10-21"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SimulatorServer]:
    with SimulatorServer(Simulator(tmp_path)) as serving:
        thread = Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def status_for(server: SimulatorServer, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request("GET", "/v1/messages/batches", headers={**HEADERS, "Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


def test_it_listens_on_loopback_only(server: SimulatorServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.1:{port}", "localhost:{port}"])
def test_it_answers_under_its_own_names(server: SimulatorServer, host: str) -> None:
    assert status_for(server, host.format(port=server.server_port)) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "8.8.8.8", "[::1]:1"]
)
def test_it_refuses_what_came_by_another_name(server: SimulatorServer, host: str) -> None:
    assert status_for(server, host.format(port=server.server_port)) == 403


def test_it_cannot_be_told_to_listen_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dagster_claude_batch.simulator", "--path", str(tmp_path)]

    ended = subprocess.run(
        [*command, "--host", "0.0.0.0"],  # noqa: S104  # that it is refused is the point
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert "--host" in ended.stderr
