"""No key and no prompt in anything that a run leaves behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import httpx2
import pytest
from kit import Project, Sentiment, WiredClaude
from searching import (
    KEY,
    PLANTED,
    ROW,
    SECRETS,
    SYSTEM,
    TEMPLATE,
    WatchedFiles,
    all_logs,
    everything_about,
    ledger_text,
    plant,
    secrets_in,
)

from dagster_claude_batch import (
    ClaudeBatchResource,
    LocalClaudeBatchResource,
    build_claude_batch_asset,
)
from dagster_claude_batch.simulator import Simulator
from dagster_claude_batch.simulator.server import SimulatorServer

pytestmark = pytest.mark.opens_anew

Make = Callable[..., Project]
POST = "POST /v1/messages/batches"
RESULTS = "GET /v1/messages/batches/…/results"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own for temporary files."""
    directory = tmp_path / "temporary"
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def planted(project: Make) -> Project:
    return plant(project(claude={"api_key": KEY}, **PLANTED))


def _impatient(project: Project) -> None:
    """Switch off the SDK's own retries, which sleep."""
    claude = project.claude
    claude.__dict__["client"] = claude.client.with_options(max_retries=0)


def _refuse(status: int, error_type: str, message: str) -> Callable[[Project], None]:
    body = {"type": "error", "error": {"type": error_type, "message": message}}
    return lambda project: project.wire.answer(POST, status, body)


def _break_downloads(project: Project) -> None:
    for _ in range(3):
        project.wire.break_answer(RESULTS, after=500, error=httpx2.ReadError)


def _fail_rows(project: Project) -> None:
    project.script.ends_with("t0", "errored:invalid_request_error")
    project.script.ends_with("t1", "refusal")
    project.script.ends_with("t2", "invalid_output")
    project.script.ends_with("t3", "unknown")


def _spoil_results(project: Project) -> None:
    project.wire.change_answer(RESULTS, lambda body: body.replace(b"message", b"mess\xffge"))


def _break_table(project: Project) -> None:
    project.sql("CREATE TABLE sentiment (id VARCHAR, text INTEGER)")


def _break_source(project: Project) -> None:
    project.sql("ALTER TABLE texts DROP COLUMN text")


