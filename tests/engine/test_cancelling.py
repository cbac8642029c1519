"""Cancelling: nothing more is sent, what was paid for is landed, and one can begin anew at once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest
from kit import SINCE_DUCKDB_2, Project, RunOfTest, WiredClaude

from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.warehouse import Connection

Make = Callable[..., Project]
CREATE = "POST /v1/messages/batches"
CANCEL = "POST /v1/messages/batches/…/cancel"
GARBLED = [
    httpx2.Response(200, content=b"<html>", headers={"content-type": "application/json"}),
    httpx2.Response(200, text="<html>Sign in</html>"),
    httpx2.Response(200, json={"id": "…", "type": "error"}),
]


def _launch_after_giving_up(project: Project, *partitions: str) -> RunOfTest:
    """A run that finds the runs before it cancelled."""
    run = RunOfTest(project, project.engine())
    run.materializations = run.engine.attach(
        partitions or ("tweets",), MaterializationConfig(), is_given_up=bool
    )
    run.advance()
    return run


def _two_chunks(project: Make) -> Project:
    made = project(chunk_size=5, claude={"max_in_flight_requests": 5})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    return made


def test_what_was_given_up_is_not_gone_on_with(project: Make) -> None:
    made = _two_chunks(project)
    made.materialize()
    refresh = made.start(refresh=True)
    assert made.chunk_states() == {"landed": 2, "submitted": 1, "planned": 1}

    again = _launch_after_giving_up(made)

    assert made.chunk_states() == {"landed": 2, "submitted": 1, "dissolved": 1}
    made.end_batches()
    assert again.advance() is None
    assert len(made.answers()) == 10
    assert len(made.sent().batches) == 3
    assert refresh.engine.is_cancelled(refresh.materializations)


def test_what_was_out_is_taken_over_and_not_sent_again(project: Make) -> None:
    made = _two_chunks(project)
    made.start()

    again = _launch_after_giving_up(made)
    (now,) = again.materializations
    assert made.sql(
        "SELECT DISTINCT materialization_id FROM claude_batch.chunks "
        "WHERE state IN ('planned', 'submitted')"
    ) == [(now.materialization_id,)]
    made.end_batches()
    again.advance()
    made.end_batches()

    assert again.advance() is None
    assert made.sent().rows == sorted(f"t{n}" for n in range(10))
    assert len(made.answers()) == 10


def test_a_doubt_is_taken_over_too(tweets: Project) -> None:
    tweets.wire.lose_answer(CREATE)
    tweets.start()

    again = _launch_after_giving_up(tweets)
    tweets.claude.simulator.advance(timedelta(minutes=26))
    tweets.end_batches()

    assert again.advance() is None
    assert tweets.wire.posts() == 1
    assert len(tweets.answers()) == 10


def test_a_doubt_of_a_cancelled_materialization_is_never_sent_anew(tweets: Project) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadError)
    run = tweets.start()
    run.engine.cancel(run.materializations[0])
    tweets.claude.simulator.advance(timedelta(minutes=26))

    assert tweets.engine().settle([], is_alive=lambda _: False) == 0

    assert tweets.claude.simulator.batches() == []
    assert tweets.chunk_states() == {"given_up": 1}
    assert len(tweets.materialize().rows) == 10


def test_a_batch_found_after_its_materialization_was_cancelled_is_landed(
    tweets: Project,
) -> None:
    tweets.wire.lose_answer(CREATE)
    run = tweets.start()
    run.engine.cancel(run.materializations[0])
    tweets.claude.simulator.advance(timedelta(minutes=26))
    tweets.end_batches()

    assert tweets.engine().settle([], is_alive=lambda _: False) == 0

    assert len(tweets.answers()) == 10
    assert tweets.materialize().rows == []


def test_a_changed_row_whose_batch_was_cancelled_does_not_keep_its_old_answer(
    tweets: Project,
) -> None:
    tweets.materialize()
    tweets.change("t3", "changed")
    run = tweets.start()
    tweets.claude.cancel(tweets.claude.simulator.batches()[-1].id)
    tweets.end_batches()

    assert run.advance() is None

    assert "t3" not in tweets.answers()
    assert tweets.failures("id, _error_type, _retryable") == [("t3", "canceled", True)]
    assert tweets.materialize().rows == ["t3"]
    assert len(tweets.answers()) == 10


def test_a_batch_that_somebody_deleted_is_given_up_where_others_can_be_seen(
    project: Make,
) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    made.end_batches()
    made.claude.delete(made.claude.simulator.batches()[1].id)

    run.advance()
    assert made.chunk_states() == {"submitted": 1, "landed": 1}
    made.claude.simulator.advance(timedelta(minutes=61))
    run.advance()

    assert made.failures("DISTINCT _error_type") == ["results_expired"]
    made.end_batches()
    assert run.advance() is None
    assert len(made.answers()) == 10


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "still running"])
def test_a_batch_that_only_the_list_lacks_is_neither_given_up_nor_asked_again(
    project: Make, *, ended: bool
) -> None:
    made = project(chunk_size=1)
    made.load([("tweets", f"t{n}", "x") for n in range(6)])  # so many are listed
    run = made.start()
    hidden = made.claude.simulator.batches()[3].id
    made.claude.simulator.advance(timedelta(minutes=61))
    made.wire.hidden = {hidden}
    if ended:
        made.end_batches()

    waiting = run.advance()

    assert (waiting is None) == ended
    assert (made.failures(), made.wire.posts()) == ([], 6)
    made.end_batches()
    made.wire.hidden.clear()
    assert run.advance() is None
    assert len(made.answers()) == 6


def test_batches_of_another_workspace_are_waited_for(tweets: Project) -> None:
    run = tweets.start()
    ours = tweets.claude
    tweets.end_batches()
    tweets.claude = WiredClaude(path=str(tweets.directory / "another workspace"))
    tweets.claude.simulator.advance(timedelta(days=2))

    elsewhere = RunOfTest(tweets, tweets.engine(), run.materializations)
    waiting = elsewhere.advance()

    assert waiting is not None
    assert waiting.not_before is not None
    assert waiting.not_before > tweets.claude.now()
    assert tweets.claude.simulator.batches() == []
    tweets.claude = ours
    assert tweets.materialize().rows == []
    assert len(tweets.answers()) == 10


def test_a_refresh_in_doubt_that_was_given_up_is_not_sent_anew(tweets: Project) -> None:
    tweets.materialize()
    tweets.wire.lose_call(CREATE, httpx2.ReadError)
    tweets.start(refresh=True)

    again = _launch_after_giving_up(tweets)
    tweets.claude.simulator.advance(timedelta(minutes=26))

    assert again.advance() is None
    assert len(tweets.claude.simulator.batches()) == 1
    assert tweets.chunk_states() == {"landed": 1, "given_up": 1, "dissolved": 1}


def test_a_cancelled_refresh_asks_nothing_again_by_itself(tweets: Project) -> None:
    tweets.materialize()
    tweets.start(refresh=True)
    tweets.claude.cancel(tweets.claude.simulator.batches()[-1].id)

    again = _launch_after_giving_up(tweets)
    tweets.end_batches()

    assert again.advance() is None
    assert len(tweets.claude.simulator.batches()) == 2
    assert len(tweets.answers()) == 10


def test_a_deleted_batch_that_was_the_first_is_waited_for(project: Make) -> None:
    """Only older ones prove that the credentials are still those of its workspace."""
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    made.end_batches()
    made.claude.delete(made.claude.simulator.batches()[0].id)
    made.claude.simulator.advance(timedelta(minutes=61))

    waiting = run.advance()

    assert waiting is not None
    assert made.chunk_states() == {"submitted": 1, "landed": 1}
    made.claude.simulator.advance(timedelta(days=29))
    run.advance()
    assert made.failures("DISTINCT _error_type") == ["results_expired"]


@pytest.mark.parametrize(
    "since", [timedelta(), timedelta(minutes=1)], ids=["while it is cancelled", "when it has ended"]
)
def test_partitions_of_one_cancelled_run_are_each_answered_when_materialized_one_by_one(
    project: Make, since: timedelta
) -> None:
    made = project()
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in ("tweets", "reviews") for n in range(5)])
    together = made.start("tweets", "reviews")
    made.claude.simulator.advance(timedelta(hours=1))
    together.engine.cancel(together.materializations[0])
    made.claude.simulator.advance(since)

    tweets = made.start("tweets")
    reviews = made.start("reviews")
    assert reviews.waiting is not None
    for _ in range(6):
        made.end_batches()
        tweets.advance()
        reviews.advance()

    assert (tweets.waiting, reviews.waiting) == (None, None)
    assert made.failures() == []
    assert len(made.answers()) == 10
    assert len(made.claude.simulator.bill()) == 10


@SINCE_DUCKDB_2  # older ones cannot alter a table and change its rows in one transaction
def test_an_older_ledger_knows_by_its_clocks_what_a_materialization_awaits(project: Make) -> None:
    made = project()
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in ("tweets", "reviews") for n in range(5)])
    made.script.ends_with("reviews1", "canceled", None)
    together = made.start("tweets", "reviews")
    together.engine.close(together.materializations[0])
    made.claude.simulator.advance(timedelta(seconds=1))
    tweets, reviews = made.start("tweets"), made.start("reviews")
    made.take_ledger_back_to(3)

    made.engine(run_id=reviews.engine.run.run_id).attach(["reviews"], MaterializationConfig())

    _check_each_is_answered_once(made, reviews, tweets)


def _check_each_is_answered_once(project: Project, *runs: RunOfTest) -> None:
    """Let runs in turn come to their end, and see that each of ten rows was paid for once."""
    for _ in range(6):
        for run in runs:
            run.advance()
        project.end_batches()

    assert [run.waiting for run in runs] == [None] * len(runs)
    assert len(project.answers()) == 10
    assert len(project.claude.simulator.bill()) == 10


def test_a_run_for_two_that_await_the_same_batches_collects_them_once(project: Make) -> None:
    made = project(chunk_size=4)
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in ("tweets", "reviews") for n in range(5)])
    together = made.start("tweets", "reviews")
    together.engine.close(together.materializations[0])
    tweets, reviews = made.start("tweets"), made.start("reviews")

    both = made.start("tweets", "reviews")

    assert len(both.materializations) == 2
    _check_each_is_answered_once(made, both, tweets, reviews)


def test_what_is_sent_while_a_launch_waits_for_the_database_is_not_sent_again(
    project: Make,
) -> None:
    made = project()
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in ("tweets", "reviews") for n in range(5)])
    runs: list[RunOfTest] = []

    def meanwhile() -> None:
        made.claude.simulator.advance(timedelta(minutes=1))
        together = made.start("tweets", "reviews")
        together.engine.cancel(together.materializations[0])
        runs.append(made.start("tweets"))  # takes over what was out

    reviews = RunOfTest(made, made.engine())
    _let_wait_for_the_database(reviews, meanwhile)
    reviews.materializations = reviews.engine.attach(["reviews"], MaterializationConfig())
    (tweets,) = runs

    _check_each_is_answered_once(made, reviews, tweets)


def _let_wait_for_the_database(run: RunOfTest, meanwhile: Callable[[], None]) -> None:
    """Let all this happen between a run's wish for a connection and the next that it gets."""
    warehouse, left = run.engine.warehouse, [meanwhile]

    def connect() -> AbstractContextManager[Connection]:
        while left:
            left.pop()()
        return warehouse.open_connection()

    run.engine.warehouse = replace(warehouse, open_connection=connect)


