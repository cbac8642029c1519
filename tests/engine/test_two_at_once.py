"""Runs beside each other: at most one batch per row and attempt, and each ends with the truth."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import dagster as dg
import duckdb
import httpx2
import pytest
from kit import CONFIG, Project, RunOfTest

from dagster_claude_batch import ledger
from dagster_claude_batch.errors import MaterializationDoneError
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.outstanding import serialize_sending
from dagster_claude_batch.workbench import asset_of

CREATE = "POST /v1/messages/batches"
LIST = "GET /v1/messages/batches"
RESULTS = "GET /v1/messages/batches/…/results"
LONG_ENOUGH = timedelta(minutes=36)
Make = Callable[..., Project]


def _asked(project: Project) -> Counter[tuple[str, int]]:
    """How often each row has been in a batch, by its id and attempt."""
    counted: Counter[tuple[str, int]] = Counter()
    attempts = dict(
        project.sql("SELECT batch_id, attempt FROM claude_batch.chunks WHERE batch_id IS NOT NULL")
    )
    for batch in project.claude.simulator.batches():
        for _, params in project.claude.simulator.requests(batch.id):
            row = params["messages"][-1]["content"].split()[1]
            counted[row, attempts[batch.id]] += 1
    return counted


def _check(project: Project, rows: int) -> None:
    """Every row was in one batch an attempt, has one outcome, and nothing is left open."""
    assert set(_asked(project).values()) == {1}
    assert len(project.answers()) == rows
    assert len(project.claude.simulator.bill()) == rows
    assert (
        project.sql(
            "SELECT state FROM claude_batch.materializations WHERE state = 'open' UNION ALL "
            "SELECT state FROM claude_batch.chunks "
            "WHERE state IN ('planned', 'sending', 'submitted')"
        )
        == []
    )


def _at_once(*works: Callable[[], object]) -> None:
    """Begin all of them at the same moment, each in a thread of its own; the first error counts."""
    barrier = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def begin(work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=begin, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _come_to_rest(project: Project, run: RunOfTest) -> None:
    for _ in range(10):
        if run.waiting is None:
            return
        project.end_batches()
        run.advance()
    raise AssertionError("it never came to an end")


def _meanwhile(project: Project, call: str, act: Callable[[], object], *, before: bool) -> None:
    """Do something in the middle of a call: before it arrives, or before its answer does."""

    def fault(request: httpx2.Request) -> httpx2.Response:
        if before:
            act()
        response = project.wire.transport.handle_request(request)
        response.read()
        if not before:
            act()
        return response

    project.wire.faults.append((call, fault))


# --- one completely inside a call of the other ----------------------------------------------

before_or_after = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])


@before_or_after
def test_while_one_run_posts_another_of_its_partition_begins(
    tweets: Project, *, before: bool
) -> None:
    other: list[RunOfTest] = []
    _meanwhile(tweets, CREATE, lambda: other.append(tweets.start()), before=before)

    run = tweets.start()

    assert tweets.wire.posts() == 1
    _come_to_rest(tweets, run)
    assert other[0].advance() is None
    _check(tweets, 10)


@before_or_after
def test_while_one_run_posts_another_looks_for_the_batch(tweets: Project, *, before: bool) -> None:
    """The upload takes so long that the other one sees the batch in the list first."""
    other: list[RunOfTest] = []

    def look() -> None:
        tweets.claude.simulator.advance(LONG_ENOUGH)
        tweets.end_batches()
        other.append(tweets.start())

    _meanwhile(tweets, CREATE, look, before=before)

    run = tweets.start()
    _come_to_rest(tweets, run)
    _come_to_rest(tweets, other[0])

    assert len(tweets.answers()) == 10
    assert set(tweets.chunk_states()) <= {"landed", "given_up"}


@before_or_after
def test_while_one_run_downloads_another_lands(tweets: Project, *, before: bool) -> None:
    first, second = tweets.start(), tweets.start()
    tweets.end_batches()
    _meanwhile(tweets, RESULTS, second.advance, before=before)

    assert first.advance() is None
    assert second.waiting is None
    _check(tweets, 10)


def test_while_one_run_looks_for_a_batch_another_finds_it(tweets: Project) -> None:
    tweets.wire.lose_answer(CREATE)
    first, second = tweets.start(), tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    tweets.end_batches()
    _meanwhile(tweets, LIST, second.advance, before=False)

    first.advance()

    _come_to_rest(tweets, first)
    _come_to_rest(tweets, second)
    assert tweets.wire.posts() == 1
    _check(tweets, 10)


def test_while_one_run_gives_a_batch_up_another_sends_it_anew(tweets: Project) -> None:
    tweets.wire.lose_call(CREATE, httpx2.ReadError)
    first, second = tweets.start(), tweets.start()
    tweets.claude.simulator.advance(LONG_ENOUGH)
    _meanwhile(tweets, LIST, second.advance, before=False)

    first.advance()

    assert len(tweets.claude.simulator.batches()) == 1
    _come_to_rest(tweets, first)
    _come_to_rest(tweets, second)
    _check(tweets, 10)


def test_while_one_run_retries_another_retries(tweets: Project) -> None:
    tweets.script.ends_with("t3", "expired", None)
    first, second = tweets.start(), tweets.start()
    tweets.end_batches()
    _meanwhile(tweets, CREATE, second.advance, before=True)

    first.advance()

    assert tweets.wire.posts() == 2
    _come_to_rest(tweets, first)
    _come_to_rest(tweets, second)
    _check(tweets, 10)


def test_while_one_run_waits_for_room_another_takes_it(project: Make) -> None:
    made = project(chunk_size=5, claude={"max_in_flight_requests": 5})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    first, second = made.start(), made.start()
    made.end_batches()
    _meanwhile(made, RESULTS, second.advance, before=False)

    first.advance()

    assert made.chunk_states() == {"landed": 1, "submitted": 1}
    _come_to_rest(made, first)
    _come_to_rest(made, second)
    _check(made, 10)


def test_while_one_run_posts_another_plans_a_changed_chunk_anew(project: Make) -> None:
    made = project(chunk_size=5, claude={"max_in_flight_requests": 10})
    made.load([("tweets", f"t{n}", "x") for n in range(20)])
    first, second = made.start(), made.start()
    made.change(made.sql("SELECT max_by(id, _chunk_id) FROM claude_batch.requests_1")[0][0], "y")
    made.end_batches()
    _meanwhile(made, CREATE, second.advance, before=True)

    first.advance()

    _come_to_rest(made, first)
    _come_to_rest(made, second)
    assert made.wire.posts() == 4
    _check(made, 20)


def test_a_submitting_run_that_is_entered_again_while_it_posts(tweets: Project) -> None:
    again: list[RunOfTest] = []
    _meanwhile(tweets, CREATE, lambda: again.append(tweets.start(run_id="one")), before=True)

    run = tweets.start(run_id="one")

    assert len(tweets.claude.simulator.batches()) == 1
    _come_to_rest(tweets, run)
    _come_to_rest(tweets, again[0])
    _check(tweets, 10)


@before_or_after
def test_settling_beside_a_live_run_leaves_it_alone(tweets: Project, *, before: bool) -> None:
    run = tweets.start(run_id="alive")
    tweets.end_batches()

    def settle() -> None:
        tweets.engine().settle(["abandoned"], is_alive=lambda run_id: run_id == "alive")

    _meanwhile(tweets, RESULTS, settle, before=before)

    assert run.advance() is None
    _check(tweets, 10)
    assert tweets.sql("SELECT state FROM claude_batch.materializations") == [("done",)]


@before_or_after
def test_settling_what_a_run_has_just_woken_up_for(tweets: Project, *, before: bool) -> None:
    """The sensor took it for dead, and it is not: what it has paid for lands once."""
    run = tweets.start(run_id="slow")
    tweets.end_batches()
    _meanwhile(
        tweets,
        RESULTS,
        lambda: tweets.engine().settle([], is_alive=lambda _: False),
        before=before,
    )

    assert run.advance() is None
    _check(tweets, 10)


def test_overlapping_sets_of_partitions_ask_each_row_once(project: Make) -> None:

    made = project(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]))
    made.load([(corpus, f"{corpus}{n}", "x") for corpus in "abc" for n in range(3)])
    other: list[RunOfTest] = []
    _meanwhile(made, CREATE, lambda: other.append(made.start("b", "c")), before=True)

    first = made.start("a", "b")

    assert sorted(map(sorted, made.sent().batches)) == [
        ["a0", "a1", "a2", "b0", "b1", "b2"],
        ["c0", "c1", "c2"],
    ]
    _come_to_rest(made, first)
    _come_to_rest(made, other[0])
    _check(made, 9)


def test_an_automatic_retry_after_the_end_sends_nothing(tweets: Project) -> None:
    run = tweets.start(run_id="failed")
    _come_to_rest(tweets, run)
    tweets.change("t1", "It has changed")

    engine = tweets.engine(retry_of="failed")
    with pytest.raises(MaterializationDoneError, match="nothing was sent"):
        engine.attach(["tweets"], MaterializationConfig())
    assert tweets.wire.posts() == 1


def test_an_automatic_retry_of_a_run_that_had_joined_asks_for_what_that_was_launched(
    tweets: Project,
) -> None:
    first = tweets.start(run_id="first")
    tweets.start(run_id="killed", refresh=True)
    tweets.end_batches()
    first.advance()
    assert tweets.wire.posts() == 1

    asked = (["tweets"], MaterializationConfig(refresh=True))
    retry = RunOfTest(tweets, tweets.engine(run_id="retry", retry_of="killed"), asked=asked)
    retry.materializations = retry.engine.attach(*asked)
    retry.advance()
    _to_the_end(retry)

    assert len(tweets.sent().rows) == 20


def test_an_automatic_retry_beside_the_run_joins_it(tweets: Project) -> None:
    run = tweets.start(run_id="failed")
    retry = RunOfTest(tweets, tweets.engine(run_id="retry", retry_of="failed"))
    retry.materializations = retry.engine.attach(["tweets"], MaterializationConfig())
    tweets.end_batches()

    _at_once(run.advance, retry.advance)

    assert [each.materialization_id for each in retry.materializations] == [
        each.materialization_id for each in run.materializations
    ]
    _come_to_rest(tweets, run)
    _come_to_rest(tweets, retry)
    _check(tweets, 10)


# --- really at once -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_two_connections_of_one_process_work_on_everything_at_once(
    tmp_path: Path, seed: int
) -> None:
    made = Project(tmp_path, chunk_size=3, claude={"max_in_flight_requests": 6})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    for n in range(seed % 4):
        made.script.ends_with(f"t{3 * n}", "expired", None)
    runs: list[RunOfTest] = []
    _at_once(*[lambda: runs.append(made.start()) for _ in range(2)])

    for _ in range(12):
        if all(run.waiting is None for run in runs):
            break
        made.end_batches()
        _at_once(*[run.advance for run in runs])

    _check(made, 10)


WORKER = """
import sys
from pathlib import Path
from kit import Project

