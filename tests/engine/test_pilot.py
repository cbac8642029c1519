"""A pilot: a few rows first, and the rest only if they come back well, without anyone waiting."""

from collections.abc import Callable

import pytest
from kit import Project, RunOfTest

from dagster_claude_batch.errors import (
    AccountHaltedError,
    MaterializationDoneError,
    PilotFailedError,
)
from dagster_claude_batch.ledger import MaterializationConfig

Make = Callable[..., Project]


@pytest.fixture
def piloted(project: Make) -> Project:
    """Ten rows, of which three are sent first; a third of them may fail."""
    made = project(pilot=3, max_failure_rate=0.34, max_attempts=2)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    return made


def _to_the_end(run: RunOfTest) -> None:
    for _ in range(10):
        if run.waiting is None:
            return
        run.project.end_batches()
        run.advance()
    raise AssertionError("it never came to an end")


def test_the_rest_is_sent_when_the_pilot_is_back(piloted: Project) -> None:
    run = piloted.start()
    assert piloted.sent().batches == [["t0", "t1", "t2"]]

    piloted.end_batches()
    run.advance()
    assert [len(batch) for batch in piloted.sent().batches] == [3, 7]

    _to_the_end(run)
    assert len(piloted.answers()) == 10
    assert run.report().failed == 0


def test_a_failure_that_is_tolerated_is_retried_beside_the_rest(piloted: Project) -> None:
    piloted.script.ends_with("1", "expired", None)

    piloted.materialize()

    assert [sorted(batch)[:2] for batch in piloted.sent().batches] == [
        ["t0", "t1"],
        ["t3", "t4"],
        ["t1"],
    ]
    assert len(piloted.answers()) == 10


def test_failures_that_pass_with_another_attempt_stop_nothing(piloted: Project) -> None:
    for word in ("0", "1", "2"):
        piloted.script.ends_with(word, "expired", None)

    piloted.materialize()

    assert [len(batch) for batch in piloted.sent().batches] == [3, 3, 7]
    assert len(piloted.answers()) == 10


def test_a_pilot_that_fails_stops_the_rest_and_says_so(piloted: Project) -> None:
    piloted.script.ends_with("0", "refusal")
    piloted.script.ends_with("1", "refusal")
    run = piloted.start(run_id="the-run")
    piloted.end_batches()

    with pytest.raises(PilotFailedError) as raised:
        run.advance()

    said = str(raised.value)
    assert "2 of its 3 rows failed (refusal); 7 rows were not sent" in said
    assert "34.00%" in said
    assert "main.sentiment_failures" in said
    assert piloted.answers() == ["t2"]
    assert piloted.chunk_states() == {"landed": 1, "dissolved": 1}
    assert len(piloted.claude.simulator.bill()) == 3


def test_whoever_asks_for_a_failed_pilot_hears_of_it(piloted: Project) -> None:
    piloted.script.ends_with("0", "refusal")
    piloted.script.ends_with("1", "refusal")
    run = piloted.start(run_id="the-run")
    other = piloted.start(run_id="another-run")
    piloted.end_batches()
    for each in (run, other):
        with pytest.raises(PilotFailedError):
            each.advance()

    with pytest.raises(PilotFailedError):
        piloted.start(run_id="the-run")
    with pytest.raises(MaterializationDoneError):
        piloted.engine(run_id="retry", retry_of="the-run").attach(
            ["tweets"], MaterializationConfig()
        )
    assert piloted.wire.posts() == 1


def test_the_next_materialization_begins_with_a_pilot_of_what_is_left(piloted: Project) -> None:
    piloted.script.ends_with("0", "refusal")
    piloted.script.ends_with("1", "refusal")
    run = piloted.start()
    piloted.end_batches()
    with pytest.raises(PilotFailedError):
        run.advance()
    piloted.script.ends.clear()

    piloted.materialize()

    assert [len(batch) for batch in piloted.sent().batches] == [3, 3, 4]
    assert len(piloted.answers()) == 8


def test_few_rows_are_all_of_a_pilot(piloted: Project) -> None:
    piloted.declare(pilot=10)

    piloted.materialize()

    assert [len(batch) for batch in piloted.sent().batches] == [10]


def test_rows_that_ask_what_the_pilot_asks_are_answered_with_it(project: Make) -> None:
    made = project(pilot=1, prompt="Rate it: {{ text }}")
    made.load([("tweets", f"t{n}", "same" if n % 2 else f"text {n}") for n in (1, 2, 3)])
    run = made.start()
    made.end_batches()

    run.advance()

    assert made.answers() == ["t1", "t3"]
    _to_the_end(run)
    assert len(made.claude.simulator.bill()) == 2