def test_a_doubt_over_several_partitions_is_settled_for_each_of_them(project: Make) -> None:
    made = project()
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in ("tweets", "reviews") for n in range(5)])
    made.wire.lose_call(CREATE, httpx2.ReadError)
    together = made.start("tweets", "reviews")
    together.engine.cancel(together.materializations[0])

    tweets = made.start("tweets")
    reviews = made.start("reviews")
    made.claude.simulator.advance(timedelta(minutes=26))
    for _ in range(6):
        tweets.advance()
        reviews.advance()
        made.end_batches()

    assert (tweets.waiting, reviews.waiting) == (None, None)
    assert made.failures() == []
    assert len(made.answers()) == 10
    assert len(made.claude.simulator.bill()) == 10


def test_a_doubt_settled_for_a_cancelled_run_is_sent_anew_for_who_has_taken_it_over(
    tweets: Project,
) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadError)
    first = tweets.start()
    first.engine.cancel(first.materializations[0])
    work = first.engine.read(first.materializations)
    again = _launch_after_giving_up(tweets)
    tweets.claude.simulator.advance(timedelta(minutes=26))

    first.engine.reconcile(work)

    again.advance()
    tweets.end_batches()
    assert again.advance() is None
    assert len(tweets.answers()) == 10


def test_half_a_chunk_that_was_taken_over_is_not_lost(tweets: Project) -> None:
    first = tweets.engine()
    materializations = first.attach(["tweets"], MaterializationConfig())
    taken_over: list[RunOfTest] = []

    def too_large(request: httpx2.Request) -> httpx2.Response:
        del request
        first.close(materializations[0])
        taken_over.append(_launch_after_giving_up(tweets))
        return httpx2.Response(413)

    tweets.wire.faults.append((CREATE, too_large))
    first.advance(materializations)
    (again,) = taken_over
    again.advance()
    tweets.end_batches()

    assert again.advance() is None
    assert len(tweets.answers()) == 10


