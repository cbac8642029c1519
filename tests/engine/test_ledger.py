"""The ledger: its version, its guards, and two runs at once."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable

import duckdb
import pytest
from kit import Project
from request_hashes import request_hash

from dagster_claude_batch import chunks, ledger
from dagster_claude_batch.errors import (
    DatabaseLockedError,
    LedgerVersionError,
    LostChunkError,
    OversizedRequestError,
    TableTakenError,
)
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.outstanding import chunks_of

Make = Callable[..., Project]


def test_the_hash_that_duckdb_computes_is_the_pinned_one(tweets: Project) -> None:
    tweets.materialize()

    expected = request_hash(tweets.asset.declaration.shape, "Rate t3 now: Tweet number 3")
    assert tweets.sql("SELECT _request_hash FROM sentiment WHERE id = 't3'") == [(expected,)]


def test_a_ledger_of_a_newer_version_is_left_alone(tweets: Project) -> None:
    tweets.materialize()
    tweets.sql("UPDATE claude_batch.ledger SET version = 99")

    with pytest.raises(LedgerVersionError, match="version 99"):
        tweets.start()


def test_a_ledger_remembers_its_version(tweets: Project) -> None:
    tweets.materialize()

    assert tweets.sql("SELECT version FROM claude_batch.ledger") == [(ledger.VERSION,)]


def test_all_requests_stand_in_one_view(tweets: Project) -> None:
    tweets.materialize()
    tweets.declare(key="other", row_key=["corpus", "id"], output=None)
    tweets.materialize()

    assert tweets.sql(
        "SELECT asset, row_key FROM claude_batch.requests WHERE ordinal = 0 ORDER BY asset"
    ) == [("other", '["tweets","t0"]'), ("sentiment", '["t0"]')]


def test_a_chunk_that_was_landed_cannot_be_landed_again(tweets: Project) -> None:
    run = tweets.start()
    (chunk,) = run.engine.warehouse.transact(
        lambda connection: chunks_of(
            connection, [run.materializations[0].materialization_id], ["submitted"]
        )
    )
    tweets.end_batches()
    run.advance()
    counts = {"succeeded": 10, "errored": 0, "canceled": 0, "expired": 0}

    with pytest.raises(LostChunkError, match="no longer 'submitted'"):
        run.engine.warehouse.transact(
            lambda connection: chunks.mark_landed(
                connection, chunk, counts, ended_at=None, now=tweets.claude.now()
            )
        )


def test_two_runs_that_plan_at_the_same_moment_make_one_plan(tweets: Project) -> None:
    tweets.start("reviews")  # the tables exist
    engines = [tweets.engine(), tweets.engine()]
    at_once = threading.Barrier(2)
    planned: list[str] = []

    def attach(number: int) -> None:
        at_once.wait()
        (found,) = engines[number].attach(["tweets"], MaterializationConfig())
        planned.append(found.materialization_id)

    threads = [threading.Thread(target=attach, args=[number]) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(planned) == 2
    assert len(set(planned)) == 1
    assert tweets.sql("SELECT sum(requests) FROM claude_batch.chunks") == [(10,)]


def test_a_failed_plan_leaves_no_trace(tweets: Project) -> None:
    tweets.sql("INSERT INTO texts VALUES ('tweets', 't3', 'me too')")
    with pytest.raises(Exception, match="t3"):
        tweets.start()

    with pytest.raises(duckdb.CatalogException):
        tweets.sql("SELECT * FROM claude_batch.materializations")


def test_a_request_too_large_for_any_batch_names_its_row(project: Make) -> None:
    made = project()
    made.load([("tweets", "small", "x"), ("tweets", "large", "x")])
    made.sql("UPDATE texts SET text = repeat('x', 33000000) WHERE id = 'large'")

    with pytest.raises(OversizedRequestError, match=r"id='large'.*33,000,\d+ bytes"):
        made.start()
    assert made.wire.posts() == 0


def test_a_database_that_stays_locked_is_an_error_that_names_the_holder(tweets: Project) -> None:
    engine = tweets.engine()
    locked = "Could not set lock on file: Conflicting lock is held in python (PID 7)."

    def refuse() -> None:
        raise duckdb.IOException(locked)

    warehouse = type(engine.warehouse)(refuse, lock_timeout_seconds=0)

    with pytest.raises(DatabaseLockedError, match=r"locked by python \(PID 7\)"):
        warehouse.transact(lambda _: None)


@pytest.mark.opens_anew
def test_a_lock_that_another_process_lets_go_of_is_waited_for(tweets: Project) -> None:
    script = (
        "import duckdb, sys; connection = duckdb.connect(sys.argv[1]); print('held', flush=True); "
        "sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tweets.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.5, lambda: holder.communicate("let go\n")).start()

        assert len(tweets.start().materializations) == 1


@pytest.mark.parametrize(
    ("table", "taken"),
    [
        ("Sentiment", "main.Sentiment"),
        ("warehouse.main.sentiment", "warehouse.main.sentiment"),
        ("sentiment_failures", "main.sentiment_failures"),
    ],
    ids=["the answers", "the answers in full", "the failures"],
)
def test_a_table_that_another_asset_writes_is_refused(
    tweets: Project, table: str, taken: str
) -> None:
    tweets.materialize()
    tweets.declare(key="tone", table=table)

    with pytest.raises(TableTakenError, match=f"'tone'.*{taken} .*'sentiment'"):
        tweets.start()
    with pytest.raises(TableTakenError):
        tweets.engine().rehearse(["tweets"], MaterializationConfig())

    tweets.declare()
    assert tweets.materialize().rows == []
    assert tweets.wire.posts() == 1


def test_answers_may_not_stand_where_the_failures_of_another_asset_would(tweets: Project) -> None:
    tweets.declare(key="tone", table="sentiment_failures", output=None)
    tweets.materialize()
    tweets.declare()

    with pytest.raises(TableTakenError, match=r"main\.sentiment_failures"):
        tweets.start()


def test_a_table_that_was_let_go_of_may_be_written_by_another_asset(tweets: Project) -> None:
    tweets.materialize()
    tweets.declare(table="elsewhere")
    tweets.materialize()
    tweets.declare(key="tone", table="sentiment")

    assert tweets.materialize().rows == []


def test_an_asset_of_another_name_takes_the_table_over_as_the_error_says(tweets: Project) -> None:
    tweets.materialize()
    tweets.declare(key="tone", table="sentiment")
    with pytest.raises(TableTakenError) as raised:
        tweets.start()

    cure = re.search(r"UPDATE .* WHERE asset = '\w+'", str(raised.value))
    assert cure is not None
    tweets.sql(cure.group())

    assert tweets.materialize().rows == []
    assert len(tweets.answers()) == 10


def test_a_ledger_without_tables_yet_is_brought_up_to_the_version(tweets: Project) -> None:
    tweets.sql("CREATE SCHEMA claude_batch")
    tweets.sql(
        "CREATE TABLE claude_batch.ledger AS SELECT 0 AS version, 0 AS assets, "
        "CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS migrated_at"
    )

    tweets.materialize()

    assert tweets.sql("SELECT version, migrated_at IS NULL FROM claude_batch.ledger") == [
        (ledger.VERSION, False)
    ]