TROUBLES: dict[str, Callable[[Project], None]] = {
    "none": lambda _: None,
    "400": _refuse(400, "invalid_request_error", "requests.0.custom_id: bad"),
    "credit": _refuse(400, "invalid_request_error", "Your credit balance is too low"),
    "401": _refuse(401, "authentication_error", "invalid x-api-key"),
    "402": _refuse(402, "billing_error", "pay"),
    "413": _refuse(413, "request_too_large", "too large"),
    "429": _refuse(429, "rate_limit_error", "slow down"),
    "500": _refuse(500, "api_error", "oops"),
    "529": _refuse(529, "overloaded_error", "busy"),
    "answer lost": lambda project: project.wire.lose_answer(POST),
    "no connection": lambda project: project.wire.lose_call(POST, httpx2.ConnectError),
    "broken while sending": lambda project: project.wire.lose_call(POST, httpx2.WriteError),
    "broken downloads": _break_downloads,
    "failed rows": _fail_rows,
    "spoilt results": _spoil_results,
    "error in a transaction": _break_table,
    "source has changed": _break_source,
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
def test_neither_logs_nor_errors_nor_the_ledger_hold_a_secret(
    planted: Project, trouble: Callable[[Project], None]
) -> None:
    _impatient(planted)
    trouble(planted)
    told: list[str] = []

    with all_logs() as records:
        for _ in range(3):
            try:
                planted.start()
            except Exception as error:  # noqa: BLE001  # any is searched
                told.append(everything_about(error))
            planted.claude.simulator.advance(timedelta(hours=1))
            planted.end_batches()

    assert told or "anthropic._base_client" in records.loggers
    told += [*records.told, ledger_text(planted)]
    assert [secrets_in(text) for text in told if secrets_in(text)] == []


def test_the_secrets_are_really_sent(planted: Project, temporary: Path) -> None:
    watched = WatchedFiles(planted.wire.transport, temporary)
    planted.wire.transport = watched

    planted.materialize()

    sent = b"".join(watched.bodies).decode()
    assert secrets_in(sent) == [ROW, TEMPLATE, SYSTEM]
    assert watched.keys == {f"Bearer {KEY}"}


def test_nothing_that_may_be_printed_shows_a_secret(planted: Project) -> None:
    resource = ClaudeBatchResource(api_key=KEY)
    run = planted.start()

    for each in (resource, planted.claude, planted.asset, planted.asset.declaration, run.engine):
        assert secrets_in(repr(each)) == []
        assert secrets_in(str(each)) == []


def test_temporary_files_are_private_and_nameless_and_nothing_stays(
    planted: Project, temporary: Path
) -> None:
    watched = WatchedFiles(planted.wire.transport, temporary)
    planted.wire.transport = watched
    planted.script.ends_with("t1", "errored:invalid_request_error")

    planted.materialize()

    assert watched.looks > 5
    assert watched.problems == []
    assert set(watched.unlinked) == {"-rw-------"}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "trouble",
    [_break_downloads, TROUBLES["400"], TROUBLES["answer lost"]],
    ids=["broken downloads", "400", "answer lost"],
)
def test_nothing_stays_of_temporary_files_after_an_error(
    planted: Project, temporary: Path, trouble: Callable[[Project], None]
) -> None:
    _impatient(planted)
    trouble(planted)

    for _ in range(2):
        try:
            planted.start()
        except Exception:  # noqa: BLE001, S112  # whatever it is, nothing must stay of it
            continue
        planted.end_batches()

    assert planted.wire.faults == []
    assert list(temporary.iterdir()) == []


# --- killed ---------------------------------------------------------------------------------