@pytest.mark.parametrize("garbled", GARBLED, ids=["no JSON", "a page", "no batch"])
def test_a_garbled_answer_to_a_cancel_keeps_no_other_batch_from_it(
    project: Make, garbled: httpx2.Response
) -> None:
    made = project(chunk_size=5)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    run = made.start()
    made.wire.faults.append((CANCEL, lambda _: garbled))

    run.engine.cancel(run.materializations[0])

    first, second = (batch.processing_status for batch in made.claude.simulator.batches())
    assert (first, second) == ("in_progress", "canceling")


@pytest.mark.parametrize("says", [429, 0], ids=["asked to wait", "unreachable"])
def test_what_is_cancelled_in_a_pause_between_two_tries_is_not_sent(
    tweets: Project, says: int
) -> None:
    engine = tweets.engine()
    materializations = engine.attach(["tweets"], MaterializationConfig())
    if says:
        tweets.wire.answer(CREATE, says, {}, **{"retry-after": "7"})
    else:
        tweets.wire.lose_call(CREATE, httpx2.ConnectError)
    engine.sleep = lambda _: engine.cancel(materializations[0])

    waiting = engine.advance(materializations)

    assert waiting is None
    assert tweets.wire.posts() == 1
    assert tweets.chunk_states() == {"dissolved": 1}


def test_what_another_run_works_on_too_is_not_cancelled(tweets: Project) -> None:
    first, second = tweets.start(run_id="first"), tweets.start(run_id="second")

    first.engine.cancel(first.materializations[0], unless=lambda runs: "second" in runs)

    (batch,) = tweets.claude.simulator.batches()
    assert batch.processing_status == "in_progress"
    tweets.end_batches()
    assert second.advance() is None
    assert not second.engine.is_cancelled(second.materializations)
    assert len(tweets.answers()) == 10


def test_what_a_launch_joins_just_before_it_is_cancelled_is_not_cancelled(tweets: Project) -> None:
    joined: list[RunOfTest] = []
    tweets.start(run_id="abandoned")

    def is_alive(run_id: str) -> bool:
        if not joined:  # whoever asks now learns nothing of the run that comes meanwhile
            joined.append(tweets.start(run_id="alive"))
            return False
        return run_id == "alive"

    tweets.engine().settle(["abandoned"], is_alive=is_alive)

    (alive,) = joined
    tweets.end_batches()
    assert alive.advance() is None
    assert not alive.engine.is_cancelled(alive.materializations)
    assert len(tweets.answers()) == 10