def test_a_limit_is_kept(piloted: Project) -> None:
    piloted.materialize(limit=5)

    assert [len(batch) for batch in piloted.sent().batches] == [3, 2]


def test_what_is_held_back_is_planned_by_nobody_else(piloted: Project) -> None:
    run = piloted.start()
    other = piloted.start()
    piloted.end_batches()
    run.advance()
    other.advance()

    assert [len(batch) for batch in piloted.sent().batches] == [3, 7]
    _to_the_end(run)


def test_cancelled_with_its_pilot_out_nothing_more_is_sent(piloted: Project) -> None:
    run = piloted.start()
    run.engine.cancel(run.materializations[0])
    piloted.end_batches()
    run.engine.settle([], is_alive=lambda _: False)

    assert piloted.chunk_states() == {"landed": 1, "dissolved": 1}
    assert len(piloted.materialize().rows) == 10


def test_a_row_that_changes_while_the_pilot_is_out_is_asked_as_it_is(piloted: Project) -> None:
    run = piloted.start()
    piloted.change("t7", "Tweet number 7, changed")
    piloted.end_batches()
    run.advance()
    _to_the_end(run)

    assert len(piloted.answers()) == 10
    assert piloted.materialize().rows == []


def test_what_is_held_back_too_long_expires(piloted: Project) -> None:
    piloted.declare(pilot=3, max_wait_hours=1)
    run = piloted.start()
    piloted.claude.simulator.advance(run.engine.declaration.max_wait)
    piloted.end_batches()

    _to_the_end(run)

    assert len(piloted.failures()) == 7
    assert {kind for _, kind in piloted.failures()} == {"expired"}


def test_a_dry_run_shows_all_that_may_be_sent(piloted: Project) -> None:
    rehearsal = piloted.engine().rehearse(["tweets"], MaterializationConfig())

    assert (rehearsal.rows, rehearsal.chunks) == (10, 2)
    assert piloted.wire.posts() == 0


def test_a_pilot_is_judged_by_its_own_rows(project: Make) -> None:
    made = project(pilot=3, max_failure_rate=0.5, max_attempts=1)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(20)])
    for word in ("3", "4", "5"):
        made.script.ends_with(word, "refusal")
    made.start(limit=3)
    run = made.start()  # takes over the three that are out
    made.end_batches()

    with pytest.raises(PilotFailedError, match="3 of its 3 rows"):
        run.advance()


def test_a_pilot_whose_rows_have_left_is_followed_by_another(project: Make) -> None:
    made = project(pilot=1)
    made.load([("tweets", f"t{n}", f"Tweet {n}") for n in range(5)])
    run = RunOfTest(made, made.engine())
    run.materializations = run.engine.attach(["tweets"], MaterializationConfig())
    made.remove("t0")

    run.advance()
    assert made.sent().batches == [["t1"]]

    made.end_batches()
    run.advance()
    assert [len(batch) for batch in made.sent().batches] == [1, 3]
    made.end_batches()
    assert run.advance() is None


def test_a_pilot_that_others_have_asked_in_vain_is_asked_by_itself(project: Make) -> None:
    made = project(prompt="Rate it now: {{ text }}", pilot=1, max_attempts=1)
    made.load([("tweets", "t1", "bad")])
    for key, text in (("r1", "bad"), ("r2", "x"), ("r3", "y")):
        made.sql("INSERT INTO texts VALUES ('reviews', $key, $text)", key=key, text=text)
    made.script.ends_with("bad", "refusal")
    late = RunOfTest(made, made.engine())
    late.materializations = late.engine.attach(["reviews"], MaterializationConfig())
    tweets = made.start("tweets")
    late.advance()
    made.end_batches()
    tweets.advance()
    late.advance()
    made.end_batches()

    with pytest.raises(PilotFailedError, match="1 of its 1 rows"):
        late.advance()

    assert [len(batch) for batch in made.sent().batches] == [1, 1]


def test_a_halted_account_says_how_many_rows_are_left(project: Make) -> None:
    made = project(pilot=3)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    for word in ("0", "1", "2"):
        made.script.ends_with(word, "errored:billing_error")
    run = made.start()
    made.end_batches()

    with pytest.raises(AccountHaltedError, match=" 10 rows"):
        run.advance()
