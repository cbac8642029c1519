"""Downloads that break, come short, or are not there: nothing paid for is lost by them."""

import json
from collections.abc import Callable
from datetime import timedelta

import anthropic
import httpx2
import pytest
from anthropic.types.messages import MessageBatch
from kit import Project

from dagster_claude_batch.errors import ResultsUnavailableError
from dagster_claude_batch.results import fetch

RESULTS = "GET /v1/messages/batches/…/results"

Change = Callable[[list[bytes]], list[bytes]]


def _sent(project: Project) -> MessageBatch:
    """Ten requests are out and have ended; the SDK's own retries, which sleep, are off."""
    claude = project.claude
    claude.__dict__["client"] = claude.client.with_options(max_retries=0)
    project.start(run_id="the-run")
    project.end_batches()
    (batch,) = claude.simulator.batches()
    return claude.retrieve(batch.id)


def _fetch(project: Project, batch: MessageBatch) -> list[str | None]:
    """Outcomes by ordinal."""
    ((nonce,),) = project.sql("SELECT nonce FROM claude_batch.chunks")
    output = project.asset.declaration.output
    staged = fetch(project.claude, batch, output, nonce=nonce, sleep=lambda _: None)
    staged.close()
    rows = sorted((row["ordinal"], row["outcome"]) for row in staged.outcomes.to_pylist())
    assert [ordinal for ordinal, _ in rows] == sorted({ordinal for ordinal, _ in rows})
    return [outcome for _, outcome in rows]


def _downloads(project: Project) -> int:
    return sum(call.endswith("/results") for call in project.wire.calls)


def _shorten(project: Project, change: Change) -> None:
    project.wire.change_answer(
        RESULTS, lambda body: b"".join(change(body.splitlines(keepends=True)))
    )


@pytest.mark.parametrize(
    "error", [httpx2.RemoteProtocolError, httpx2.ReadTimeout, httpx2.ReadError]
)
@pytest.mark.parametrize("after", [0, 700, 3_000])
def test_a_download_that_breaks_is_repeated(
    tweets: Project, error: type[httpx2.TransportError], after: int
) -> None:
    batch = _sent(tweets)
    tweets.wire.break_answer(RESULTS, after=after, error=error)
    tweets.wire.break_answer(RESULTS, after=after, error=error)

    assert _fetch(tweets, batch) == [None] * 10
    assert _downloads(tweets) == 3


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_download_that_is_refused_for_now_is_repeated(tweets: Project, status: int) -> None:
    batch = _sent(tweets)
    tweets.wire.answer(RESULTS, status, {})
    tweets.wire.answer(RESULTS, status, {})

    assert _fetch(tweets, batch) == [None] * 10


def test_a_download_without_a_connection_is_repeated(tweets: Project) -> None:
    batch = _sent(tweets)
    tweets.wire.lose_call(RESULTS, httpx2.ConnectError)
    tweets.wire.lose_answer(RESULTS)

    assert _fetch(tweets, batch) == [None] * 10


def test_results_that_break_each_time_are_unavailable_and_not_missing(tweets: Project) -> None:
    batch = _sent(tweets)
    for _ in range(3):
        tweets.wire.break_answer(RESULTS, after=2_000, error=httpx2.RemoteProtocolError)

    with pytest.raises(ResultsUnavailableError, match="RemoteProtocolError") as caught:
        _fetch(tweets, batch)

    assert (caught.value.batch_id, caught.value.is_gone) == (batch.id, False)
    assert _fetch(tweets, batch) == [None] * 10


def test_what_several_broken_downloads_bring_is_put_together(tweets: Project) -> None:
    batch = _sent(tweets)
    _shorten(tweets, lambda lines: lines[:6])
    _shorten(tweets, lambda lines: lines[6:])

    assert _fetch(tweets, batch) == [None] * 10
    assert _downloads(tweets) == 2


def test_a_line_once_read_is_kept_although_later_downloads_are_shorter(tweets: Project) -> None:
    batch = _sent(tweets)
    tweets.claude.simulator.advance(timedelta(hours=1))
    for number in (9, 5, 0):
        _shorten(tweets, lambda lines, number=number: lines[:number])

    assert _fetch(tweets, batch) == [None] * 9


def test_a_download_that_ends_within_a_line_is_repeated(tweets: Project) -> None:
    batch = _sent(tweets)
    tweets.wire.change_answer(RESULTS, lambda body: body[:-20])

    assert _fetch(tweets, batch) == [None] * 10


