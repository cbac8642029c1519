"""Whatever a table, an answer or the API says stays what it is: text."""

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from kit import Project
from searching import all_logs

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset
from dagster_claude_batch.errors import ClaudeBatchError

Make = Callable[..., Project]
POST = "POST /v1/messages/batches"
RESULTS = "GET /v1/messages/batches/…/results"

HOSTILE = {
    "percent": "%s %d %(name)s %n",
    "braces": "{} {0} {0.__class__.__mro__} {{ text }}",
    "quotes": "' \" ` \\ $$ '' \"\"",
    "SQL": "'); DROP TABLE texts; --",
    "parameter": "$now $text $1 ? :text",
    "path": "../../../../etc/passwd",
    "function": "read_text('/etc/passwd')",
    "lines": "one\r\nERROR two\u2028three",
    "terminal": "\x1b[2J\x1b[31mred\x07",
    "NUL": "a\x00b",
    "direction": "\u202egnp.exe",
}
NAMES = list(HOSTILE)


@pytest.fixture(params=HOSTILE.values(), ids=NAMES)
def hostile(request: pytest.FixtureRequest) -> str:
    return request.param


def test_an_answer_is_stored_as_it_is(project: Make, hostile: str) -> None:
    made = project(output=None)
    made.load([("tweets", "t0", hostile), ("tweets", "t1", "x")])
    made.script.replies_with("t0", hostile)

    made.materialize()

    assert made.answers("id, response")[0] == ("t0", hostile)
    assert len(made.answers()) == 2
    assert made.sql("SELECT text FROM texts WHERE id = 't0'") == [(hostile,)]


def _error_of(custom_id: str, message: str) -> bytes:
    error = {"type": "error", "error": {"type": "api_error", "message": message}}
    result = {"type": "errored", "error": {**error, "request_id": message}}
    return json.dumps({"custom_id": custom_id, "result": result}).encode() + b"\n"


def _strange_message(custom_id: str, text: str) -> bytes:
    message = {"model": text, "stop_reason": text, "stop_details": {"explanation": text}}
    result = {"type": "succeeded", "message": message}
    return json.dumps({"custom_id": custom_id, "result": result}).encode() + b"\n"


def test_what_a_failure_says_is_stored_as_it_is(project: Make, hostile: str) -> None:
    made = project(max_attempts=1)
    made.load([("tweets", f"t{n}", "x") for n in range(4)])
    run = made.start()
    made.end_batches()

    def change(body: bytes) -> bytes:
        ids = [json.loads(line)["custom_id"] for line in body.splitlines()]
        nonce = ids[0].rpartition("-")[0]
        strange_id = json.dumps({"custom_id": f"{nonce}-{hostile}", "result": {}}).encode()
        foreign_id = json.dumps({"custom_id": hostile, "result": {"type": hostile}}).encode()
        strange_type = json.dumps({"custom_id": ids[2], "result": {"type": hostile}}).encode()
        lines = [_error_of(ids[0], hostile), _strange_message(ids[1], hostile)]
        return b"\n".join([strange_id, foreign_id, strange_type, *lines, body.splitlines()[3]])

    for _ in range(3):
        made.wire.change_answer(RESULTS, change)
    with all_logs() as records:
        run.advance()

    assert len(made.answers()) == 1
    told = made.failures("_error_type, _error_message, _request_id, _model, _stop_reason")
    assert [kind for kind, *_ in told] == ["api_error", *["unrecognized_result"] * 2]
    assert ("api_error", hostile, hostile, "claude-haiku-5-5", None) in told
    assert ("unrecognized_result", hostile, None, hostile, hostile) in told
    assert all(json.loads(raw) for raw in made.failures("_response"))
    assert len(made.sql("FROM texts")) == 4
    assert not [text for text in records.told if "\x1b" in text]


class StrangeRecords(logging.Handler):
    """Notes each message that would look like several, or like a command to a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().isprintable():
            self.problems.append(record.getMessage())


@pytest.mark.parametrize("status", [400, 413, 429, 500])
def test_a_refusal_writes_no_second_line_into_a_log_or_error(project: Make, status: int) -> None:
    made = project()
    made.load([("tweets", "t0", "x"), ("tweets", "t1", "x")])
    claude = made.claude
    claude.__dict__["client"] = claude.client.with_options(max_retries=0)
    message = " ".join(HOSTILE.values())
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    for _ in range(5):
        made.wire.answer(POST, status, body, **{"retry-after": "900"})
    handler = StrangeRecords()
    ours = logging.getLogger("dagster.builtin")
    ours.addHandler(handler)

    told: list[str] = []
    try:
        made.start()
    except ClaudeBatchError as error:
        told.append(str(error))
    finally:
        ours.removeHandler(handler)

    assert [text for text in told if not text.isprintable()] == []
    assert handler.problems == []


@pytest.mark.parametrize("name", ["percent", "braces", "quotes", "SQL", "path", "terminal"])
def test_a_batch_id_is_no_path_and_no_sql(project: Make, name: str) -> None:
    made = project()
    made.load([("tweets", "t0", "x")])
    strange = f"msgbatch_{HOSTILE[name]}"

    def rename(body: bytes) -> bytes:
        return json.dumps({**json.loads(body), "id": strange}).encode()

    made.wire.change_answer(POST, rename)

    run = made.start()
    run.advance()

    assert made.sql("SELECT state, batch_id FROM claude_batch.chunks") == [("sending", None)]
    assert not any("msgbatch_" in call for call in made.wire.calls)
    made.claude.simulator.advance(timedelta(minutes=26))
    made.end_batches()
    assert run.advance() is None
    assert made.wire.posts() == 1
    assert made.answers() == ["t0"]


@pytest.mark.parametrize("key", list(HOSTILE.values())[:7], ids=NAMES[:7])
def test_a_partition_key_is_compared_and_never_run(project: Make, key: str) -> None:
    made = project(
        partitions_def=dg.DynamicPartitionsDefinition(name="corpora"), output=None, max_attempts=1
    )
    made.load([(key, "t0", "x"), ("other", "t1", "x")])
    made.script.ends_with("t0", "refusal")

    assert made.materialize(key).rows == ["t0"]
    assert made.failures("_partition") == [key]


def answer_hostile(params: dict[str, Any]) -> str:
    del params
    return "![x](http://tracker.example/x.png) [y](javascript:z) `a` <img src=q> a|b \\ {0}"


def test_an_answer_in_the_preview_is_neither_picture_nor_link(project: Make) -> None:
    made = project(output=None)
    made.load([("tweets", "t0", "x")])
    asset = build_claude_batch_asset("sentiment", **made.declared, wait="run")
    result = dg.materialize(
        [asset],
        partition_key="tweets",
        resources={"duckdb": made.duckdb, "claude_batch": _instant(made.claude.path)},
    )

    (event,) = result.asset_materializations_for_node("sentiment")
    (preview,) = (event.metadata["preview"].value,)
    assert r"!\[x\](http://tracker.example/x.png) \[y\](javascript:z) \`a\` &lt;img" in preview
    assert r"a\|b \\ {0}" in preview


def _instant(path: str) -> Any:
    return LocalClaudeBatchResource(
        path=path,
        answer="test_strangers:answer_hostile",
        processing_seconds=[0.0, 0.0],
        poll_interval_seconds=0.01,
    )
