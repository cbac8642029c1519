"""Doubt about a creation: adopted, told apart, given up, and second copies."""

import shutil
from collections.abc import Callable
from datetime import timedelta

import httpx2
import pytest
from kit import Project, RunOfTest

from dagster_claude_batch.errors import LedgerOverwrittenError
from dagster_claude_batch.ledger import MaterializationConfig

Make = Callable[..., Project]
CONFIG = MaterializationConfig()
CREATE = "POST /v1/messages/batches"
LONG_ENOUGH = timedelta(minutes=36)


def _lost_and_hidden(project: Project, **config: bool) -> RunOfTest:
    """A run whose batch exists, which neither its answer nor `list` shows."""
    before = {batch.id for batch in project.claude.simulator.batches()}
    project.wire.lose_answer(CREATE)
    run = project.start(**config)
    created = {batch.id for batch in project.claude.simulator.batches()}
    project.wire.hidden = created - before
    return run


def _sent_twice(project: Project) -> RunOfTest:
    """The same, so long after that all was sent anew."""
    run = _lost_and_hidden(project)
    project.claude.simulator.advance(LONG_ENOUGH)
    run.advance()
    assert project.chunk_states() == {"given_up": 1, "submitted": 1}
    return run


def test_a_batch_that_may_be_ours_is_waited_for_while_it_runs(tweets: Project) -> None:
    tweets.wire.lose_answer(CREATE)
    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)

    waiting = run.advance()

    (batch,) = tweets.claude.simulator.batches()
    assert waiting is not None
    assert waiting.batch_ids == (batch.id,)
    assert waiting.any_end
    assert waiting.not_before is not None
    assert waiting.not_before - tweets.claude.now() > timedelta(hours=23)
    assert tweets.chunk_states() == {"sending": 1}


def test_nothing_is_concluded_before_all_that_there_can_be_must_show(tweets: Project) -> None:
    tweets.wire.lose_answer(CREATE)
    run = tweets.start()
    tweets.end_batches()

    waiting = run.advance()

    assert tweets.chunk_states() == {"sending": 1}
    assert waiting is not None
    assert waiting.not_before is not None
    assert waiting.not_before - tweets.claude.now() < timedelta(minutes=26)
    tweets.claude.simulator.advance(LONG_ENOUGH)
    assert run.advance() is None
    assert tweets.wire.posts() == 1
    assert len(tweets.answers()) == 10


@pytest.mark.parametrize(("minutes", "posts"), [(24, 1), (26, 2)])
def test_nothing_is_sent_anew_before_the_clocks_of_both_machines_may_be_wrong(
    tweets: Project, minutes: int, posts: int
) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadTimeout)
    run = tweets.start()
    tweets.claude.simulator.advance(timedelta(minutes=minutes))

    run.advance()

    assert tweets.wire.posts() == posts


def test_other_chunks_are_sent_while_one_is_in_doubt(project: Make) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    made.wire.lose_answer(CREATE)

    run = made.start()
    assert made.chunk_states() == {"sending": 1, "planned": 1}
    run.advance()

    assert made.chunk_states() == {"sending": 1, "submitted": 1}


def test_two_batches_of_one_size_in_doubt_are_told_apart(project: Make) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    for _ in range(2):
        made.wire.lose_answer(CREATE)
    run = made.start()
    run.advance()
    assert made.chunk_states() == {"sending": 2}
    made.claude.simulator.advance(LONG_ENOUGH)
    made.end_batches()

    assert run.advance() is None
    assert made.wire.posts() == 2
    assert len(made.answers()) == 10
    assert made.sql("SELECT count(DISTINCT batch_id) FROM claude_batch.chunks") == [(2,)]


@pytest.mark.parametrize("results", [b"", b"not one line of JSON\n"], ids=["empty", "garbled"])
def test_results_that_cannot_be_read_disprove_nothing(tweets: Project, results: bytes) -> None:
    tweets.wire.lose_answer(CREATE)
    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    tweets.end_batches()
    tweets.wire.change_answer("GET /v1/messages/batches/…/results", lambda _: results)

    waiting = run.advance()

    assert waiting is not None
    assert tweets.chunk_states() == {"sending": 1}
    assert run.advance() is None
    assert tweets.wire.posts() == 1


def test_a_second_copy_that_appears_while_running_is_cancelled_and_recorded(
    tweets: Project,
) -> None:
    run = _sent_twice(tweets)
    tweets.wire.hidden.clear()

    run.advance()

    first, second = tweets.claude.simulator.batches()
    assert first.cancel_initiated_at is not None
    assert second.cancel_initiated_at is None
    assert tweets.sql("SELECT batch_id FROM claude_batch.chunks WHERE is_copy") == [(first.id,)]
    tweets.end_batches()
    assert run.advance() is None
    assert len(tweets.answers()) == 10
    assert tweets.failures() == []
    assert tweets.chunk_states() == {"landed": 2}


