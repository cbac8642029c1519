from __future__ import annotations

import json
import stat
from itertools import repeat
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from simulated import Service, client_of, params, requests

from dagster_claude_batch.simulator import Simulator, SimulatorTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE = json.dumps({"custom_id": "a", "params": params()}).encode()


def body_with(*rows: object) -> bytes:
    return json.dumps({"requests": rows}).encode()


def test_a_created_batch_is_in_progress_and_expires_in_24_hours(service: Service) -> None:
    batch = service.create(params(), params())

    assert batch.id.startswith("msgbatch_01")
    assert batch.processing_status == "in_progress"
    assert batch.request_counts.processing == 2
    assert (batch.expires_at - batch.created_at).total_seconds() == 24 * 3600
    assert batch.results_url is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "not valid JSON", id="empty body"),
        pytest.param(b"[]", "not valid JSON: Expected '{'", id="not an object"),
        pytest.param(b'{"requests": [' + ONE, "not valid JSON", id="cut off"),
        pytest.param(b'{"requests": [' + ONE + b",]}", "not valid JSON", id="trailing comma"),
        pytest.param(b'{"requests": [' + ONE + b"]} x", "Extra data", id="something after it"),
        pytest.param(b'{"requests": [{"a": NaN}]}', "NaN", id="not a JSON number"),
        pytest.param(b'{"requests": ["\\ud800"]}', "no low surrogate", id="half a character"),
        pytest.param(b'{"requests": ["\xff"]}', "not valid JSON", id="not UTF-8"),
        pytest.param(b'{"requests": [' + b"[" * 100_000, "not valid JSON", id="too deep"),
        pytest.param(b"{}", "requests: Field required", id="no list"),
        pytest.param(b'{"requests": {}}', "requests: Input should be a valid list", id="no array"),
        pytest.param(b'{"requests": []}', "requests: List should have at least 1", id="empty"),
        pytest.param(b'{"input_file_id": "f"}', "input_file_id: Extra inputs", id="other key"),
        pytest.param(body_with(3), "requests.0: Input should be an object", id="not a request"),
        pytest.param(
            body_with({"params": {}}), "requests.0.custom_id: Field required", id="no custom id"
        ),
        pytest.param(
            body_with({"custom_id": "a"}), "requests.0.params: Field required", id="no params"
        ),
        pytest.param(
            body_with({"custom_id": "a", "params": {}, "x": 1}), "requests.0.x: Extra", id="extra"
        ),
        pytest.param(
            body_with({"custom_id": "a.jpg", "params": {}}), "requests.0.custom_id", id="a dot"
        ),
        pytest.param(
            body_with({"custom_id": "a\n", "params": {}}), "requests.0.custom_id", id="new line"
        ),
        pytest.param(
            body_with({"custom_id": "a" * 65, "params": {}}), "requests.0.custom_id", id="too long"
        ),
        pytest.param(
            body_with({"custom_id": 7, "params": {}}), "requests.0.custom_id", id="a number"
        ),
        pytest.param(
            body_with(*({"custom_id": name, "params": {}} for name in "abcab")),
            "requests.3.custom_id: 'a' is already used by requests.0",
            id="a duplicate",
        ),
        pytest.param(
            body_with(*({"custom_id": f"r{number}", "params": {}} for number in range(100_001))),
            "requests: List should have at most 100000 items after validation, not 100001",
            id="too many",
        ),
    ],
)
def test_a_bad_envelope_refuses_the_whole_batch(
    service: Service, body: bytes, message: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        service.post(body)

    assert message in str(refused.value)
    assert service.simulator.batches() == []


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_a_body_may_arrive_in_pieces_of_any_size(service: Service, size: int) -> None:
    row = params(messages=[{"role": "user", "content": 'Grüße, "世界" \\ \U0001f600\n}]'}])
    body = json.dumps({"requests": requests(row, row)}, ensure_ascii=False, indent=1).encode()

    batch = service.post(body[at : at + size] for at in range(0, len(body), size))

    assert [each for _, each in service.simulator.requests(batch.id)] == [row, row]


def test_requests_are_kept_as_they_were_sent(service: Service) -> None:
    rows = [params(), params(model="no such model")]

    batch = service.create(*rows)

    assert list(service.simulator.requests(batch.id)) == [("row-0", rows[0]), ("row-1", rows[1])]


def test_a_body_above_256_megabytes_is_too_large(service: Service) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"requests": ["'
        yield from repeat(b"x" * 1_000_000, 256)

    with pytest.raises(anthropic.APIStatusError) as refused:
        service.post(body())

    assert refused.value.status_code == 413
    assert service.simulator.batches() == []


@pytest.mark.parametrize("headers", [{"x-api-key": "k"}, {"authorization": "Bearer t"}])
def test_either_kind_of_credential_is_accepted(service: Service, headers: dict[str, str]) -> None:
    assert get(service.simulator, headers).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer "}, {"x-api-key": ""}])
def test_without_credentials_nothing_is_answered(service: Service, headers: dict[str, str]) -> None:
    response = get(service.simulator, headers)

    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def get(simulator: Simulator, headers: dict[str, str]) -> httpx2.Response:
    with httpx2.Client(transport=SimulatorTransport(simulator)) as client:
        url = "http://simulated/v1/messages/batches"
        return client.get(url, headers={"anthropic-version": "2026-10-21", **headers})


def test_errors_have_the_form_and_the_request_id_of_the_api(service: Service) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        service.batches.retrieve("msgbatch_01unknown")

    body: Any = refused.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    assert body["request_id"] == refused.value.request_id
    assert body["request_id"].startswith("req_01")


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/messages/batches?status=ended", "/"])
def test_what_the_api_does_not_know_is_not_found(service: Service, path: str) -> None:
    with pytest.raises(anthropic.NotFoundError):
        service.client.get(path, cast_to=object)


def test_a_full_queue_accepts_nothing(service: Service) -> None:
    service.open(max_queued_requests=5)
    service.create(params(), params(), params())

    with pytest.raises(anthropic.RateLimitError):
        service.create(params(), params(), params())

    assert len(service.simulator.batches()) == 1


def test_a_batch_that_has_ended_is_not_in_the_queue(service: Service) -> None:
    service.open(max_queued_requests=3)
    service.create(params(), params(), params())
    service.simulator.end_batches()

    service.create(params(), params(), params())

    assert len(service.simulator.batches()) == 2


def test_a_create_that_crashes_midway_leaves_nothing(service: Service) -> None:
    def crash(_params: dict[str, Any], custom_id: str, seen: int) -> None:
        if custom_id == "row-1":
            raise KeyboardInterrupt
        assert seen == 0

    service.open(outcome=crash)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            service.create(params(), params())

    assert service.simulator.batches() == []
    assert list((service.path / "incoming").iterdir()) == []
    assert list((service.path / "batches").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:answer", "No module named 'no_such_module'"),
        ("simulated_functions:missing", "has no attribute 'missing'"),
        ("simulated_functions:NOT_A_FUNCTION", "it is not callable"),
        ("simulated_functions", "it is not 'package.module:function'"),
    ],
)
@pytest.mark.parametrize("argument", ["answer", "outcome"])
def test_a_function_that_cannot_be_imported_is_named(
    service: Service, argument: str, name: str, reason: str
) -> None:
    service.open(**{argument: name})

    with pytest.raises(anthropic.BadRequestError) as refused:
        service.create()

    assert f"{argument}={name!r}" in str(refused.value)
    assert reason in str(refused.value)


def test_everything_on_disk_is_private(service: Service) -> None:
    service.create()

    for path in (service.path, *service.path.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_same_seed_clock_and_calls_give_the_same_everything(tmp_path: Path) -> None:
    first, second = Service(tmp_path / "first"), Service(tmp_path / "second")

    lines = [b"".join(run_of(service)) for service in (first, second)]

    assert lines[0] == lines[1]


def run_of(service: Service) -> list[bytes]:
    batch = service.create(*(params(max_tokens=50 + number) for number in range(20)))
    service.simulator.end_batches()
    return [batch.id.encode(), *service.simulator.results(batch.id)]


def test_the_clock_of_a_new_directory_makes_new_ids(tmp_path: Path) -> None:
    clients = [client_of(Simulator(tmp_path / name)) for name in ("before", "after")]

    ids = {client.messages.batches.create(requests=requests(params())).id for client in clients}

    assert len(ids) == 2
