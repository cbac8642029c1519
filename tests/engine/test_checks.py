"""The asset checks: what they promise of a partition is true of its source too."""

from collections.abc import Callable, Sequence

import dagster as dg
import pytest
from kit import Project

from dagster_claude_batch import build_claude_batch_asset
from dagster_claude_batch.finishing import EVERY_ROW_ANSWERED, check_results
from dagster_claude_batch.report import read_reports

Make = Callable[..., Project]


def _check(
    project: Project, partitions: Sequence[str | None] | None = ("tweets",)
) -> dg.AssetCheckResult:
    """What a run of the checks alone says of whether each row has an answer."""
    engine, declaration = project.engine(), project.asset.declaration
    reports = read_reports(engine.warehouse, declaration, [], partitions, engine.slices_of)
    found, _ = check_results(dg.AssetKey("sentiment"), declaration, reports)
    assert (found.check_name, found.severity) == (EVERY_ROW_ANSWERED, dg.AssetCheckSeverity.WARN)
    return found


def _since(found: dg.AssetCheckResult) -> object:
    return found.metadata["rows_come_since"].value


def test_what_was_never_asked_does_not_pass(tweets: Project) -> None:
    found = _check(tweets)

    assert (found.passed, found.description) == (False, "Nothing has been asked yet.")


def test_a_partition_that_was_never_asked_does_not_pass_beside_one_that_was(
    tweets: Project,
) -> None:
    tweets.sql("INSERT INTO texts VALUES ('reviews', 'r1', 'x')")
    tweets.materialize("tweets")

    found = _check(tweets, ["tweets", "reviews"])

    assert (found.passed, found.description) == (False, "Not asked as a whole yet: reviews.")
    assert _check(tweets, ["tweets"]).passed
    assert _check(tweets, None).passed


def test_a_partition_of_which_only_some_rows_were_asked_does_not_pass(tweets: Project) -> None:
    tweets.materialize(limit=3)
    assert not _check(tweets).passed

    tweets.materialize()
    assert _check(tweets).passed


def test_a_partition_whose_batches_are_out_does_not_pass(tweets: Project) -> None:
    tweets.start()

    assert not _check(tweets).passed


def test_an_empty_partition_passes_once_it_was_asked(tweets: Project) -> None:
    tweets.materialize("reviews")

    assert _check(tweets, ["reviews"]).passed
    assert _check(tweets, None).passed


def test_failed_rows_do_not_pass_also_when_they_have_changed_since(tweets: Project) -> None:
    tweets.script.ends_with("t3", "refusal")
    tweets.materialize()
    tweets.change("t3", "Something else")

    found = _check(tweets)

    assert (found.passed, found.metadata["failed_rows"].value, _since(found)) == (False, 1, 0)


def test_rows_that_come_or_change_later_are_counted_and_no_failure(tweets: Project) -> None:
    tweets.materialize()
    assert (_check(tweets).passed, _check(tweets).description) == (True, None)
    tweets.change("t1", "changed")
    tweets.change("t2", None)
    tweets.sql("INSERT INTO texts VALUES ('tweets', 'new', 'x'), ('reviews', 'r1', 'x')")

    found = _check(tweets)

    assert (found.passed, _since(found)) == (True, 3)
    assert found.description == (
        "3 rows have come or changed since; materializing again asks them."
    )


def test_what_came_since_is_counted_for_each_partition(project: Make) -> None:
    made = project()
    made.load([(corpus, "x", "x") for corpus in ("tweets", "reviews")])
    made.materialize("tweets", "reviews")
    made.sql("INSERT INTO texts VALUES ('reviews', 'r1', 'x'), ('reviews', 'r2', 'x')")

    assert [_since(_check(made, keys)) for keys in (["tweets"], ["reviews"], None)] == [0, 2, 2]


def test_an_asset_without_partitions_is_checked_as_a_whole(project: Make) -> None:
    made = project(partitions_def=None, partition_expr=None)
    made.load([("tweets", "t1", "x")])
    assert not _check(made, [None]).passed

    made.materialize(None)
    made.sql("INSERT INTO texts VALUES ('reviews', 'r1', 'x')")

    found = _check(made, [None])
    assert (found.passed, _since(found)) == (True, 1)


@pytest.mark.parametrize(
    "broken", ["SELECT 1 AS id", "SELECT corpus, id, error(text) AS text FROM loaded"]
)
def test_a_source_that_cannot_be_read_is_said_to_be_left_out(tweets: Project, broken: str) -> None:
    tweets.materialize()
    tweets.sql("ALTER TABLE texts RENAME TO loaded")
    tweets.sql(f"CREATE VIEW texts AS {broken}")

    found = _check(tweets)

    assert found.passed
    assert (
        found.description == "The source could not be read: only rows that were asked are counted."
    )
    assert "rows_come_since" not in found.metadata


def test_a_run_of_the_checks_alone_before_anything_was_asked_does_not_pass(
    tweets: Project,
) -> None:
    asset = build_claude_batch_asset("sentiment", **tweets.declared)

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [asset],
            selection=dg.AssetSelection.checks_for_assets(asset),
            instance=instance,
            resources={"duckdb": tweets.duckdb, "claude_batch": tweets.claude},
        )

    passed = {each.check_name: each.passed for each in result.get_asset_check_evaluations()}
    assert passed[EVERY_ROW_ANSWERED] is False
    assert tweets.wire.calls == []
