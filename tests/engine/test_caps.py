"""Caps: nothing is sent that could go over them, and what turns out cheaper makes room."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from kit import Project, RunOfTest

from dagster_claude_batch import Image, Text
from dagster_claude_batch.budget import Budget
from dagster_claude_batch.caps import Cap
from dagster_claude_batch.errors import DeclarationError, UncappableError
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.workbench import Findings

Make = Callable[..., Project]

INPUT, OUTPUT = Decimal("0.05e-6"), Decimal("0.25e-6")
"""USD for a token of the default model in a batch."""

ONE_REQUEST = Decimal("0.0004")
"""More than a request of these tests may cost, and less than two."""


@dataclass
class Watched(httpx2.BaseTransport):
    """Adds up, whenever a batch is created, what all that was ever sent may come to."""

    project: Project
    real: httpx2.BaseTransport
    worst: list[Decimal] = field(default_factory=list[Decimal])

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self.real.handle_request(request)
        if request.method == "POST" and request.url.path.endswith("/batches"):
            self.worst.append(spent(self.project) + self._out())
        return response

    def _out(self) -> Decimal:
        simulator = self.project.claude.simulator
        return sum(
            (
                most(params)
                for batch in simulator.batches()
                if batch.ended_at is None
                for _, params in simulator.requests(batch.id)
            ),
            Decimal(0),
        )


def most(params: dict[str, Any]) -> Decimal:
    """What a request may cost by what it says: no token is shorter than a byte."""
    return params["max_tokens"] * OUTPUT + len(json.dumps(params)) * INPUT


def spent(project: Project) -> Decimal:
    """What the API has billed."""
    return sum(
        (
            each.usage["input_tokens"] * INPUT + each.usage["output_tokens"] * OUTPUT
            for each in project.claude.simulator.bill()
        ),
        Decimal(0),
    )


def watch(project: Project) -> Watched:
    watched = Watched(project, project.wire.transport)
    project.wire.transport = watched
    return watched


def _load(project: Project, rows: int) -> Project:
    project.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(rows)])
    return project


def _to_the_end(run: RunOfTest, *, most: int = 60) -> int:
    """How often the run had to wait."""
    for waits in range(most):
        if run.waiting is None:
            return waits
        run.project.end_batches()
        run.advance()
    raise AssertionError("it never came to an end")


def test_what_turns_out_cheaper_makes_room_until_all_is_answered(project: Make) -> None:
    made = _load(project(), 30)
    watched = watch(made)
    cap = 6 * ONE_REQUEST

    run = made.start(max_cost_usd=float(cap))
    waits = _to_the_end(run)

    assert waits > 1
    assert len(made.answers()) == 30
    assert made.sent().rows == sorted(f"t{n}" for n in range(30))
    assert max(watched.worst) <= cap
    assert run.report().left == 0


def test_what_does_not_fit_is_left_when_nothing_is_out_any_more(project: Make) -> None:
    made = _load(project(), 30)
    watched = watch(made)
    cap = Decimal("1.02") * ONE_REQUEST

    run = made.start(max_cost_usd=float(cap))
    assert run.waiting is not None
    _to_the_end(run)

    report, answered = run.report(), len(made.answers())
    assert 0 < answered < 30
    assert (report.left, report.answered, report.failed) == (30 - answered, answered, 0)
    assert "`max_cost_usd` allows 0.000408 USD" in (report.capped or "")
    assert max(watched.worst) <= cap
    assert made.chunk_states().keys() == {"landed", "dissolved"}
    assert made.sql("SELECT state FROM claude_batch.materializations") == [("done",)]


def test_the_next_materialization_sends_what_was_left_on_a_budget_of_its_own(
    project: Make,
) -> None:
    made = _load(project(), 30)
    run = made.start(max_cost_usd=float(ONE_REQUEST))
    _to_the_end(run)
    answered = len(made.answers())

    sent = made.materialize()

    assert len(sent.rows) == 30 - answered
    assert len(made.answers()) == 30
    assert made.sql("SELECT count(*) FROM claude_batch.materializations") == [(2,)]


def test_a_cap_that_allows_nothing_sends_nothing(project: Make) -> None:
    made = _load(project(), 3)

    run = made.start(max_cost_usd=0.000001)

    assert run.waiting is None
    assert made.wire.posts() == 0
    assert run.report().left == 3


def test_retries_count(project: Make) -> None:
    made = _load(project(max_attempts=10), 1)
    made.script.ends_with("t0", "invalid_output")
    watched = watch(made)
    cap = Decimal("0.00034")

    run = made.start(max_cost_usd=float(cap))
    _to_the_end(run)

    assert 1 < made.wire.posts() < 10
    assert max(watched.worst) <= cap
    assert made.failures() == [("t0", "invalid_output")]
    assert run.report().left == 0  # it has been asked, and failed


def test_rows_that_changed_and_are_left_keep_their_earlier_answer(project: Make) -> None:
    made = _load(project(), 2)
    made.materialize()
    made.change("t1", "Another text")

    run = made.start(max_cost_usd=0.000001)

    assert run.report().left == 1
    assert len(made.answers()) == 2


def test_a_refresh_counts_what_it_could_not_ask_again(project: Make) -> None:
    made = _load(project(), 2)
    made.materialize()

    run = made.start(refresh=True, max_cost_usd=0.000001)

    assert run.report().left == 2


def test_only_partitions_with_rows_that_are_left_are_short(project: Make) -> None:
    made = project()
    made.load([("reviews", f"r{n}", "fine") for n in range(2)])
    made.load([("reviews", "r0", "fine"), *(("tweets", f"t{n}", f"Tweet {n}") for n in range(20))])
    run = made.start("reviews", "tweets", max_cost_usd=0.00036)
    _to_the_end(run)

    reviews, tweets = run.report("reviews"), run.report("tweets")
    assert (reviews.left, reviews.answered) == (0, 1)
    assert tweets.left == 20 - tweets.answered > 0


def test_all_assets_share_what_may_be_spent_on_a_day(project: Make) -> None:
    made = project(claude={"max_cost_usd_per_day": float(2 * ONE_REQUEST)})
    _load(made, 4)
    watched = watch(made)
    first = made.start()
    assert len(made.sent().rows) == 2

    made.declare(key="other")
    second = made.start()
    assert len(made.sent().rows) == 2  # what is out may cost all that is allowed
    assert second.waiting is not None
    assert second.waiting.is_for_room
    assert second.waiting.send_after is not None

    made.end_batches()
    first.advance()
    made.claude.simulator.advance(timedelta(minutes=10))
    second.advance()
    assert len(made.sent().rows) > 2
    assert max(watched.worst) <= 2 * ONE_REQUEST


def test_two_runs_at_once_cannot_overspend_together(project: Make) -> None:
    made = _load(project(claude={"max_cost_usd_per_day": float(3 * ONE_REQUEST)}), 2)
    watched = watch(made)
    runs = list[RunOfTest]()
    for key in ("sentiment", "other"):
        made.declare(key=key)
        engine = made.engine()
        runs.append(RunOfTest(made, engine, engine.attach(["tweets"], MaterializationConfig())))

    threads = [threading.Thread(target=run.advance) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 2 <= len(made.sent().rows) <= 3
    assert all(run.waiting is not None for run in runs)
    assert max(watched.worst) <= 3 * ONE_REQUEST


def test_two_runs_that_cut_a_chunk_at_once_cut_it_once(project: Make) -> None:
    made = _load(project(), 30)
    config = MaterializationConfig(max_cost_usd=float(4 * ONE_REQUEST))
    engines = [made.engine(), made.engine()]
    runs = [RunOfTest(made, each, each.attach(["tweets"], config)) for each in engines]

    threads = [threading.Thread(target=run.advance) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    sizes = made.sql(
        "SELECT c.requests, (SELECT count(*) FROM claude_batch.requests_1 AS q "
        "WHERE q._chunk_id = c.chunk_id) FROM claude_batch.chunks AS c"
    )
    assert all(requests == rows for requests, rows in sizes)
    assert sum(requests for requests, _ in sizes) == 30
    _to_the_end(runs[0])
    assert made.sent().rows == sorted(f"t{n}" for n in range(30))


def test_what_a_stale_look_would_cut_is_left_alone(project: Make) -> None:
    made = _load(project(), 30)
    engine = made.engine()
    begun = engine.attach(["tweets"], MaterializationConfig(max_cost_usd=0.0016))
    (outstanding,) = engine.read(begun)
    (planned,) = outstanding.chunks
    cap = Cap("max_cost_usd", 4 * ONE_REQUEST, Decimal(0), 27 * ONE_REQUEST, is_out=False)
    budget = Budget(engine, cap)

    budget.hold(outstanding, replace(planned, requests=31), Findings())  # others have cut it since
    assert made.sql("SELECT state, requests FROM claude_batch.chunks") == [("planned", 30)]

    budget.hold(outstanding, planned, Findings())
    assert made.sql("SELECT state, requests FROM claude_batch.chunks ORDER BY chunk_id") == [
        ("planned", 4),
        ("planned", 26),
    ]


def test_another_day_has_a_budget_of_its_own(project: Make) -> None:
    made = _load(project(claude={"max_cost_usd_per_day": float(ONE_REQUEST)}), 60)
    run = made.start()
    _to_the_end(run)
    report = run.report()
    assert report.left > 0
    assert "`max_cost_usd_per_day` allows 0.0004 USD for this day (UTC)" in (report.capped or "")

    assert made.start().report().left == report.left
    made.claude.simulator.advance(timedelta(days=1))
    run = made.start()
    _to_the_end(run)
    assert run.report().left < report.left


def test_what_nobody_can_know_counts_as_the_most(project: Make) -> None:
    made = _load(project(max_attempts=3), 1)
    made.script.ends_with("t0", "missing")

    run = made.start(max_cost_usd=float(ONE_REQUEST))
    _advance_for_hours(run)

    assert made.wire.posts() == 1  # another attempt might cost as much once more
    assert made.failures() == [("t0", "missing")]


def _advance_for_hours(run: RunOfTest) -> None:
    """What is missing is looked for again and again, for an hour."""
    for _ in range(10):
        if run.waiting is None:
            return
        run.project.end_batches()
        run.project.claude.simulator.advance(timedelta(hours=1))
        run.advance()


def test_without_a_price_nothing_is_sent_under_a_cap(project: Make) -> None:
    made = _load(project(model="claude-of-tomorrow"), 1)

    with pytest.raises(UncappableError, match=r"no price of claude-of-tomorrow"):
        made.start(max_cost_usd=1.0)


def test_a_declared_cap_that_nobody_can_keep_is_refused_at_once(project: Make) -> None:
    with pytest.raises(DeclarationError, match=r"max_cost_usd.*no price"):
        project(model="claude-of-tomorrow", max_cost_usd=1.0)
    search = {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}
    with pytest.raises(DeclarationError, match=r"any number of tokens"):
        project(params=search, max_cost_usd=1.0)


def test_a_price_of_ones_own_is_what_counts(project: Make) -> None:
    made = _load(project(prices={"input": 10, "output": "20.5"}), 2)
    made.materialize()

    ((tokens_in, tokens_out, cost),) = made.sql(
        "SELECT sum(_input_tokens), sum(_output_tokens), sum(_cost_usd) FROM main.sentiment"
    )
    assert cost == (10 * tokens_in + Decimal("20.5") * tokens_out) / 1_000_000


PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(300_000)


@pytest.mark.parametrize(
    ("kind", "value", "tokens"),
    [
        pytest.param("BLOB", PICTURE, 5_000, id="a picture has as many as one can have"),
        pytest.param("VARCHAR", "https://pictures.org/1.png", 5_000, id="as has that of a URL"),
    ],
)
def test_the_most_that_a_picture_costs(
    project: Make, kind: str, value: object, tokens: int
) -> None:
    made = project(prompt=[Image("text"), Text("Describe {{ id }} please")], max_tokens=100)
    made.sql(f"CREATE TABLE texts (corpus VARCHAR, id VARCHAR, text {kind})")
    made.sql("INSERT INTO texts VALUES ('tweets', 't0', $value)", value=value)

    made.start()

    ((most,),) = made.sql("SELECT most_usd FROM claude_batch.chunks")
    answer, text = 100 * OUTPUT, 2_000 * INPUT  # far less than the picture's own bytes
    assert tokens * INPUT + answer < most < tokens * INPUT + answer + text


def test_the_most_that_a_request_of_several_rows_costs_has_all_their_answers(project: Make) -> None:
    made = _load(project(rows_per_request=10, max_tokens=100), 10)
    watched = watch(made)

    made.start()

    ((most_of_all,),) = made.sql("SELECT most_usd FROM claude_batch.chunks")
    assert made.sql("SELECT requests FROM claude_batch.chunks") == [(1,)]
    assert watched.worst[0] <= most_of_all
    assert most_of_all > 1_000 * OUTPUT