made = Project(Path(sys.argv[1]), chunk_size=3, claude={"max_in_flight_requests": 6})
print("ready", flush=True)
run = None
for line in sys.stdin:
    run = made.start("tweets") if run is None else run
    run.advance()
    print("resting" if run.waiting is None else "waiting", flush=True)
"""


class Worker:
    """A run in a process of its own, that takes a step whenever it is told to."""

    def __init__(self, directory: Path) -> None:
        tests = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory)],
            env={"PYTHONPATH": ":".join([tests, *filter(None, sys.path)]), "HOME": "/"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.says() == "ready"

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> int:
        self.process.communicate()
        return self.process.returncode


def _step(workers: Sequence[Worker]) -> list[str]:
    for worker in workers:
        worker.step()
    return [worker.says() for worker in workers]


@pytest.mark.opens_anew
@pytest.mark.parametrize("number", range(2))
def test_two_processes_plan_and_send_at_the_same_moment(tmp_path: Path, number: int) -> None:
    del number
    made = Project(tmp_path, chunk_size=3, claude={"max_in_flight_requests": 6})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    workers = [Worker(tmp_path) for _ in range(2)]

    for _ in range(10):
        said = _step(workers)
        if said == ["resting", "resting"]:
            break
        made.end_batches()

    assert [worker.end() for worker in workers] == [0, 0]
    assert said == ["resting", "resting"]
    _check(made, 10)


def _with_a_row_planned_elsewhere(made: Project) -> tuple[RunOfTest, RunOfTest]:
    """A run of tweets whose planned chunk holds a review, and then a run of the reviews.

    Both partitions were in one chunk, whose sending is in doubt; its materialization was cancelled.
    """
    made.load([("tweets", "t1", "x"), *(("reviews", f"r{n}", "x") for n in (1, 2, 3))])
    made.wire.lose_call(CREATE, httpx2.ReadError)
    first = made.start("tweets", "reviews")
    first.engine.cancel(first.materializations[0])
    made.sql("INSERT INTO texts VALUES ('tweets', 't2', 'x'), ('tweets', 't3', 'x')")
    tweets = made.start("tweets")
    made.claude.simulator.advance(LONG_ENOUGH)
    tweets.advance()
    assert sorted(made.sent().batches[0]) == ["t2", "t3"]
    reviews = made.start("reviews")
    assert made.chunk_states()["elsewhere"] == 1
    return tweets, reviews


def _to_its_end(run: RunOfTest) -> None:
    for _ in range(10):
        if run.advance() is None:
            return
        run.project.end_batches()
    raise AssertionError("it never came to an end")


def test_rows_that_another_run_had_planned_and_never_sends_are_asked_before_the_end(
    project: Make,
) -> None:
    made = project(chunk_size=2, claude={"max_in_flight_requests": 2})
    tweets, reviews = _with_a_row_planned_elsewhere(made)

    tweets.engine.cancel(tweets.materializations[0])
    made.end_batches()
    made.engine().settle([], is_alive=lambda _: False)  # which makes room in the window
    _to_its_end(reviews)

    assert [key for key in made.answers() if key.startswith("r")] == ["r1", "r2", "r3"]
    assert set(_asked(made).values()) == {1}


def test_rows_that_nobody_could_ask_in_time_expire_as_all_others_do(project: Make) -> None:
    made = project(chunk_size=2, max_wait_hours=1, claude={"max_in_flight_requests": 2})
    tweets, reviews = _with_a_row_planned_elsewhere(made)

    tweets.engine.cancel(tweets.materializations[0])
    made.claude.simulator.advance(timedelta(hours=1))
    _to_its_end(reviews)

    assert [f for f in made.failures() if f[0].startswith("r")] == [
        ("r1", "expired"),
        ("r2", "expired"),
        ("r3", "expired"),
    ]


def test_rows_that_another_run_answers_are_not_asked_again(project: Make) -> None:
    made = project(chunk_size=2, claude={"max_in_flight_requests": 2})
    tweets, reviews = _with_a_row_planned_elsewhere(made)

    made.end_batches()
    for _ in range(4):
        tweets.advance()
        made.end_batches()
    _to_its_end(reviews)

    _check(made, rows=6)


# --- a launch that joins what was planned before it ---------------------------------------------


def _to_the_end(run: RunOfTest) -> None:
    while run.waiting is not None:
        run.project.end_batches()
        run.advance()


def _new_row(project: Project, key: str) -> None:
    project.sql(f"INSERT INTO texts VALUES ('tweets', '{key}', 'Come since')")


@pytest.mark.parametrize("ahead", [0, 60], ids=["one clock", "a clock that is ahead"])
def test_what_had_come_before_a_launch_is_asked_when_what_it_joined_is_done(
    tweets: Project, ahead: int
) -> None:
    tweets.start()
    began = f"started_at + INTERVAL {ahead} SECOND"
    tweets.sql(f"UPDATE claude_batch.materializations SET started_at = {began}")
    _new_row(tweets, "new")
    tweets.change("t0", "Changed since")
    second = tweets.start()
    assert tweets.wire.posts() == 1

    _to_the_end(second)

    assert tweets.sent(since=1).batches == [["t0", "new"]]
    assert "new" in tweets.answers()


def test_a_launch_that_joins_asks_nothing_more_if_nothing_has_come(tweets: Project) -> None:
    runs = [tweets.start() for _ in range(3)]

    for run in runs:
        _to_the_end(run)

    assert tweets.wire.posts() == 1
    assert tweets.sql("SELECT DISTINCT state FROM claude_batch.materializations") == [("done",)]


def test_a_refresh_that_joins_a_plain_materialization_is_made_after_it(tweets: Project) -> None:
    tweets.start()
    second = tweets.start(refresh=True)

    _to_the_end(second)

    assert len(tweets.sent().rows) == 20


def test_launches_that_join_a_refresh_are_not_one_more(tweets: Project) -> None:
    runs = [tweets.start(refresh=True) for _ in range(3)]

    for run in runs:
        _to_the_end(run)

    assert len(tweets.sent().rows) == 10


def test_what_has_failed_after_a_launch_had_joined_is_not_asked_again(tweets: Project) -> None:
    tweets.script.ends_with("t3", "expired")
    first, second = tweets.start(), tweets.start()
    _to_the_end(first)
    asked = tweets.sent().rows.count("t3")

    _to_the_end(second)

    assert tweets.sent().rows.count("t3") == asked > 1


def test_of_one_launch_only_one_run_catches_up(tweets: Project) -> None:
    tweets.start()
    launched = tweets.start(refresh=True)
    launched.engine.attach_run("held", launched.materializations)
    held = tweets.start(run_id="held", refresh=True)

    _to_the_end(launched)
    _to_the_end(held)

    assert len(tweets.sent().rows) == 20


def test_the_run_that_takes_the_place_of_a_launch_catches_up_for_it(tweets: Project) -> None:
    tweets.start()
    _new_row(tweets, "new")
    launched = tweets.start(run_id="launched")
    held = tweets.start(run_id="another try", collects_for="launched")
    assert [each.state for each in launched.materializations] == ["open"]

    _to_the_end(held)

    assert tweets.sent(since=1).batches == [["new"]]


def test_two_launches_that_joined_the_same_catch_up_in_one_batch(tweets: Project) -> None:
    tweets.start()
    _new_row(tweets, "new")
    second, third = tweets.start(), tweets.start()
    tweets.end_batches()
    second.advance()
    third.advance()

    _to_the_end(third)
    _to_the_end(second)

    assert tweets.sent(since=1).batches == [["new"]]


def test_a_launch_that_catches_up_in_a_weaker_materialization_asks_the_rest_after_it(
    tweets: Project,
) -> None:
    tweets.script.ends_with("t4", "refusal", None)
    _to_the_end(tweets.start())
    tweets.change("t0", "Changed")
    first = tweets.start(retry_failed="none")
    second = tweets.start(retry_failed="all")
    tweets.end_batches()
    first.advance()
    tweets.change("t1", "Changed")
    tweets.start(retry_failed="none")

    _to_the_end(second)

    assert tweets.sent(since=1).batches == [["t0"], ["t1"], ["t4"]]


def test_nothing_is_caught_up_with_on_behalf_of_what_was_cancelled(tweets: Project) -> None:
    first = tweets.start()
    _new_row(tweets, "new")
    second = tweets.start()
    first.engine.cancel(first.materializations[0])

    _to_the_end(second)

    assert tweets.wire.posts() == 1


def test_two_first_sendings_of_a_workspace_get_in_each_others_way(tweets: Project) -> None:
    """Each would find the window, and what a cap allows, as if it were alone."""
    tweets.engine().attach(["tweets"], MaterializationConfig())
    with (
        closing(duckdb.connect(str(tweets.path), config=CONFIG)) as first,
        closing(duckdb.connect(str(tweets.path), config=CONFIG)) as second,
    ):
        first.begin()
        second.begin()
        serialize_sending(first, "claude_batch")

        with pytest.raises(duckdb.TransactionException, match="onflict"):
            serialize_sending(second, "claude_batch")


def test_two_plannings_of_an_asset_get_in_each_others_way(tweets: Project) -> None:
    """Also where they take no number: neither could see what the other one plans."""
    engine = tweets.engine()
    engine.attach(["tweets"], MaterializationConfig())
    with (
        closing(duckdb.connect(str(tweets.path), config=CONFIG)) as first,
        closing(duckdb.connect(str(tweets.path), config=CONFIG)) as second,
    ):
        first.begin()
        second.begin()
        assert not ledger.claim_chunks(first, asset_of(first, "sentiment"), 0)

        with pytest.raises(duckdb.TransactionException, match="onflict"):
            ledger.claim_chunks(second, asset_of(second, "sentiment"), 0)