def test_a_second_copy_that_has_answered_makes_the_other_one_needless(tweets: Project) -> None:
    run = _lost_and_hidden(tweets)
    tweets.end_batches()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    run.advance()
    first, second = tweets.claude.simulator.batches()
    assert (first.ended_at is None, second.ended_at is None) == (False, True)
    tweets.wire.hidden.clear()

    run.advance()

    assert tweets.answers("DISTINCT _batch_id") == [first.id]
    assert tweets.claude.simulator.batches()[1].cancel_initiated_at is not None
    tweets.end_batches()
    assert run.advance() is None
    assert len(tweets.answers()) == 10
    assert tweets.failures() == []


def test_what_a_second_copy_cost_stands_in_the_ledger(tweets: Project) -> None:
    run = _sent_twice(tweets)
    tweets.end_batches()
    tweets.wire.hidden.clear()

    assert run.advance() is None

    billed = tweets.claude.simulator.bill()
    assert len(billed) == 20
    assert tweets.sql(
        "SELECT count(*), sum(_input_tokens) FROM claude_batch.requests_1 WHERE _input_tokens > 0"
    ) == [(20, sum(each.usage["input_tokens"] for each in billed))]


def test_a_second_copy_is_found_by_the_next_materialization_too(tweets: Project) -> None:
    run = _sent_twice(tweets)
    tweets.claude.simulator.end_batches()
    run.advance()
    tweets.wire.hidden.clear()

    assert tweets.materialize().rows == []

    assert tweets.chunk_states() == {"landed": 2}
    assert tweets.sql("SELECT count(*) FROM claude_batch.requests_1 WHERE _outcome = 'answer'") == [
        (20,)
    ]


def test_a_batch_of_others_is_never_taken_for_a_second_copy(tweets: Project) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadTimeout)
    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    run.advance()
    tweets.send_as_a_stranger(10)

    run.advance()
    tweets.end_batches()
    run.advance()

    assert [batch.cancel_initiated_at for batch in tweets.claude.simulator.batches()] == [None] * 2
    assert tweets.chunk_states() == {"given_up": 1, "landed": 1}


def test_an_answer_that_comes_after_all_was_sent_anew_is_a_second_copy(tweets: Project) -> None:
    other = tweets.engine()

    def arrives_late(request: httpx2.Request) -> httpx2.Response:
        request.read()
        tweets.claude.simulator.advance(LONG_ENOUGH)
        other.advance(other.attach(["tweets"], CONFIG))
        return tweets.wire.transport.handle_request(request)

    tweets.wire.faults.append((CREATE, arrives_late))

    run = tweets.start()

    sent_anew, late = tweets.claude.simulator.batches()
    assert tweets.sql("SELECT batch_id, is_copy FROM claude_batch.chunks ORDER BY ALL DESC") == (
        sorted([(late.id, True), (sent_anew.id, False)], reverse=True)
    )
    run.advance()
    assert tweets.claude.simulator.batches()[1].cancel_initiated_at is not None
    assert tweets.claude.simulator.batches()[0].cancel_initiated_at is None


def test_one_call_that_made_two_batches_is_seen(tweets: Project) -> None:
    def twice(request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        for _ in range(2):
            again = httpx2.Request(
                request.method, request.url, headers=request.headers, content=body
            )
            tweets.wire.transport.handle_request(again).read()
        raise httpx2.ReadTimeout("what stands between has tried again", request=request)

    tweets.wire.faults.append((CREATE, twice))
    run = tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    tweets.end_batches()

    assert run.advance() is None

    assert tweets.chunk_states() == {"landed": 2}
    assert len(tweets.answers()) == 10
    assert tweets.sql("SELECT count(*) FROM claude_batch.requests_1 WHERE _outcome = 'answer'") == [
        (20,)
    ]


def test_the_only_answer_to_a_row_that_changed_is_kept_if_it_is_a_second_copys(
    tweets: Project,
) -> None:
    tweets.materialize()
    for number in range(10):
        tweets.change(f"t{number}", "changed")
    tweets.wire.lose_answer(CREATE)
    run = tweets.start()
    tweets.wire.hidden = {tweets.claude.simulator.batches()[-1].id}
    tweets.end_batches()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    run.advance()
    tweets.wire.hidden.clear()

    run.advance()
    tweets.end_batches()

    assert run.advance() is None
    assert len(tweets.answers()) == 10
    assert tweets.failures() == []
    assert tweets.materialize().rows == []


def test_a_strangers_batch_that_was_taken_for_a_copy_is_let_go(tweets: Project) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadTimeout)
    run = tweets.start()
    tweets.send_as_a_stranger(10)
    tweets.wire.hidden = {tweets.claude.simulator.batches()[-1].id}
    tweets.claude.simulator.advance(LONG_ENOUGH)
    run.advance()
    tweets.wire.hidden.clear()
    run.advance()
    tweets.end_batches()

    assert run.advance() is None
    assert tweets.chunk_states() == {"given_up": 1, "landed": 1}
    assert len(tweets.answers()) == 10