def test_a_line_that_was_spoilt_on_the_way_is_downloaded_again(tweets: Project) -> None:
    batch = _sent(tweets)
    _shorten(tweets, lambda lines: [lines[0][:90] + b"\n", *lines[1:]])

    assert _fetch(tweets, batch) == [None] * 10


def test_unknown_lines_do_not_hide_that_one_of_ours_is_missing(tweets: Project) -> None:
    batch = _sent(tweets)
    foreign = b'{"custom_id": "someone-9", "result": {"type": "expired"}}\n'
    ((nonce,),) = tweets.sql("SELECT nonce FROM claude_batch.chunks")
    beyond = foreign.replace(b"someone-9", nonce.encode() + b"-10")
    _shorten(tweets, lambda lines: [*lines[:9], foreign, beyond, lines[0]])

    assert _fetch(tweets, batch) == [None] * 10


@pytest.mark.parametrize(
    "body",
    [
        b"<html><body>Please log in</body></html>",
        b'{"type": "error", "error": {"type": "api_error", "message": "oops"}}',
        b'{"custom_id": "someone-0", "result": {"type": "expired"}}\n',
    ],
    ids=["a page", "an error", "another batch"],
)
def test_what_is_no_results_file_of_this_batch_makes_no_row_missing(
    tweets: Project, body: bytes
) -> None:
    batch = _sent(tweets)
    for _ in range(3):
        tweets.wire.change_answer(RESULTS, lambda _: body)

    with pytest.raises(ResultsUnavailableError, match="no line of this batch"):
        _fetch(tweets, batch)


def test_results_that_are_not_yet_there_are_unavailable(tweets: Project) -> None:
    batch = _sent(tweets)
    tweets.wire.answer(RESULTS, 404, {"error": {"type": "not_found_error", "message": "Later"}})

    with pytest.raises(ResultsUnavailableError, match="404 Later") as caught:
        _fetch(tweets, batch)

    assert not caught.value.is_gone
    assert _downloads(tweets) == 1


def test_archived_results_are_gone(tweets: Project) -> None:
    batch = _sent(tweets)
    tweets.claude.simulator.advance(timedelta(days=30))

    with pytest.raises(ResultsUnavailableError) as caught:
        _fetch(tweets, batch)

    assert caught.value.is_gone


def test_results_of_a_deleted_batch_are_not_known_to_be_gone(tweets: Project) -> None:
    batch = _sent(tweets)
    tweets.claude.delete(batch.id)

    with pytest.raises(ResultsUnavailableError) as caught:
        _fetch(tweets, batch)

    assert not caught.value.is_gone


@pytest.mark.parametrize("garbled", [b"", b"oops", b"[]", b'{"id": 7}', b'{"data": []}'])
def test_a_garbled_look_at_the_batch_makes_nothing_missing_or_gone(
    tweets: Project, garbled: bytes
) -> None:
    batch = _sent(tweets)
    for _ in range(3):
        tweets.wire.change_answer(f"GET /v1/messages/batches/{batch.id}", lambda _: garbled)

    with pytest.raises(ResultsUnavailableError) as caught:
        _fetch(tweets, batch)

    assert not caught.value.is_gone
    tweets.wire.faults.clear()
    assert _fetch(tweets, batch) == [None] * 10


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_no_reason_to_wait(tweets: Project, status: int) -> None:
    batch = _sent(tweets)
    tweets.wire.answer(RESULTS, status, {})

    with pytest.raises(anthropic.APIStatusError):
        _fetch(tweets, batch)


def test_a_reason_from_the_wire_stays_on_one_line(tweets: Project) -> None:
    batch = _sent(tweets)
    told = {
        "error": {"type": "not_found_error", "message": "a\nERROR b\x1b[31m %s {0}" + "x" * 999}
    }
    tweets.wire.answer(RESULTS, 404, told)

    with pytest.raises(ResultsUnavailableError) as caught:
        _fetch(tweets, batch)

    assert str(caught.value).isprintable()
    assert r"404 a\nERROR b\x1b[31m %s {0}x" in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_results_that_succeeded_less_often_than_was_said_are_downloaded_again(
    tweets: Project,
) -> None:
    run = tweets.start()
    tweets.end_batches()

    def stale(body: bytes) -> bytes:
        lines = [json.loads(line) for line in body.splitlines()]
        lines[0]["result"] = {"type": "expired"}
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    tweets.wire.change_answer(RESULTS, stale)

    assert run.advance() is None
    assert len(tweets.answers()) == 10
    assert len(tweets.claude.simulator.batches()) == 1