class KilledWhile(httpx2.BaseTransport):
    """Ends the process, for which there is no clean-up, in the middle of a call."""

    def __init__(self, transport: httpx2.BaseTransport, moment: str) -> None:
        self.transport = transport
        self.moment = moment

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.moment == "sending" and request.method == "POST":
            next(iter(request.stream))
            _die()
        response = self.transport.handle_request(request)
        if self.moment == "downloading" and request.url.path.endswith("/results"):
            return httpx2.Response(200, content=self._half(response.read()))
        return response

    def _half(self, body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        _die()


class KilledWhileReading(Sentiment):
    def model_post_init(self, context: Any) -> None:
        del context
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_be_killed(directory: Path, moment: str) -> None:
    """What the child process does."""
    output = KilledWhileReading if moment == "reading" else Sentiment
    project = plant(Project(directory, output=output, **PLANTED), rows=50)
    project.wire.transport = KilledWhile(project.wire.transport, moment)
    project.materialize()


def test_nothing_stays_of_temporary_files_after_a_kill(tmp_path: Path, temporary: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    code = (
        "import pathlib, sys; from test_secrets import run_and_be_killed; "
        "run_and_be_killed(pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    killed = []
    for moment in ("sending", "downloading", "reading"):
        directory = tmp_path / moment
        directory.mkdir()
        command = [sys.executable, "-c", code, str(directory), moment]
        killed.append(subprocess.Popen(command, cwd=here, env=environment))

    assert [process.wait(timeout=100) for process in killed] == [-signal.SIGKILL] * 3
    assert list(temporary.iterdir()) == []
    assert list(here.iterdir()) == []


# --- over HTTP, and in Dagster --------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SimulatorServer]:
    simulator = Simulator(tmp_path / "served", processing_seconds=(0, 0))
    with SimulatorServer(simulator) as serving:
        thread = Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_the_logs_of_real_connections_hold_no_secret(
    project: Make, server: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    made = plant(project(**PLANTED))
    served = ClaudeBatchResource(base_url=server.base_url)
    made.claude = served

    with all_logs() as records:
        run = made.start()
        while run.waiting is not None:
            run.advance()
    served.client.close()

    assert len(made.answers()) == 4
    assert {"anthropic._base_client", "httpx2"} <= records.loggers
    assert [secrets_in(text) for text in records.told if secrets_in(text)] == []


def test_a_batch_of_ones_own_leaves_its_prompts_out_of_the_logs(tmp_path: Path) -> None:
    claude = WiredClaude(path=str(tmp_path), api_key=KEY)
    params: Any = {
        "model": "claude-haiku-5-5",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": ROW}],
    }

    with all_logs() as records:
        batch = claude.create([{"custom_id": "own-1", "params": params}])

    assert list(claude.simulator.requests(batch.id)) == [("own-1", params)]
    assert [secrets_in(text) for text in records.told if secrets_in(text)] == []


def fail_every_other(params: dict[str, Any], custom_id: str, seen: int) -> str | None:
    del params, seen
    return "errored:invalid_request_error" if custom_id[-1] in "13" else None


@pytest.mark.parametrize("outcome", [None, "test_secrets:fail_every_other"], ids=["good", "bad"])
def test_dagster_stores_no_secret(tmp_path: Path, outcome: str | None) -> None:
    made = plant(Project(tmp_path))
    asset = build_claude_batch_asset("sentiment", **{**made.declared, **PLANTED}, wait="run")
    claude = LocalClaudeBatchResource(
        path=str(tmp_path / "simulator"),
        api_key=KEY,
        outcome=outcome,
        processing_seconds=[0.0, 0.0],
        poll_interval_seconds=0.01,
    )

    with all_logs() as records, dg.instance_for_test(temp_dir=str(_fresh(tmp_path))) as instance:
        result = dg.materialize(
            [asset],
            instance=instance,
            partition_key="tweets",
            resources={"duckdb": made.duckdb, "claude_batch": claude},
            raise_on_error=False,
        )
        told = [str(instance.get_run_by_id(result.run_id))]
        told += [dg.serialize_value(entry) for entry in instance.all_logs(result.run_id)]
        stored = _bytes_under(tmp_path / "dagster")

    assert result.success is (outcome is None)
    assert b"sentiment" in stored
    assert [secret for secret in SECRETS if secret.encode() in stored] == []
    assert [secrets_in(text) for text in told + records.told if secrets_in(text)] == []


def test_a_dry_run_shows_prompts_in_its_observation_and_nowhere_else(tmp_path: Path) -> None:
    made = plant(Project(tmp_path, claude={"api_key": KEY}))
    asset = build_claude_batch_asset("sentiment", **{**made.declared, **PLANTED})

    with all_logs() as records, dg.instance_for_test(temp_dir=str(_fresh(tmp_path))) as instance:
        result = dg.materialize(
            [asset],
            instance=instance,
            partition_key="tweets",
            resources={"duckdb": made.duckdb, "claude_batch": made.claude},
            run_config={"ops": {"sentiment": {"config": {"dry_run": True}}}},
        )
        entries = instance.all_logs(result.run_id)

    (observation,) = result.asset_observations_for_node("sentiment")
    shown = {name: secrets_in(str(value)) for name, value in observation.metadata.items()}
    assert {name: set(found) for name, found in shown.items() if found} == {
        "requests": {ROW, TEMPLATE, SYSTEM}
    }
    told = [str(observation.description)]
    told += [dg.serialize_value(entry) for entry in entries if not _is_observation(entry)]
    assert [secrets_in(text) for text in told + records.told if secrets_in(text)] == []


def _is_observation(entry: dg.EventLogEntry) -> bool:
    event = entry.dagster_event
    return event is not None and event.event_type == dg.DagsterEventType.ASSET_OBSERVATION


def _fresh(tmp_path: Path) -> Path:
    directory = tmp_path / "dagster"
    directory.mkdir()
    return directory


def _bytes_under(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