def test_an_answer_that_names_another_batch_than_the_one_found_meanwhile_is_recorded_too(
    tweets: Project,
) -> None:
    other = tweets.engine()

    def twice(request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        again = httpx2.Request(request.method, request.url, headers=request.headers, content=body)
        tweets.wire.transport.handle_request(again).read()
        tweets.claude.simulator.advance(LONG_ENOUGH)
        tweets.end_batches()
        other.advance(other.attach(["tweets"], CONFIG))
        return tweets.wire.transport.handle_request(request)

    tweets.wire.faults.append((CREATE, twice))
    tweets.start()

    found, late = (batch.id for batch in tweets.claude.simulator.batches())
    assert tweets.sql("SELECT batch_id, is_copy FROM claude_batch.chunks") == [
        (found, False),
        (late, True),
    ]
    tweets.end_batches()
    assert tweets.materialize().rows == []
    assert tweets.chunk_states() == {"landed": 2}
    assert len(tweets.answers()) == 10


def test_a_second_copy_of_a_cancelled_refresh_takes_no_later_answers_place(tweets: Project) -> None:
    tweets.materialize()
    run = _lost_and_hidden(tweets, refresh=True)
    tweets.claude.simulator.advance(LONG_ENOUGH)
    run.engine.cancel(run.materializations[0])
    tweets.engine().settle([], is_alive=lambda _: False)
    assert tweets.chunk_states()["given_up"] == 1
    tweets.materialize(refresh=True)
    before = tweets.answers("id, _batch_id")

    tweets.wire.hidden.clear()
    tweets.end_batches()
    tweets.engine().settle([], is_alive=lambda _: False)

    assert tweets.chunk_states() == {"landed": 3}
    assert tweets.answers("id, _batch_id") == before


@pytest.mark.opens_anew
def test_what_another_program_has_overwritten_is_found_again(project: Make) -> None:
    """DuckDB 2.0 writes over what another process commits while it opens the file."""
    two = project(chunk_size=5)
    two.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    first = two.path.with_name("first")

    def keep(request: httpx2.Request) -> httpx2.Response:
        shutil.copy(two.path, first)
        return two.wire.transport.handle_request(request)

    def overwrite(request: httpx2.Request) -> httpx2.Response:
        shutil.copy(first, two.path)
        return two.wire.transport.handle_request(request)

    two.wire.faults += [(CREATE, keep), (CREATE, overwrite)]
    run = two.start()
    assert two.sql("SELECT state, batch_id IS NULL FROM claude_batch.chunks ORDER BY chunk_id") == [
        ("sending", True),  # the first batch's id is gone
        ("submitted", False),  # that the second was to be sent was gone, too
    ]
    two.claude.simulator.advance(LONG_ENOUGH)
    two.end_batches()

    assert run.advance() is None
    assert two.wire.posts() == 2
    assert len(two.answers()) == 10


@pytest.mark.opens_anew
def test_a_batch_of_which_the_ledger_has_lost_all_is_cancelled_and_named(tweets: Project) -> None:
    tweets.materialize()
    tweets.load([("tweets", f"u{n}", f"Other tweet {n}") for n in range(10)])
    before = tweets.path.with_name("before")
    shutil.copy(tweets.path, before)

    def overwrite(request: httpx2.Request) -> httpx2.Response:
        shutil.copy(before, tweets.path)
        return tweets.wire.transport.handle_request(request)

    tweets.wire.faults.append((CREATE, overwrite))
    with pytest.raises(LedgerOverwrittenError) as raised:
        tweets.start()

    lost = tweets.claude.simulator.batches()[1]
    assert lost.id in str(raised.value)
    assert lost.cancel_initiated_at is not None
    tweets.end_batches()
    assert len(tweets.materialize().rows) == 10
    assert len(tweets.answers()) == 10
